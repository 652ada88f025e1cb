// The arguments of the kernels: plain structs without Torch, shared by all instruction sets and torch_ops.cpp.
//
// Maps are channels-last: pixel (n, y, x) of a map with C channels begins at ((n * height + y) * width + x) * C.
#pragma once

#include <cstddef>
#include <cstdint>

#include "roi_pool.h"

namespace vovnet::cpu {

// The threads that kernels use: run(…) calls task(context, i) for every i in [0, tasks), on up to `threads` threads.
struct Parallel {
  int threads;
  void (*run)(int64_t tasks, void (*task)(void* context, int64_t i), void* context);
};

enum class Method : int {
  kDirect = 0,
  kWinograd2 = 1,        // F(2x2, 3x3)
  kWinograd4 = 2,        // F(4x4, 3x3)
  kWinogradStrided = 3,  // F(3x3, 3x3) of stride 2
};

constexpr int kMaxSources = 16;
constexpr int kImageChannels = 16;  // a map of fewer channels is read like an image: in any layout, in float32

struct Source {
  const void* data;
  int64_t channels;
};

// A convolution of the concatenation of `sources`: out = relu(conv + bias) + residual. All maps have one DType, but an
// image is always float32.
struct Conv {
  Source sources[kMaxSources];
  int count;                     // number of sources
  int64_t batch, height, width;  // of every source
  int64_t channels;              // of all sources together
  int64_t strides[4];            // of the first source for n, c, y, x, in elements; used for images only
  int64_t out_channels, out_height, out_width;
  int64_t kernel[2], stride[2], padding[2];  // in y and x
  const void* packed;                        // the weight as pack() packed it
  const void* next;  // memory that is read after this convolution and should be prefetched, or null
  int64_t next_bytes;
  const float* bias;     // (out_channels), or null for 0
  const void* residual;  // null for none; (batch, residual_height, residual_width, out_channels)
  int64_t residual_height, residual_width;
  void* out;
  bool relu;
  Method method;
};

// A weight (out_channels, channels, kernel[0], kernel[1]), float32, contiguous.
struct Weight {
  const float* data;
  int64_t out_channels, channels, kernel[2];
  Method method;
};

// The types of maps and of the numbers that are multiplied. kBFloat16Maps has bfloat16 maps and multiplies float32.
enum class ComputeType : int { kFloat32 = 0, kBFloat16 = 1, kBFloat16Maps = 2 };

// The convolutions of one ComputeType.
struct ConvKernels {
  int64_t (*packed_size)(const Weight&);  // in bytes
  void (*pack)(const Weight&, void* packed, const Parallel&);
  int64_t (*scratch_size)(const Conv&, int threads);  // in bytes
  void (*conv)(const Conv&, void* scratch, const Parallel&);
};

struct Kernels {
  const char* name;
  ConvKernels convs[3];      // by ComputeType
  RoiPoolKernels roi_pool[2];  // by DType
};

}  // namespace vovnet::cpu

// Defined by the isa_*.cpp of each instruction set that is compiled.
extern const vovnet::cpu::Kernels vovnet_cpu_kernels_plain;
#if !defined(VOVNET_PLAIN_ONLY)
extern const vovnet::cpu::Kernels vovnet_cpu_kernels_avx2, vovnet_cpu_kernels_avx512;
#if !defined(VOVNET_NO_AVX512_BF16)
extern const vovnet::cpu::ConvKernels vovnet_cpu_bfloat16_convs[2];  // for kBFloat16 and kBFloat16Maps
#endif
#endif
