// Averages the bins of one RoI. roi_align.cpp computes the pixels and weights.
//
// Infinity and NaN propagate as in torchvision, with two exceptions. If samples take an infinite pixel with weight 0
// and with a positive weight, the result is infinity, not NaN. Samples outside the map read no pixel, not even the
// first.
#pragma once

#include "dtype.h"
#include "roi_pool.h"

namespace VOVNET_ISA {

// One bin. Each pixel is read once, even if several samples use it.
template <typename T>
struct Average {
  const T* map;
  const vovnet::cpu::Tap *rows, *rows_end, *columns, *columns_end;
  T* out;
  bool streams;

  template <int V>
  VOVNET_INLINE void run(int64_t c) const {
    Vec sums[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sums[v] = Vec{};
    for (const auto* row = rows; row != rows_end; ++row) {
      const T* line = map + row->offset + c;
      for (const auto* column = columns; column != columns_end; ++column) {
        const Vec weight = all(row->weight * column->weight);
        const T* pixel = line + column->offset;
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) sums[v] += weight * load(pixel + v * kLanes);
      }
    }
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      if (streams) {
        stream(out + c + v * kLanes, sums[v]);
      } else {
        store(out + c + v * kLanes, sums[v]);
      }
    }
  }

  VOVNET_INLINE void rest(int n) const {
    Vec sum{};
    for (const auto* row = rows; row != rows_end; ++row) {
      for (const auto* column = columns; column != columns_end; ++column) {
        sum += all(row->weight * column->weight) * load_some(map + row->offset + column->offset, n);
      }
    }
    store_some(out, sum, n);
  }
};

template <typename T>
void average(const vovnet::cpu::Patch& patch) {
  const vovnet::cpu::Bins &rows = patch.rows, &columns = patch.columns;
  T* out = static_cast<T*>(patch.out);
  for (int64_t y = 0; y < rows.count; ++y) {
    for (int64_t x = 0; x < columns.count; ++x, out += patch.channels) {
      for_channels(patch.channels, Average<T>{static_cast<const T*>(patch.map), rows.taps + rows.begin[y],
                                              rows.taps + rows.begin[y + 1], columns.taps + columns.begin[x],
                                              columns.taps + columns.begin[x + 1], out, patch.streams});
    }
  }
  if (patch.streams) stream_end();
}

}  // namespace VOVNET_ISA
