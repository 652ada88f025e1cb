// Everything that the kernels ask of a device. This is the CUDA half; where nvcc does not compile, `emulation.h` of
// tests/vovnet/ops/emulation takes its place, so that the same kernels run, checked, on a machine without a GPU.
#pragma once

#ifndef __CUDACC__
#include "emulation.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline_primitives.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "kernels.h"

namespace vovnet {

using Half = __half;
using BFloat16 = __nv_bfloat16;
using Bits16 = uint4;  // what one thread moves at once

#ifdef __CUDA_ARCH__
constexpr int kArchitecture = __CUDA_ARCH__ / 10;  // 75, 80, ...
#else
constexpr int kArchitecture = 0;  // the host's pass reads the kernels, but makes none
#endif

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(Half value) { return __half2float(value); }
__device__ inline float to_float(BFloat16 value) { return __bfloat162float(value); }

template <class T>
__device__ T from_float(float value);
template <>
__device__ inline float from_float(float value) {
  return value;
}
template <>
__device__ inline Half from_float(float value) {
  return __float2half_rn(value);
}
template <>
__device__ inline BFloat16 from_float(float value) {
  return __float2bfloat16_rn(value);
}

// Global memory; T is up to 16 bytes, at a multiple of its size.
template <class T>
__device__ T load(const T* source) {
  return *source;
}
template <class T>
__device__ void store(T* target, T value) {
  *target = value;
}
// For what this kernel never reads again: it may leave the L2 cache before what the kernel still needs.
__device__ inline void store_streamed(Bits16* target, Bits16 value) { __stcs(target, value); }

// Shared memory: the block's one dynamic allocation.
__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}
template <class T>
__device__ T load_shared(const T* source) {
  return *source;
}
template <class T>
__device__ void store_shared(T* target, T value) {
  *target = value;
}

// 16 bytes from global to shared memory, or 16 zero bytes where `valid` is false (the source is then not read).
// They are there after the `wait_copies` that covers their group, for this thread; after a barrier, for all.
__device__ inline void copy_async(void* target, const void* source, bool valid) {
  __pipeline_memcpy_async(target, source, 16, valid ? 0 : 16);
}
__device__ inline void commit_copies() { __pipeline_commit(); }
template <int kPending>
__device__ void wait_copies() {
  __pipeline_wait_prior(kPending);
}

__device__ inline void block_barrier() { __syncthreads(); }
__device__ inline void warp_barrier() { __syncwarp(); }

// The warp's matrix instructions; all lanes call each of them. What a lane holds is the PTX ISA's: "group" is lane / 4,
// "pair" is lane % 4.

// Four 8 x 8 matrices of 16-bit elements (or 8 x 4 of 32 bits); lane 8 i + r gives the address of row r of matrix i, 16
// bytes. The lane receives, of each, elements 2 pair and 2 pair + 1 of row group; transposed: of column group.
template <bool kTransposed>
__device__ void load_matrices(unsigned (&words)[4], const void* row) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
  }
}

// sum (16, 8) += a (16, depth) b (depth, 8), in float32. Depth is 16, of float32 rounded to TF32 8. The lane holds
//   a: rows group and group + 8 in the first half of depth, then both in the second; pairs of neighbours in depth
//   b: column group, in the first and in the second half of depth
//   sum: columns 2 pair and 2 pair + 1 of rows group and group + 8
// Type is the tag of what the words hold.
struct Tf32 {};
#define VOVNET_MMA(SHAPE, TYPES)                                                       \
  asm volatile("mma.sync.aligned." SHAPE ".row.col.f32." TYPES                         \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"  \
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
template <class Type>
__device__ void multiply_matrices(float (&sum)[4], const unsigned (&a)[4], const unsigned* b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<Type, Half>) VOVNET_MMA("m16n8k16", "f16.f16");
  if constexpr (std::is_same_v<Type, BFloat16>) VOVNET_MMA("m16n8k16", "bf16.bf16");
  if constexpr (std::is_same_v<Type, Tf32>) VOVNET_MMA("m16n8k8", "tf32.tf32");
#elif defined(__CUDA_ARCH__)
  static_assert(std::is_same_v<Type, Half>, "7.5 multiplies float16 only, half as deep at once");
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
  }
#endif
}
#undef VOVNET_MMA

// The bits of float32 rounded to TF32, which keeps 10 bits of the mantissa.
__device__ inline unsigned round_to_tf32(unsigned bits) {
  unsigned rounded = bits;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
#endif
  return rounded;
}

inline Result cuda_result(cudaError_t error) {
  if (error == cudaSuccess) return {Status::kOk, 0, ""};
  return {Status::kCuda, static_cast<int>(error), cudaGetErrorString(error)};
}

// The architecture that the kernel's code was compiled for on this device, 0 where there is none.
template <class... Parameters>
int compiled_architecture(void (*kernel)(Parameters...)) {
  cudaFuncAttributes attributes{};
  if (cudaFuncGetAttributes(&attributes, kernel) != cudaSuccess) {
    cudaGetLastError();  // the launch reports it
    return 0;
  }
  return attributes.ptxVersion;
}

template <class... Parameters>
Result launch(void (*kernel)(Parameters...), unsigned blocks, int threads, int shared_bytes, cudaStream_t stream,
              const Parameters&... parameters) {
  if (shared_bytes > 48 * 1024) {  // more than every kernel may have unasked
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error != cudaSuccess) return cuda_result(error);
  }
  kernel<<<blocks, threads, shared_bytes, stream>>>(parameters...);
  return cuda_result(cudaGetLastError());
}

}  // namespace vovnet
#endif  // __CUDACC__
