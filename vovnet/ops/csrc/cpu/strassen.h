// A strip by Strassen's product (V. Strassen, Gaussian Elimination is not Optimal, 1969): rows, inner dimension and
// columns are halved, and 7 products of sums take the place of 8.
#pragma once

#include "row_tile.h"

namespace VOVNET_ISA {

// Coefficients of the weight's quadrants (B11, B12, B21, B22) in the products' right sides; inner halves, then columns.
constexpr float kRight[kProducts][4] = {{1, 0, 0, 1}, {1, 0, 0, 0}, {0, 1, 0, -1}, {-1, 0, 1, 0},
                                        {0, 0, 0, 1}, {1, 1, 0, 0}, {0, 0, 1, 1}};

// Where the products go: quadrants of the sums (rows first) and signs; a sign of 0 is no second one.
struct Goal {
  int quadrant[2];
  float sign[2];
};
constexpr Goal kGoals[kProducts] = {{{0, 3}, {1, 1}},  {{2, 3}, {1, -1}}, {{1, 3}, {1, 1}}, {{0, 2}, {1, 1}},
                                    {{0, 1}, {-1, 1}}, {{3, 3}, {1, 0}},  {{0, 0}, {1, 0}}};

// Panel i of all products' columns, product by product.
template <typename S>
inline void pack_strassen_panel(void* context, int64_t i) {
  const auto& job = *static_cast<PackB<S>*>(context);
  const int64_t half = job.panels / 2, inner = job.inner / 2;
  const float* take = kRight[i / half];
  S* to = job.packed + i * inner * kPanel;
  for (int64_t j = 0; j < kPanel; ++j) {
    const int64_t o = i % half * kPanel + j, right = o + half * kPanel;
    for (int64_t k = 0; k < inner; ++k) {
      // Sums of two terms, in double: they are rounded once.
      const double sum = static_cast<double>(take[0]) * weight_at<S>(job.weight, o, k) +
                         static_cast<double>(take[1]) * weight_at<S>(job.weight, right, k) +
                         static_cast<double>(take[2]) * weight_at<S>(job.weight, o, k + inner) +
                         static_cast<double>(take[3]) * weight_at<S>(job.weight, right, k + inner);
      put_weight(to + column_place<S>(k, j), static_cast<float>(sum));
    }
  }
}

// Vectors of a row of the upper and one of the lower half, of both halves of the inner dimension -> the left sides.
template <typename S>
VOVNET_INLINE void put_left(Vec a11, Vec a12, Vec a21, Vec a22, S* to, int64_t product) {
  store(to, a11 + a22);
  store(to + product, a21 + a22);
  store(to + 2 * product, a11);
  store(to + 3 * product, a22);
  store(to + 4 * product, a11 + a12);
  store(to + 5 * product, a21 - a11);
  store(to + 6 * product, a12 - a22);
}

// The channels of a block at an input's pixel, with zeros where they do not exist; null stands for a block or pixel
// that is none.
template <typename M, typename S>
inline void fetch(const Conv& conv, const Inner<M>* inner, int64_t at, M* to) {
  for (int i = 0; i < kBlock<S>; ++i) to[i] = 0;
  if (!inner || at < 0) return;
  const Source* source = conv.sources;
  int64_t begin = 0;
  for (int i = 0; i < inner->count; ++i) {
    const int64_t c = inner->channel + i;
    while (c >= begin + source->channels) begin += source++->channels;
    to[i] = static_cast<const M*>(source->data)[at * source->channels + (c - begin)];
  }
}

// The row block of the upper half and that of the lower one: `blocks` of each half of the inner dimension, of which
// `exist` exist together.
template <typename M, typename S>
inline void pack_pairs(const Conv& conv, const Inner<M>* inner, int64_t blocks, int64_t exist, Pixels& upper,
                       Pixels& lower, S* to, int64_t product) {
  M quadrants[4][kBlock<S>] __attribute__((aligned(kLine)));
  int32_t tap = -1;
  for (int64_t b = 0; b < blocks; ++b) {
    const Inner<M>* left = inner + b;
    const Inner<M>* right = b + blocks < exist ? left + blocks : nullptr;
    const bool whole = left->base && right && right->base && right->tap == left->tap;
    if (left->tap != tap) {
      upper.look(conv, tap = left->tap);
      lower.look(conv, tap);
    }
    for (int r = 0; r < upper.count; ++r, to += kBlock<S>) {
      const int64_t above = upper.at[r], below = lower.at[r];
      const M *a11 = quadrants[0], *a12 = quadrants[1], *a21 = quadrants[2], *a22 = quadrants[3];
      if (whole && above >= 0 && below >= 0) {
        a11 = left->base + above * left->stride, a12 = right->base + above * right->stride;
        a21 = left->base + below * left->stride, a22 = right->base + below * right->stride;
        constexpr int kFar = kLineDistance * kLine / static_cast<int>(sizeof(M));
        __builtin_prefetch(a11 + kFar);
        __builtin_prefetch(a12 + kFar);
        __builtin_prefetch(a21 + kFar);
        __builtin_prefetch(a22 + kFar);
      } else {
        fetch<M, S>(conv, left, above, quadrants[0]);
        fetch<M, S>(conv, left, below, quadrants[2]);
        const int32_t other = right ? right->tap : 0;
        fetch<M, S>(conv, right, under_tap(conv, upper.pixel[r], other), quadrants[1]);
        fetch<M, S>(conv, right, under_tap(conv, lower.pixel[r], other), quadrants[3]);
      }
      for (int v = 0; v < kBlock<S>; v += kLanes) {
        put_left(load(a11 + v), load(a12 + v), load(a21 + v), load(a22 + v), to + v, product);
      }
    }
  }
}

// to = sign * from (+ to): a panel of so many rows.
VOVNET_INLINE void add_panel(const float* from, int64_t rows, float sign, bool add, float* to) {
  const Vec factor = all(sign);
  for (int64_t i = 0; i < rows * kPanel; i += kLanes) {
    store(to + i, add ? load(to + i) + factor * load(from + i) : factor * load(from + i));
  }
}

template <typename M, typename S>
inline void strassen_row_tile(const Conv& conv, const IgemmPlan<S>& plan, const void* table, char* scratch, int64_t i,
                           Prefetcher prefetcher) {
  const int64_t m = plan.begin(i), rows = plan.begin(i + 1) - m, half = (rows + 1) / 2;
  const RowBlocks<AccumulationChain::kChunk> row_blocks(half);
  const int64_t blocks = plan.blocks / 2, panels = plan.panels / 2;
  const int64_t exist = inner_blocks<S>(conv.channels, conv.kernel);
  const int64_t product = half * blocks * kBlock<S>;
  S* packed = reinterpret_cast<S*>(scratch);
  float* sums = reinterpret_cast<float*>(scratch + plan.packed_bytes(conv.method));
  float* sum = sums + plan.row_tile * plan.panels * kPanel;  // of one product and panel
  for (int64_t b = 0; b < row_blocks.count; ++b) {
    const int64_t first = row_blocks.begin(b);
    Pixels upper(conv, m + first, row_blocks.rows(b), m + rows);
    Pixels lower(conv, m + first + half, row_blocks.rows(b), m + rows);
    pack_pairs(conv, static_cast<const Inner<M>*>(table), blocks, exist, upper, lower,
               packed + first * blocks * kBlock<S>, product);
  }
  prefetcher.delay(kProducts * panels * row_blocks.count * blocks);
  bool started[4] = {};
  for (int p = 0; p < kProducts; ++p) {
    const Goal& goal = kGoals[p];
    const int count = goal.sign[1] == 0.0f ? 1 : 2;
    for (int64_t panel = 0; panel < panels; ++panel) {
      const S* columns = static_cast<const S*>(conv.packed) + (p * panels + panel) * blocks * kBlock<S> * kPanel;
      multiply_row_tile(row_blocks, packed + p * product, columns, blocks, sum, false, prefetcher);
      for (int t = 0; t < count; ++t) {
        const int64_t down = goal.quadrant[t] / 2 * half, right = goal.quadrant[t] % 2 * panels;
        add_panel(sum, half, goal.sign[t], started[goal.quadrant[t]],
                  sums + ((panel + right) * 2 * half + down) * kPanel);
      }
    }
    started[goal.quadrant[0]] = true;
    if (count == 2) started[goal.quadrant[1]] = true;
  }
  store_row_tile<M>(conv, 0, plan.panels, m, rows, sums, 2 * half);
}

}  // namespace VOVNET_ISA
