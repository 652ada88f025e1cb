// Packing the input (matrix A): the rows of a convolution's product are what lies under the kernel at each output
// pixel.
#pragma once

#include "pack_b.h"

namespace VOVNET_ISA {

// An output pixel.
struct Pixel {
  int64_t n, y, x;       // y, x: the input's pixel under the first tap; it may lie outside the map
  int64_t line, column;  // y and x in the output
  bool exists;

  // Moves on to the next row's pixel.
  VOVNET_INLINE void advance(const Conv& conv) {
    x += conv.stride[1];
    if (++column < conv.out_width) return;
    column = 0, x = -conv.padding[1], y += conv.stride[0];
    if (++line < conv.out_height) return;
    line = 0, y = -conv.padding[0];
    exists = ++n < conv.batch;
  }
};

VOVNET_INLINE Pixel pixel_of(const Conv& conv, int64_t m) {
  const int64_t column = m % conv.out_width, lines = m / conv.out_width;
  const int64_t line = lines % conv.out_height, n = lines / conv.out_height;
  return {n,
          line * conv.stride[0] - conv.padding[0],
          column * conv.stride[1] - conv.padding[1],
          line,
          column,
          n < conv.batch};
}

// Returns the index of the input's pixel under a tap, or -1 outside the map.
VOVNET_INLINE int64_t under_tap(const Conv& conv, const Pixel& pixel, int64_t tap) {
  const int64_t y = pixel.y + tap / conv.kernel[1], x = pixel.x + tap % conv.kernel[1];
  if (!pixel.exists || y < 0 || y >= conv.height || x < 0 || x >= conv.width) return -1;
  return (pixel.n * conv.height + y) * conv.width + x;
}

// Packs a line of channels; this is a copy if maps and packed numbers have the same type.
VOVNET_INLINE void copy_line(const float* from, float* to) {
  for (int v = 0; v < kBlock<float>; v += kLanes) store(to + v, load(from + v));
}
VOVNET_INLINE void copy_line(const uint16_t* from, uint16_t* to) {
  copy_line(reinterpret_cast<const float*>(from), reinterpret_cast<float*>(to));
}
VOVNET_INLINE void copy_line(const uint16_t* from, float* to) {
  for (int v = 0; v < kBlock<float>; v += kLanes) store(to + v, load(from + v));
}

template <typename S>
VOVNET_INLINE void zero_line(S* to) {
  float* line = reinterpret_cast<float*>(to);
  for (int v = 0; v < kBlock<float>; v += kLanes) store(line + v, Vec{});
}

VOVNET_INLINE void put_number(float* to, float x) { *to = x; }
VOVNET_INLINE void put_number(uint16_t* to, uint16_t x) { *to = x; }
VOVNET_INLINE void put_number(float* to, uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  __builtin_memcpy(to, &bits, sizeof bits);
}

template <typename M, typename S>
inline void gather_line(const Conv& conv, const Inner<M>& inner, int64_t at, S* to) {
  const Source* source = conv.sources;
  int64_t begin = 0;
  zero_line(to);
  for (int i = 0; i < inner.count; ++i) {
    const int64_t c = inner.channel + i;
    while (c >= begin + source->channels) begin += source++->channels;
    put_number(to + i, static_cast<const M*>(source->data)[at * source->channels + (c - begin)]);
  }
}

// The pixels of a row block, from m on. Pixels from `end` on do not exist.
struct Pixels {
  Pixel pixel[kRows<AccumulationChain::kChunk>];
  int64_t at[kRows<AccumulationChain::kChunk>];  // index of the input's pixel under a tap, see look()
  int count;

  VOVNET_INLINE Pixels(const Conv& conv, int64_t m, int rows, int64_t end) : count(rows) {
    Pixel next = pixel_of(conv, m);
    for (int r = 0; r < rows; ++r, next.advance(conv)) {
      pixel[r] = next;
      pixel[r].exists = next.exists && m + r < end;
    }
  }
  VOVNET_INLINE void look(const Conv& conv, int64_t tap) {
    for (int r = 0; r < count; ++r) at[r] = under_tap(conv, pixel[r], tap);
  }
};

constexpr int kLineDistance = 3;  // lines of a pixel's channels that are prefetched while earlier ones are packed

// Packs blocks [begin, end) of a row block.
template <typename M, typename S>
inline void pack_rows(const Conv& conv, const Inner<M>* inner, int64_t begin, int64_t end, Pixels& pixels, S* to) {
  int32_t tap = -1;
  for (int64_t b = begin; b < end; ++b) {
    const Inner<M>& block = inner[b];
    if (block.tap != tap) pixels.look(conv, tap = block.tap);
    for (int r = 0; r < pixels.count; ++r, to += kBlock<S>) {
      const int64_t at = pixels.at[r];
      if (at < 0) {
        zero_line(to);
      } else if (block.base) {
        const M* from = block.base + at * block.stride;
        __builtin_prefetch(from + kLineDistance * kLine / sizeof(M));
        copy_line(from, to);
      } else {
        gather_line(conv, block, at, to);
      }
    }
  }
}

// Packs a row of an image: the taps of all channels. `offsets` are relative to the first tap's element.
template <typename S>
inline void pack_image_row(const Conv& conv, const int64_t* offsets, const Pixel& pixel, int64_t blocks, S* to,
                             int64_t step) {
  const int64_t* strides = conv.strides;
  const int64_t taps = conv.kernel[0] * conv.kernel[1], count = taps * conv.channels;
  const int64_t corner = pixel.n * strides[0] + pixel.y * strides[2] + pixel.x * strides[3];
  const float* data = static_cast<const float*>(conv.sources[0].data);
  const bool inside = pixel.exists && pixel.y >= 0 && pixel.y + conv.kernel[0] <= conv.height && pixel.x >= 0 &&
                      pixel.x + conv.kernel[1] <= conv.width;
  float line[kBlock<S>] __attribute__((aligned(kLine)));
  for (int64_t b = 0; b < blocks; ++b, to += step) {
    const int64_t first = b * kBlock<S>, here = smaller(kBlock<S>, count - first);
    if (inside && here == kBlock<S>) {
#pragma GCC unroll 32
      for (int k = 0; k < kBlock<S>; ++k) line[k] = data[corner + offsets[first + k]];
    } else {
      for (int64_t k = 0; k < kBlock<S>; ++k) {
        const bool exists = k < here && (inside || under_tap(conv, pixel, (first + k) % taps) >= 0);
        line[k] = exists ? data[corner + offsets[first + k]] : 0.0f;
      }
    }
    for (int v = 0; v < kBlock<S>; v += kLanes) store(to + v, load(line + v));
  }
}

#if defined(__AVX512F__)
// Loads a row of an image in pieces of neighbouring taps: each piece is a masked vector at an offset from the first
// tap's element. For images with dense lines, which is usual, and few taps.
struct Pieces {
  static constexpr int kVectors = 4;
  int64_t offset[kVectors * (kLanes + 1)];
  __mmask16 mask[kVectors * (kLanes + 1)];
  int end[kVectors] = {};  // end of each vector's pieces

