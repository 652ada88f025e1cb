// The order of the inner dimension (K) of a convolution as a product, and packing the weight (matrix B) in that order.
//
// K runs over the kernel's taps and, within a tap, over the channels; each tap is padded to whole blocks. Images have
// few channels, so K runs over channels and, within a channel, over taps, and is padded once.
#pragma once

#include "epilogue.h"
#include "gemm.h"
#include "kernels.h"

namespace VOVNET_ISA {

using vovnet::cpu::kImageChannels;
using vovnet::cpu::Method;
using vovnet::cpu::Parallel;
using vovnet::cpu::Source;
using vovnet::cpu::Weight;

VOVNET_INLINE bool is_image(int64_t channels) { return channels < kImageChannels; }

template <typename S>
VOVNET_INLINE int64_t inner_blocks(int64_t channels, const int64_t* kernel) {
  const int64_t taps = kernel[0] * kernel[1];
  return is_image(channels) ? ceil_div(taps * channels, kBlock<S>) : taps * ceil_div(channels, kBlock<S>);
}

// A block: channels of one tap. If they lie in one source, the channels of pixel p begin at base + p * stride.
template <typename M>
struct Inner {
  const M* base;  // null if the channels must be gathered: they lie in two sources or are fewer than a block
  int64_t stride;
  int64_t channel;  // the first channel, counted over all sources
  int32_t tap, count;
};

template <typename M, typename S>
VOVNET_INLINE void fill_inner(const Conv& conv, Inner<M>* inner) {
  const int64_t taps = conv.kernel[0] * conv.kernel[1];
  for (int64_t tap = 0; tap < taps; ++tap) {
    const Source* source = conv.sources;
    int64_t begin = 0;  // first channel of the source
    for (int64_t c = 0; c < conv.channels; c += kBlock<S>, ++inner) {
      while (c >= begin + source->channels) begin += source++->channels;
      const bool whole = c + kBlock<S> <= begin + source->channels;
      *inner = {whole ? static_cast<const M*>(source->data) + (c - begin) : nullptr, source->channels, c,
                static_cast<int32_t>(tap), static_cast<int32_t>(smaller(kBlock<S>, conv.channels - c))};
    }
  }
}

// Fills in the offsets of an image's elements under the taps, relative to the first tap's.
VOVNET_INLINE void fill_offsets(const Conv& conv, int64_t* offsets) {
  for (int64_t c = 0; c < conv.channels; ++c) {
    for (int64_t y = 0; y < conv.kernel[0]; ++y) {
      for (int64_t x = 0; x < conv.kernel[1]; ++x) {
        *offsets++ = y * conv.strides[2] + x * conv.strides[3] + c * conv.strides[1];
      }
    }
  }
}

// ---- Weights

VOVNET_INLINE int64_t panels_of(int64_t out_channels) { return ceil_div(out_channels, kPanel); }

// Returns the weight of output channel o at index k of the inner dimension; 0 in the padding.
template <typename S>
VOVNET_INLINE float weight_at(const Weight& weight, int64_t o, int64_t k) {
  const int64_t taps = weight.kernel[0] * weight.kernel[1];
  const int64_t row = ceil_div(weight.channels, kBlock<S>) * kBlock<S>;
  const bool image = is_image(weight.channels);
  const int64_t tap = image ? k % taps : k / row, c = image ? k / taps : k % row;
  if (o >= weight.out_channels || tap >= taps || c >= weight.channels) return 0.0f;
  return weight.data[(o * weight.channels + c) * taps + tap];
}

VOVNET_INLINE void put_weight(float* p, float x) { *p = x; }
VOVNET_INLINE void put_weight(uint16_t* p, float x) {
  uint16_t rounded[kLanes];
  store(rounded, all(x));
  *p = rounded[0];
}

// Returns the offset of column j at index k of the inner dimension, from the panel's beginning.
template <typename S>
VOVNET_INLINE int64_t column_place(int64_t k, int64_t j) {
  return (k / kPerStep<S> * kPanel + j) * kPerStep<S> + k % kPerStep<S>;
}

template <typename S>
struct PackB {
  const Weight& weight;
  S* packed;
  int64_t inner;
};

template <typename S>
inline void pack_b_panel(void* context, int64_t panel) {
  const auto& job = *static_cast<PackB<S>*>(context);
  S* to = job.packed + panel * job.inner * kPanel;
  for (int64_t j = 0; j < kPanel; ++j) {
    for (int64_t k = 0; k < job.inner; ++k) {
      put_weight(to + column_place<S>(k, j), weight_at<S>(job.weight, panel * kPanel + j, k));
    }
  }
}

}  // namespace VOVNET_ISA
