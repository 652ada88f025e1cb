// A strip of a product's rows: how many there are of which length, and what becomes of their sums.
#pragma once

#include "pack_a.h"

namespace VOVNET_ISA {

constexpr int kProducts = 7;  // of Strassen's, see strassen.h

template <typename S>
struct IgemmPlan {
  int64_t rows;  // of all
  int64_t row_tiles;
  int64_t groups;  // of panels: where strips are fewer than threads, each is more than one task
  int64_t row_tile;   // rows of the largest
  int64_t blocks;  // of the inner dimension
  int64_t range;   // blocks that are packed at a time
  int64_t panels;
  bool fixed;  // whether strips are as long for every number of threads: Strassen's sums depend on who is beside whom

  IgemmPlan(const Conv& conv, int threads) {
    rows = conv.batch * conv.out_height * conv.out_width;
    blocks = igemm_blocks<S>(conv.channels, conv.kernel, conv.method);
    panels = panels_of(conv.out_channels, conv.method);
    const bool strassen = conv.method == Method::kStrassen;
    // Strips whose packed rows and sums share the second-level cache with the columns that pass by; longer ones where
    // the columns are many, for each strip reads them all.
    constexpr int64_t kMost = kRows<AccumulationChain::kChunk>;
    const bool short_row_tiles = strassen || (columns_bytes() <= (6 << 20) && !is_image(conv.channels));
    const int64_t wanted = (short_row_tiles ? 4 : 12) * kMost;
    row_tiles = larger(1, ceil_div(rows, wanted));
    row_tile = wanted;
    fixed = strassen;
    if (!fixed) {
      if (row_tiles > 1 || rows >= 2 * kMost * threads) row_tiles = ceil_div(row_tiles, threads) * threads;
      row_tiles = larger(1, smaller(row_tiles, rows));
      row_tile = ceil_div(rows, row_tiles);
    }
    groups = strassen || row_tiles >= threads ? 1 : smaller(panels, ceil_div(threads, row_tiles));
    range = blocks;
    if (!strassen && !is_image(conv.channels)) {
      // Whole chunks: what is summed one after the other does not depend on how much is packed at a time.
      range = smaller(blocks, larger(1, (512 << 10) / (row_tile * kLine) / kChunk) * kChunk);
    }
  }
  int64_t begin(int64_t i) const { return fixed ? smaller(i * row_tile, rows) : i * rows / row_tiles; }
  int64_t tasks() const { return row_tiles * groups; }
  int64_t columns_bytes() const { return panels * kPanel * blocks * kLine; }

  // Bytes of scratch: of a table for all, then of packed rows and sums for each thread.
  int64_t table_bytes() const { return blocks * larger(sizeof(Inner<float>), kBlock<S> * sizeof(int64_t)) + kLine; }
  int64_t packed_bytes(Method method) const {
    return method == Method::kStrassen ? kProducts * row_tile / 2 * (blocks / 2) * kLine : row_tile * range * kLine;
  }
  int64_t each(Method method) const {
    const int64_t sums = row_tile * panels + (method == Method::kStrassen ? row_tile / 2 : 0);  // rows of panels
    const int64_t bytes = packed_bytes(method) + sums * kPanel * int64_t{sizeof(float)};
    // An odd number of lines: the threads' scratch does not fall on the same sets of the caches.
    return (ceil_div(bytes, kLine) | 1) * kLine;
  }
};

// Panels [begin, end) of a strip's sums, which lie panel by panel, `stored` rows each.
template <typename M>
VOVNET_INLINE void store_row_tile(const Conv& conv, int64_t begin, int64_t end, int64_t m, int64_t rows,
                                const float* sums, int64_t stored) {
  const Epilogue<M> epilogue(conv);
  Pixel pixel = pixel_of(conv, m);
  for (int64_t r = 0; r < rows; ++r, pixel.advance(conv)) {
    M* out = static_cast<M*>(conv.out) + (m + r) * conv.out_channels;
    const M* residual = epilogue.residual_of(conv, m + r, pixel.n, pixel.line, pixel.column);
    for (int64_t panel = begin; panel < end; ++panel) {
      const float* from = sums + (panel * stored + r) * kPanel;
      epilogue.put(load(from), load(from + kLanes), panel * kPanel, out, residual);
    }
  }
  if (epilogue.streams) stream_end();
}

}  // namespace VOVNET_ISA
