// Max-pool as PyTorch's: the result of a window with a NaN is NaN.
#pragma once

#include "dtype.h"
#include "roi_pool.h"

namespace VOVNET_ISA {

// One window, clipped to the map; `first` is its first pixel, which exists.
template <typename T>
struct Largest {
  const T* first;
  int64_t rows, columns, row_step, channels;
  T* out;

  template <int V>
  VOVNET_INLINE void run(int64_t c) const {
    Vec best[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) best[v] = load(first + c + v * kLanes);
    for (int64_t y = 0; y < rows; ++y) {
      const T* pixel = first + y * row_step + c;
      for (int64_t x = 0; x < columns; ++x, pixel += channels) {
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) best[v] = max_keeping_nan(load(pixel + v * kLanes), best[v]);
      }
    }
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) store(out + c + v * kLanes, best[v]);
  }

  VOVNET_INLINE void rest(int n) const {
    Vec best = load_some(first, n);
    for (int64_t y = 0; y < rows; ++y) {
      for (int64_t x = 0; x < columns; ++x) {
        best = max_keeping_nan(load_some(first + y * row_step + x * channels, n), best);
      }
    }
    store_some(out, best, n);
  }
};

template <typename T>
void max_rows(const vovnet::cpu::MaxPool& pool, int64_t begin, int64_t end) {
  const int64_t row_step = pool.width * pool.channels;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / pool.out_height, y = row % pool.out_height * pool.stride[0] - pool.padding[0];
    const int64_t top = y < 0 ? 0 : y, bottom = y + pool.kernel[0] < pool.height ? y + pool.kernel[0] : pool.height;
    const T* line = static_cast<const T*>(pool.x) + (image * pool.height + top) * row_step;
    T* out = static_cast<T*>(pool.out) + row * pool.out_width * pool.channels;
    for (int64_t i = 0; i < pool.out_width; ++i, out += pool.channels) {
      const int64_t x = i * pool.stride[1] - pool.padding[1];
      const int64_t left = x < 0 ? 0 : x, right = x + pool.kernel[1] < pool.width ? x + pool.kernel[1] : pool.width;
      for_channels(pool.channels, Largest<T>{line + left * pool.channels, bottom - top, right - left, row_step,
                                             pool.channels, out});
    }
  }
}

}  // namespace VOVNET_ISA
