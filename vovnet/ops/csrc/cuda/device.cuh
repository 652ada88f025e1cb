// Everything that the kernels use of a device. This is the CUDA implementation. For other compilers, `emulation.h` of
// tests/vovnet/ops/emulation replaces it, so that tests can run and check the same kernels without a GPU.
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
using Bits16 = uint4;  // what a thread moves at once

#ifdef __CUDA_ARCH__
constexpr int kArchitecture = __CUDA_ARCH__ / 10;  // 75, 80, ...
#else
constexpr int kArchitecture = 0;  // the host's pass parses the kernels but does not compile them
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

// Global memory. T has up to 16 bytes; its address is a multiple of its size.
template <class T>
__device__ T load(const T* source) {
  return *source;
}
template <class T>
__device__ void store(T* target, T value) {
  *target = value;
}
// For data that the kernel never reads again; it may be evicted from the L2 cache first.
__device__ inline void store_streamed(Bits16* target, Bits16 value) { __stcs(target, value); }

// The block's dynamic shared memory.
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

// Copies 16 bytes from global to shared memory; if `valid` is false, writes zeros and does not read the source. This
// thread sees them after the `wait_copies` for their group, all threads after the barrier that follows.
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

// The warp's matrix instructions; all lanes must call them. The PTX ISA defines what a lane holds: "group" is lane / 4,
// "pair" is lane % 4.

// Loads four 8 x 8 matrices of 16-bit elements (or 8 x 4 of 32 bits). Lane 8 i + r gives the address of row r of matrix
// i, 16 bytes. Of each matrix a lane receives elements 2 pair and 2 pair + 1 of row group; if transposed, of column
// group.
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

// sum (16, 8) += a (16, K) b (K, 8), in float32. K is 16, for TF32 8. The lane holds
//   a: rows group and group + 8 in the first half of K, then both in the second half; pairs of neighbours in K
//   b: column group, in the first and in the second half of K
//   sum: columns 2 pair and 2 pair + 1 of rows group and group + 8
// Type says what the words hold.
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
  static_assert(std::is_same_v<Type, Half>, "7.5 multiplies float16 only, half of K at once");
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

// Rounds a float32 number, given as bits, to TF32, which keeps 10 bits of the mantissa.
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

// Returns the architecture that the kernel's code for this device was compiled for, 0 if there is none.
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
  if (shared_bytes > 48 * 1024) {  // more must be requested
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error != cudaSuccess) return cuda_result(error);
  }
  kernel<<<blocks, threads, shared_bytes, stream>>>(parameters...);
  return cuda_result(cudaGetLastError());
}

}  // namespace vovnet
#endif  // __CUDACC__
