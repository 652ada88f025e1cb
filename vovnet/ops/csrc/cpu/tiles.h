// Tiles of a Winograd convolution: their order, packing them as rows at every Winograd point, and transforming sums
// back to pixels.
#pragma once

#include "pack_b.h"
#include "transforms.h"

namespace VOVNET_ISA {

// The output transform multiplies the sums' rounding errors, so chains are short. With bfloat16 products the rounding
// of the numbers themselves dominates, so chains may be long.
template <typename S>
constexpr AccumulationChain kWinogradChain =
    sizeof(S) == sizeof(float) ? AccumulationChain::kBlock : AccumulationChain::kChunk;
template <typename S>
using TileBlocks = RowBlocks<kWinogradChain<S>>;

template <typename S>
struct WinogradPlan {
  int64_t tiles_y, tiles_x, tiles;
  int64_t blocks, panels;
  int64_t parts;               // parts of the tiles; by point, one after the other
  int64_t part;                // tiles of the largest part
  int64_t row_step, sum_step;  // distance from one Winograd point to the next, in numbers
  bool by_point;
  int64_t groups;  // by row tile, shares of a part's products; by point, groups of panels; each is a task
  int points;

  template <typename W>
  WinogradPlan(W, const Conv& conv, int threads) {
    points = W::kTile * W::kTile;
    tiles_y = ceil_div(conv.out_height, W::kOut);
    tiles_x = ceil_div(conv.out_width, W::kOut);
    tiles = conv.batch * tiles_y * tiles_x;
    blocks = ceil_div(conv.channels, kBlock<S>);
    panels = ceil_div(conv.out_channels, kPanel);
    // By row tile, the rows and one panel's sums share the second-level cache with the weights that are read and with
    // the tiles of the next part. A part is not too small, so that each weight is used for several rows.
    constexpr int64_t kMost = kRows<kWinogradChain<S>>, kFewest = 2 * kRows<AccumulationChain::kBlock>;
    const int64_t rows_bytes = points * blocks * kLine, sums_bytes = 4 * points * panels * kPanel;
    const int64_t wanted = smaller(larger((400 << 10) / (rows_bytes * kMost) * kMost, kFewest), 8 * kFewest);
    // With fewer parts per thread, reading all weights for each part does not pay.
    const int64_t few = columns_bytes() > (4 << 20) ? 2 : 1;
    by_point = rows_bytes * wanted > (800 << 10) || tiles < few * kFewest * threads;
    // A few tiles whose rows fit twice into the second-level cache are transformed by every thread, which multiplies
    // them by a share of the panels. With many threads, transforming would take too large a part of the time.
    const bool shared = by_point && tiles * (rows_bytes + 4 * points * kPanel) <= (512 << 10);
    groups = 1;
    if (shared && threads > 1 && panels >= 2 * threads) {
      by_point = false;
      parts = 1;
      groups = threads;
    } else if (by_point) {
      // Rows and sums of all Winograd points stay in the third-level cache.
      const int64_t most = larger(4 * kFewest, (12 << 20) / (rows_bytes + sums_bytes));
      parts = ceil_div(tiles, most);
      groups = smaller(panels, ceil_div(4 * threads, points));
    } else {
      parts = ceil_div(tiles, wanted);
      if (parts < 8 * threads) parts = ceil_div(parts, threads) * threads;
    }
    part = ceil_div(tiles, parts);
    // An odd number of lines between Winograd points, so that a tile's vectors do not fall on the same sets of the
    // caches.
    row_step = (part * blocks | 1) * kBlock<S>;
    sum_step = (ceil_div((by_point ? panels : 1) * part * kPanel, kSteps) | 1) * kSteps;
  }
  int64_t begin(int64_t i) const { return i * tiles / parts; }
  // By point, the number of parts of the channels in which a row block is transformed: there may be few row blocks.
  int64_t shares(int threads) const { return smaller(blocks, 2 * threads); }
  // Bytes of scratch of a part: its rows, then its sums.
  int64_t rows_bytes() const { return points * row_step * int64_t{sizeof(S)}; }
  int64_t columns_bytes() const { return points * blocks * panels * kPanel * kLine; }
  int64_t each() const { return rows_bytes() + points * sum_step * int64_t{sizeof(float)}; }
};

// W is a Winograd<>, M the type of a map's numbers, S the type of packed numbers.

struct Tile {
  int64_t n, y, x;  // the output's pixel at the tile's corner
};

template <typename W, typename S>
VOVNET_INLINE Tile tile_of(const WinogradPlan<S>& plan, int64_t t) {
  const int64_t x = t % plan.tiles_x, line = t / plan.tiles_x;
  return {line / plan.tiles_y, line % plan.tiles_y * W::kOut, x * W::kOut};
}

// Transforms a line of channels of a tile to every Winograd point. `from` is the tile's corner, `down` and `right` are
// its strides; point p goes to to + p * step.
template <typename W, typename M, typename S>
VOVNET_INLINE void transform_in(const M* from, int64_t down, int64_t right, S* to, int64_t step) {
  for (int v = 0; v < kBlock<S>; v += kLanes) W::tile(from + v, down, right, to + v, step);
}

// The same for a tile that crosses the border or channels that do not fill a line; what is missing is 0.
template <typename W, typename M, typename S>
inline void transform_border(const Conv& conv, const Tile& tile, int64_t channel, S* to, int64_t step) {
  constexpr int T = W::kTile, kWide = kBlock<S>;
  typedef M Piece __attribute__((vector_size(kLanes * sizeof(M)), aligned(sizeof(M)), may_alias));
  M patch[T * T * kWide] __attribute__((aligned(kLine)));
  const int count = static_cast<int>(smaller(kWide, conv.channels - channel));
  for (int y = 0; y < T; ++y) {
    for (int x = 0; x < T; ++x) {
      M* at = patch + (y * T + x) * kWide;
      const int64_t row = tile.y * W::kStride - conv.padding[0] + y;
      const int64_t column = tile.x * W::kStride - conv.padding[1] + x;
      const bool inside = row >= 0 && row < conv.height && column >= 0 && column < conv.width;
      const M* from = static_cast<const M*>(conv.sources[0].data);
      if (inside) from += ((tile.n * conv.height + row) * conv.width + column) * conv.channels + channel;
      for (int v = 0; v < kWide; v += kLanes) {
        const bool whole = inside && v + kLanes <= count;
        *reinterpret_cast<Piece*>(at + v) = whole ? *reinterpret_cast<const Piece*>(from + v) : Piece{};
      }
      for (int k = count / kLanes * kLanes; inside && k < count; ++k) at[k] = from[k];
    }
  }
  transform_in<W>(patch, int64_t{T} * kWide, kWide, to, step);
}

// Packs the tiles of one row block as rows of every Winograd point, for channel blocks [from, until). The part begins
// at tile `first`.
template <typename W, typename M, typename S>
inline void rows_of_tiles(const Conv& conv, const WinogradPlan<S>& plan, const TileBlocks<S>& row_blocks, int64_t first,
                          int64_t block, int64_t from, int64_t until, S* rows) {
  constexpr int T = W::kTile;
  const int64_t down = conv.width * conv.channels, right = conv.channels;
  const int64_t begin = row_blocks.begin(block), count = row_blocks.rows(block);
  for (int64_t r = 0; r < count; ++r) {
    const Tile tile = tile_of<W>(plan, first + begin + r);
    const int64_t y = tile.y * W::kStride - conv.padding[0], x = tile.x * W::kStride - conv.padding[1];
    const bool inside = y >= 0 && x >= 0 && y + T <= conv.height && x + T <= conv.width;
    const M* corner = static_cast<const M*>(conv.sources[0].data);
    if (inside) corner += ((tile.n * conv.height + y) * conv.width + x) * conv.channels;
    S* to = rows + (begin * plan.blocks + from * count + r) * kBlock<S>;
    for (int64_t b = from; b < until; ++b, to += count * kBlock<S>) {
      if (inside && (b + 1) * kBlock<S> <= conv.channels) {
        const M* pixels = corner + b * kBlock<S>;
        for (int i = 0; i < T; ++i) {  // prefetch the next tile's new pixels
          for (int j = T; j < T + W::kOut * W::kStride; ++j) __builtin_prefetch(pixels + i * down + j * right);
        }
        transform_in<W>(pixels, down, right, to, plan.row_step);
      } else {
        transform_border<W, M>(conv, tile, b * kBlock<S>, to, plan.row_step);
      }
    }
  }
}

// Transforms the sums of a panel at every Winograd point to the pixels of one tile.
template <typename W, typename M>
VOVNET_INLINE void transform_out(const Conv& conv, const Epilogue<M>& epilogue, const Tile& tile, const float* sums,
                                 int64_t step, int64_t channel) {
  constexpr int T = W::kTile;
  const int64_t below = conv.out_height - tile.y, beside = conv.out_width - tile.x;
  const int64_t corner = (tile.n * conv.out_height + tile.y) * conv.out_width + tile.x;
  Vec pixels[2][W::kOut][W::kOut];
  for (int v = 0; v < 2; ++v) {
    Vec columns[W::kOut][T];
    for (int x = 0; x < T; ++x) {
      Vec m[T], t[W::kOut];
      for (int y = 0; y < T; ++y) {
        m[y] = load(sums + (y * T + x) * step + v * kLanes);
        __builtin_prefetch(sums + (y * T + x) * step + v * kLanes + kPanel);  // the next tile's
      }
      W::output(m, t);
      for (int y = 0; y < W::kOut; ++y) columns[y][x] = t[y];
    }
    for (int y = 0; y < W::kOut; ++y) W::output(columns[y], pixels[v][y]);
  }
  for (int y = 0; y < W::kOut && y < below; ++y) {
    M* line = static_cast<M*>(conv.out) + (corner + y * conv.out_width) * conv.out_channels;
    for (int x = 0; x < W::kOut && x < beside; ++x) {
      epilogue.put(pixels[0][y][x], pixels[1][y][x], channel, line + x * conv.out_channels,
                 static_cast<const M*>(nullptr));
    }
  }
}

// Prefetches a tile's pixels before they are written.
template <typename W, typename M>
VOVNET_INLINE void ask_for_pixels(const Conv& conv, const Tile& tile, int64_t channel) {
  for (int64_t y = tile.y; y < smaller(tile.y + W::kOut, conv.out_height); ++y) {
    for (int64_t x = tile.x; x < smaller(tile.x + W::kOut, conv.out_width); ++x) {
      const int64_t pixel = (tile.n * conv.out_height + y) * conv.out_width + x;
      const M* at = static_cast<const M*>(conv.out) + pixel * conv.out_channels + channel;
      for (int i = 0; i < kPanel; i += kLine / static_cast<int>(sizeof(M))) __builtin_prefetch(at + i, 1);
    }
  }
}

}  // namespace VOVNET_ISA