  explicit Pieces(const Conv& conv) {
    int count = 0;
    int64_t k = 0;  // number of elements so far
    for (int64_t line = 0; line < conv.channels * conv.kernel[0]; ++line) {
      const int64_t from = line / conv.kernel[0] * conv.strides[1] + line % conv.kernel[0] * conv.strides[2];
      for (int64_t x = 0; x < conv.kernel[1];) {
        const int64_t lane = k % kLanes, here = smaller(conv.kernel[1] - x, kLanes - lane);
        offset[count] = from + x - lane;
        mask[count] = static_cast<__mmask16>(((1u << here) - 1) << lane);
        end[k / kLanes] = ++count;
        x += here, k += here;
      }
    }
  }
  static bool serve(const Conv& conv) {
    return conv.strides[3] == 1 && conv.channels * conv.kernel[0] * conv.kernel[1] <= kVectors * kLanes;
  }
  VOVNET_INLINE Vec collect(const float* corner, int vector) const {
    __m512 row = _mm512_setzero_ps();
    for (int i = vector ? end[vector - 1] : 0; i < end[vector]; ++i) {
      row = _mm512_mask_loadu_ps(row, mask[i], corner + offset[i]);
    }
    return reinterpret_cast<Vec>(row);
  }
};
#endif

// Packs the rows of an image's pixels.
template <typename S>
inline void pack_image_rows(const Conv& conv, const int64_t* offsets, const Pixels& pixels, int64_t blocks, S* to) {
  const int64_t step = pixels.count * kBlock<S>;
#if defined(__AVX512F__)
  if (Pieces::serve(conv)) {
    const Pieces pieces(conv);
    for (int r = 0; r < pixels.count; ++r, to += kBlock<S>) {
      const Pixel& pixel = pixels.pixel[r];
      if (!pixel.exists || pixel.y < 0 || pixel.y + conv.kernel[0] > conv.height || pixel.x < 0 ||
          pixel.x + conv.kernel[1] > conv.width) {
        pack_image_row(conv, offsets, pixel, blocks, to, step);
        continue;
      }
      const float* corner = static_cast<const float*>(conv.sources[0].data) + pixel.n * conv.strides[0] +
                            pixel.y * conv.strides[2] + pixel.x;
      for (int64_t k = 0; k < blocks * kBlock<S>; k += kLanes) {
        store(to + k / kBlock<S> * step + k % kBlock<S>, pieces.collect(corner, static_cast<int>(k / kLanes)));
      }
    }
    return;
  }
#endif
  for (int r = 0; r < pixels.count; ++r) {
    pack_image_row(conv, offsets, pixels.pixel[r], blocks, to + r * kBlock<S>, step);
  }
}

// Returns a prefetcher for the lines of the sources that rows [m, end) read. Images are prefetched only if their lines
// are dense.
template <typename M>
VOVNET_INLINE Prefetcher prefetch_rows(const Conv& conv, int64_t m, int64_t end) {
  Prefetcher prefetcher;
  if (is_image(conv.channels) && conv.strides[3] != 1) return prefetcher;
  while (m < end) {
    const Pixel pixel = pixel_of(conv, m);
    const int64_t pixels = smaller(end - m, conv.out_width - pixel.column);
    const int64_t left = larger(pixel.x, 0);
    const int64_t right = smaller(pixel.x + (pixels - 1) * conv.stride[1] + conv.kernel[1], conv.width);
    for (int64_t y = larger(pixel.y, 0); y < smaller(pixel.y + conv.kernel[0], conv.height); ++y) {
      if (is_image(conv.channels)) {
        const float* line = static_cast<const float*>(conv.sources[0].data) + pixel.n * conv.strides[0] +
                            y * conv.strides[2] + left;
        for (int64_t c = 0; c < conv.channels; ++c) {
          prefetcher.add(line + c * conv.strides[1], (right - left) * int64_t{sizeof(float)});
        }
        continue;
      }
      const int64_t at = (pixel.n * conv.height + y) * conv.width + left;
      for (int s = 0; s < conv.count; ++s) {
        const int64_t channels = conv.sources[s].channels;
        prefetcher.add(static_cast<const M*>(conv.sources[s].data) + at * channels,
                  (right - left) * channels * int64_t{sizeof(M)});
      }
    }
    m += pixels;
  }
  return prefetcher;
}

}  // namespace VOVNET_ISA
