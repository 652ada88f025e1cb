// Row tiles: how a product's rows are split into tiles, and how a tile's sums are stored.
#pragma once

#include "pack_a.h"

namespace VOVNET_ISA {

template <typename S>
struct IgemmPlan {
  int64_t rows;
  int64_t row_tiles;
  int64_t groups;    // groups of panels, each a task: more than one if there are fewer row tiles than threads
  int64_t row_tile;  // rows of the largest row tile
  int64_t blocks;    // blocks of the inner dimension
  int64_t range;     // blocks that are packed at a time
  int64_t panels;

  IgemmPlan(const Conv& conv, int threads) {
    rows = conv.batch * conv.out_height * conv.out_width;
    blocks = inner_blocks<S>(conv.channels, conv.kernel);
    panels = panels_of(conv.out_channels);
    // Packed rows and sums of a row tile share the second-level cache with the columns that are read. If there are many
    // columns, row tiles are longer, because each reads all columns.
    constexpr int64_t kMost = kRows<AccumulationChain::kChunk>;
    const bool short_row_tiles = columns_bytes() <= (6 << 20) && !is_image(conv.channels);
    const int64_t wanted = (short_row_tiles ? 4 : 12) * kMost;
    row_tiles = larger(1, ceil_div(rows, wanted));
    if (row_tiles > 1 || rows >= 2 * kMost * threads) row_tiles = ceil_div(row_tiles, threads) * threads;
    row_tiles = larger(1, smaller(row_tiles, rows));
    row_tile = ceil_div(rows, row_tiles);
    groups = row_tiles >= threads ? 1 : smaller(panels, ceil_div(threads, row_tiles));
    range = blocks;
    if (!is_image(conv.channels)) {
      // Whole chunks, so that the order of summation does not depend on how much is packed at a time.
      range = smaller(blocks, larger(1, (512 << 10) / (row_tile * kLine) / kChunk) * kChunk);
    }
  }
  int64_t begin(int64_t i) const { return i * rows / row_tiles; }
  int64_t tasks() const { return row_tiles * groups; }
  int64_t columns_bytes() const { return panels * kPanel * blocks * kLine; }

  // Bytes of scratch: a table for all threads, then packed rows and sums for each thread.
  int64_t table_bytes() const { return blocks * larger(sizeof(Inner<float>), kBlock<S> * sizeof(int64_t)) + kLine; }
  int64_t packed_bytes() const { return row_tile * range * kLine; }
  int64_t each() const {
    const int64_t bytes = packed_bytes() + row_tile * panels * kPanel * int64_t{sizeof(float)};
    // An odd number of lines, so that the threads' scratch does not fall on the same sets of the caches.
    return (ceil_div(bytes, kLine) | 1) * kLine;
  }
};

// Stores panels [begin, end) of a row tile whose sums lie panel by panel.
template <typename M>
VOVNET_INLINE void store_row_tile(const Conv& conv, int64_t begin, int64_t end, int64_t m, int64_t rows,
                                  const float* sums) {
  const Epilogue<M> epilogue(conv);
  Pixel pixel = pixel_of(conv, m);
  for (int64_t r = 0; r < rows; ++r, pixel.advance(conv)) {
    M* out = static_cast<M*>(conv.out) + (m + r) * conv.out_channels;
    const M* residual = epilogue.residual_of(conv, m + r, pixel.n, pixel.line, pixel.column);
    for (int64_t panel = begin; panel < end; ++panel) {
      const float* from = sums + (panel * rows + r) * kPanel;
      epilogue.put(load(from), load(from + kLanes), panel * kPanel, out, residual);
    }
  }
  if (epilogue.streams) stream_end();
}

}  // namespace VOVNET_ISA
