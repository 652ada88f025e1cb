// 3x3 convolutions by Winograd's transforms. At each point of the transform (Winograd point), the tiles of the input
// become the rows of a product with the transformed weight.
//
// There are two orders of the work. By row tile: a thread takes some tiles through all three steps, while they stay in
// its second-level cache; if there are only a few tiles, each thread takes all of them through the steps for a share of
// the output channels. By point, if there are few tiles and many weights: all tiles are transformed, then each weight
// is read once, by one thread.
#pragma once

#include "tasks.h"
#include "tiles.h"

namespace VOVNET_ISA {

template <typename S>
struct WinogradJob {
  const Conv& conv;
  const WinogradPlan<S>& plan;
  char* scratch;
  int threads;
  Tasks tasks;           // by row tile: parts and groups; by point: Winograd points and groups
  int64_t first, tiles;  // by point: tiles of the current part
};

// ---- By row tile

// A row tile's products are panels times row blocks; group g of plan.groups takes a share of them, and transforms the
// rows that it needs itself. That costs less than reading what another core has transformed.
template <typename W, typename M, typename S>
inline void winograd_row_tile(const Conv& conv, const WinogradPlan<S>& plan, char* scratch, int64_t i, int64_t g,
                              Prefetcher prefetcher) {
  const int64_t first = plan.begin(i), tiles = plan.begin(i + 1) - first;
  const TileBlocks<S> row_blocks(tiles);
  const Epilogue<M> epilogue(conv);
  const int64_t inner = plan.blocks * kBlock<S>, count = row_blocks.count;
  const int64_t from = g * plan.panels * count / plan.groups, until = (g + 1) * plan.panels * count / plan.groups;
  S* rows = reinterpret_cast<S*>(scratch);
  float* sums = reinterpret_cast<float*>(scratch + plan.rows_bytes());
  for (int64_t product = from; product < smaller(until, from + count); ++product) {
    rows_of_tiles<W, M>(conv, plan, row_blocks, first, product % count, 0, plan.blocks, rows);
  }
  prefetcher.delay((until - from) * plan.points * plan.blocks);
  for (int64_t product = from; product < until;) {
    const int64_t panel = product / count, begin = product % count;
    const RowBlockRange range{begin, smaller(count, begin + until - product)};
    const int64_t first_tile = row_blocks.begin(range.begin), last_tile = row_blocks.begin(range.end);
    const S* columns = static_cast<const S*>(conv.packed) + panel * plan.points * inner * kPanel;
    int64_t asked = first_tile;
    for (int f = 0; f < plan.points; ++f, columns += inner * kPanel) {
      multiply_row_tile(row_blocks, range, rows + f * plan.row_step, columns, plan.blocks, sums + f * plan.sum_step,
                        false, prefetcher);
      if (epilogue.streams) continue;
      for (; asked < first_tile + (last_tile - first_tile) * (f + 1) / plan.points; ++asked) {
        ask_for_pixels<W, M>(conv, tile_of<W>(plan, first + asked), panel * kPanel);
      }
    }
    for (int64_t t = first_tile; t < last_tile; ++t) {
      transform_out<W>(conv, epilogue, tile_of<W>(plan, first + t), sums + t * kPanel, plan.sum_step, panel * kPanel);
    }
    product += range.end - range.begin;
  }
  if (epilogue.streams) stream_end();
}

// Returns a prefetcher for the input's lines that part i reads and the part before it does not.
template <typename W, typename M, typename S>
inline Prefetcher prefetch_tiles(const Conv& conv, const WinogradPlan<S>& plan, int64_t i) {
  Prefetcher prefetcher;
  if (i >= plan.parts) return prefetcher;
  int64_t t = plan.begin(i);
  const int64_t end = plan.begin(i + 1);
  while (t < end) {
    const Tile tile = tile_of<W>(plan, t);
    const int64_t tiles = smaller(end - t, plan.tiles_x - tile.x / W::kOut);
    // Tiles overlap. With the usual padding of 1, the tiles above have read the first lines.
    constexpr int kNew = W::kOut * W::kStride;
    const int64_t top = tile.y * W::kStride - 1 + W::kTile - kNew, left = tile.x * W::kStride;
    for (int64_t y = top; y < smaller(top + kNew, conv.height); ++y) {
      const int64_t x = smaller(left, conv.width - 1), pixels = smaller(tiles * kNew + 1, conv.width - x);
      const int64_t at = ((tile.n * conv.height + y) * conv.width + x) * conv.channels;
      prefetcher.add(static_cast<const M*>(conv.sources[0].data) + at, pixels * conv.channels * int64_t{sizeof(M)});
    }
    t += tiles;
  }
  return prefetcher;
}

template <typename W, typename M, typename S>
inline void row_tiles_task(void* context, int64_t thread) {
  auto& job = *static_cast<WinogradJob<S>*>(context);
  const WinogradPlan<S>& plan = job.plan;
  for (;;) {
    const int64_t i = job.tasks.take(thread);
    if (i < 0) return;
    const int64_t part = i / plan.groups;
    Prefetcher prefetcher;
    if (job.tasks.is_own(thread, (part + 1) * plan.groups)) {  // the part that this thread probably takes next
      prefetcher = prefetch_tiles<W, M>(job.conv, plan, part + 1);
    }
    prefetcher.add_share(job.conv.next, job.conv.next_bytes, i, plan.parts * plan.groups);
    prefetcher.cold = job.tasks.is_first(thread, i) || plan.columns_bytes() > kKept;
    winograd_row_tile<W, M>(job.conv, plan, job.scratch + thread * plan.each(), part, i % plan.groups, prefetcher);
  }
}

// ---- By point: one part of the tiles after the other, each in three steps

template <typename W, typename M, typename S>
inline void point_rows_task(void* context, int64_t i) {
  auto& job = *static_cast<WinogradJob<S>*>(context);
  const WinogradPlan<S>& plan = job.plan;
  const int64_t shares = plan.shares(job.threads), share = i % shares;
  rows_of_tiles<W, M>(job.conv, plan, TileBlocks<S>(job.tiles), job.first, i / shares, share * plan.blocks / shares,
                      (share + 1) * plan.blocks / shares, reinterpret_cast<S*>(job.scratch));
}

template <typename W, typename S>
inline void point_products_task(void* context, int64_t thread) {
  auto& job = *static_cast<WinogradJob<S>*>(context);
  const WinogradPlan<S>& plan = job.plan;
  const TileBlocks<S> row_blocks(job.tiles);
  const int64_t inner = plan.blocks * kBlock<S>;
  const S* rows = reinterpret_cast<const S*>(job.scratch);
  float* sums = reinterpret_cast<float*>(job.scratch + plan.rows_bytes());
  for (;;) {
    const int64_t i = job.tasks.take(thread);
    if (i < 0) return;
    const int64_t f = i / plan.groups, group = i % plan.groups;
    Prefetcher prefetcher;
    if (job.first == 0) prefetcher.add_share(job.conv.next, job.conv.next_bytes, i, plan.points * plan.groups);
    const int64_t last = (group + 1) * plan.panels / plan.groups;
    for (int64_t panel = group * plan.panels / plan.groups; panel < last; ++panel) {
      const S* columns = static_cast<const S*>(job.conv.packed) + (panel * plan.points + f) * inner * kPanel;
      multiply_row_tile(row_blocks, {0, row_blocks.count}, rows + f * plan.row_step, columns, plan.blocks,
                        sums + f * plan.sum_step + panel * job.tiles * kPanel, false, prefetcher);
    }
  }
}

template <typename W, typename M, typename S>
inline void point_pixels_task(void* context, int64_t tile) {
  auto& job = *static_cast<WinogradJob<S>*>(context);
  const WinogradPlan<S>& plan = job.plan;
  const Epilogue<M> epilogue(job.conv);
  const float* sums = reinterpret_cast<const float*>(job.scratch + plan.rows_bytes());
  for (int64_t panel = 0; panel < plan.panels; ++panel) {
    transform_out<W>(job.conv, epilogue, tile_of<W>(plan, job.first + tile), sums + (panel * job.tiles + tile) * kPanel,
                     plan.sum_step, panel * kPanel);
  }
  if (epilogue.streams) stream_end();
}

template <typename W, typename M, typename S>
inline void winograd_by_point(WinogradJob<S>& job, const Parallel& parallel) {
  for (int64_t i = 0; i < job.plan.parts; ++i) {
    job.first = job.plan.begin(i);
    job.tiles = job.plan.begin(i + 1) - job.first;
    job.tasks = Tasks(job.plan.points * job.plan.groups, parallel.threads);
    const int64_t shares = job.plan.shares(parallel.threads);
    parallel.run(TileBlocks<S>(job.tiles).count * shares, point_rows_task<W, M, S>, &job);
    parallel.run(parallel.threads, point_products_task<W, S>, &job);
    parallel.run(job.tiles, point_pixels_task<W, M, S>, &job);
  }
}

// ---- Weights: [panel][Winograd point][column_place]

template <typename S>
struct PackWinograd {
  const Weight& weight;
  S* packed;
  int64_t inner;
};

template <typename W, typename S>
inline void pack_winograd_panel(void* context, int64_t panel) {
  constexpr int T = W::kTile;
  const auto& job = *static_cast<PackWinograd<S>*>(context);
  const int64_t step = job.inner * kPanel;
  S* begin = job.packed + panel * T * T * step;
  for (int64_t j = 0; j < kPanel; ++j) {
    const int64_t o = panel * kPanel + j;
    for (int64_t c = 0; c < job.inner; ++c) {
      S* to = begin + column_place<S>(c, j);
      const bool exists = o < job.weight.out_channels && c < job.weight.channels;
      double columns[T][3], taps[3], line[T];
      for (int x = 0; exists && x < 3; ++x) {
        const float* from = job.weight.data + (o * job.weight.channels + c) * 9 + x;
        for (int y = 0; y < 3; ++y) taps[y] = from[3 * y];
        W::taps(taps, line);
        for (int y = 0; y < T; ++y) columns[y][x] = line[y];
      }
      for (int y = 0; y < T; ++y) {
        if (exists) W::taps(columns[y], line);
        for (int x = 0; x < T; ++x) put_weight(to + (y * T + x) * step, exists ? static_cast<float>(line[x]) : 0.0f);
      }
    }
  }
}

template <typename W, typename S>
inline int64_t winograd_packed_size(const Weight& weight) {
  return W::kTile * W::kTile * ceil_div(weight.channels, kBlock<S>) * kLine * ceil_div(weight.out_channels, kPanel) *
         kPanel;
}

template <typename W, typename S>
inline void pack_winograd(const Weight& weight, void* packed, const Parallel& parallel) {
  PackWinograd<S> job{weight, static_cast<S*>(packed), ceil_div(weight.channels, kBlock<S>) * kBlock<S>};
  parallel.run(ceil_div(weight.out_channels, kPanel), pack_winograd_panel<W, S>, &job);
}

// ---- The whole convolution

template <typename W, typename S>
inline int64_t winograd_scratch(const Conv& conv, int threads) {
  const WinogradPlan<S> plan(W{}, conv, threads);
  return plan.each() * (plan.by_point ? 1 : threads);
}

template <typename W, typename M, typename S>
inline void winograd_conv(const Conv& conv, void* scratch, const Parallel& parallel) {
  const WinogradPlan<S> plan(W{}, conv, parallel.threads);
  WinogradJob<S> job{conv, plan, static_cast<char*>(scratch), parallel.threads,
                     {plan.parts * plan.groups, parallel.threads}, 0, 0};
  if (plan.by_point) {
    winograd_by_point<W, M>(job, parallel);
  } else {
    parallel.run(parallel.threads, row_tiles_task<W, M, S>, &job);
  }
}

}  // namespace VOVNET_ISA
