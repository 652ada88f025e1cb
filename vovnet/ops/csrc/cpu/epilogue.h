// The epilogue: adds bias and residual to the sums, applies the ReLU, and stores the map.
#pragma once

#include "dtype.h"
#include "gemm.h"
#include "kernels.h"
#include "vec.h"

namespace VOVNET_ISA {

using vovnet::cpu::Conv;

// Larger maps are stored past the caches. Fetching lines that are then overwritten costs more than reading the map
// from memory later.
constexpr int64_t kStreamBytes = int64_t{1} << 20;

VOVNET_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
VOVNET_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
VOVNET_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename M>
struct Epilogue {
  const float* bias;
  int64_t channels;
  bool relu, streams;

  explicit Epilogue(const Conv& conv)
      : bias(conv.bias), channels(conv.out_channels), relu(conv.relu), streams(streams_of(conv)) {}

  // Returns the residual of output pixel m = (n, y, x), or null.
  VOVNET_INLINE const M* residual_of(const Conv& conv, int64_t m, int64_t n, int64_t y, int64_t x) const {
    if (!conv.residual) return nullptr;
    const M* residual = static_cast<const M*>(conv.residual);
    if (conv.residual_height == conv.out_height && conv.residual_width == conv.out_width)
      return residual + m * channels;
    // The pixel is found as in torch's interpolate(mode="nearest"), in float32.
    const float down = static_cast<float>(conv.residual_height) / static_cast<float>(conv.out_height);
    const float right = static_cast<float>(conv.residual_width) / static_cast<float>(conv.out_width);
    const int64_t from_y = smaller(static_cast<int64_t>(static_cast<float>(y) * down), conv.residual_height - 1);
    const int64_t from_x = smaller(static_cast<int64_t>(static_cast<float>(x) * right), conv.residual_width - 1);
    return residual + ((n * conv.residual_height + from_y) * conv.residual_width + from_x) * channels;
  }

  // Stores two vectors of sums, from `channel` on. `out` and `residual` point to channel 0 of the pixel.
  VOVNET_INLINE void put(Vec left, Vec right, int64_t channel, M* out, const M* residual) const {
    if (channel + kPanel > channels) {
      put_some(left, channel, out, residual);
      put_some(right, channel + kLanes, out, residual);
      return;
    }
    if (bias) {
      left += load(bias + channel);
      right += load(bias + channel + kLanes);
    }
    if (relu) {
      left = VOVNET_ISA::relu(left);
      right = VOVNET_ISA::relu(right);
    }
    if (residual) {
      left += load(residual + channel);
      right += load(residual + channel + kLanes);
    }
    if (streams) {
      stream(out + channel, left, right);
    } else {
      store(out + channel, left);
      store(out + channel + kLanes, right);
    }
  }

 private:
  static bool streams_of(const Conv& conv) {
    const int64_t pixel = conv.out_channels * int64_t{sizeof(M)};
    const bool aligned = reinterpret_cast<uintptr_t>(conv.out) % kLine == 0 && pixel % kLine == 0;
    return aligned && conv.batch * conv.out_height * conv.out_width * pixel >= kStreamBytes;
  }

  // Stores the last channels, which may be fewer than a vector has lanes.
  void put_some(Vec sum, int64_t channel, M* out, const M* residual) const {
    const int n = static_cast<int>(smaller(kLanes, channels - channel));
    if (n <= 0) return;
    if (bias) sum += load_some(bias + channel, n);
    if (relu) sum = VOVNET_ISA::relu(sum);
    if (residual) sum += load_some(residual + channel, n);
    store_some(out + channel, sum, n);
  }
};

}  // namespace VOVNET_ISA
