// What the kernels take: plain structs without Torch, shared by every instruction set and by torch_ops.cpp.
//
// Maps are channels-last: pixel (n, y, x) of a map with C channels begins at ((n * height + y) * width + x) * C.
#pragma once

#include <cstddef>
#include <cstdint>

#include "roi_pool.h"

namespace vovnet::cpu {

// How the kernels reach threads: run(…) calls task(context, i) for every i in [0, tasks), on up to `threads` of them.
struct Parallel {
  int threads;
  void (*run)(int64_t tasks, void (*task)(void* context, int64_t i), void* context);
};

enum class Method : int {
  kDirect = 0,
  kStrassen = 1,         // direct, by one level of Strassen's product: 7 products of a quarter instead of 8
  kWinograd2 = 2,        // F(2x2, 3x3)
  kWinograd4 = 3,        // F(4x4, 3x3)
  kWinogradStrided = 4,  // F(3x3, 3x3) of stride 2
};

constexpr int kMaxSources = 16;
constexpr int kImageChannels = 16;  // a map of fewer channels is read as an image is: as it lies, in float32

struct Source {
  const void* data;
  int64_t channels;
};

// A convolution of the concatenation of `sources`: out = relu(conv + bias) + residual. Maps are of one DType; where all
// sources together are an image, they are float32 always.
struct Conv {
  Source sources[kMaxSources];
  int count;                     // of sources
  int64_t batch, height, width;  // of every source
  int64_t channels;              // of all sources together
  int64_t strides[4];            // of the first source, in elements, for n, c, y, x; read of images
  int64_t out_channels, out_height, out_width;
  int64_t kernel[2], stride[2], padding[2];  // of y and x
  const void* packed;                        // what pack() made of the weight
  const void* next;  // memory that is read after this convolution, to be brought near meanwhile, or null
  int64_t next_bytes;
  const float* bias;     // out_channels, or null for 0
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

// What convolutions compute with: maps, and the numbers that are multiplied.
enum class ComputeType : int { kFloat32 = 0, kBFloat16 = 1, kBFloat16Maps = 2 };  // of the last, float32 is multiplied

// Convolutions of some ComputeType.
struct ConvKernels {
  int64_t (*packed_size)(const Weight&);  // in bytes
  void (*pack)(const Weight&, void* packed, const Parallel&);
  int64_t (*scratch_size)(const Conv&, int threads);  // in bytes, of what conv() needs beside its arguments
  void (*conv)(const Conv&, void* scratch, const Parallel&);
};

struct Kernels {
  const char* name;
  ConvKernels convs[3];      // by ComputeType
  RoiPoolKernels roi_pool[2];  // by DType
};

}  // namespace vovnet::cpu

// Of each instruction set that is compiled, from its isa_*.cpp.
extern const vovnet::cpu::Kernels vovnet_cpu_kernels_plain;
#if !defined(VOVNET_PLAIN_ONLY)
extern const vovnet::cpu::Kernels vovnet_cpu_kernels_avx2, vovnet_cpu_kernels_avx512;
#if !defined(VOVNET_NO_AVX512_BF16)
extern const vovnet::cpu::ConvKernels vovnet_cpu_bfloat16_convs[2];  // for the last two
#endif
#endif
