// Vectors of floats, by the compilers' vector extensions. One source serves every width of an instruction set.
//
// Each isa_*.cpp includes this file in a namespace of its own, because no function may be shared between them.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__AVX512F__)
#define VOVNET_LANES 16
#elif defined(__AVX2__)
#define VOVNET_LANES 8
#else
#define VOVNET_LANES 4
#endif

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define VOVNET_INLINE inline __attribute__((always_inline))

namespace VOVNET_ISA {

constexpr int kLanes = VOVNET_LANES;
constexpr int kLine = 64;  // bytes of a cache line, the unit of packed rows on every instruction set

typedef float Vec __attribute__((vector_size(4 * VOVNET_LANES)));
typedef float VecU __attribute__((vector_size(4 * VOVNET_LANES), aligned(2), may_alias));

VOVNET_INLINE Vec load(const float* p) { return *reinterpret_cast<const VecU*>(p); }
VOVNET_INLINE void store(float* p, Vec v) { *reinterpret_cast<VecU*>(p) = v; }
// Stores past the caches, for maps that no cache holds; the address is a multiple of the vector's size.
VOVNET_INLINE void stream(float* p, Vec v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, reinterpret_cast<__m512>(v));
#elif defined(__AVX2__)
  _mm256_stream_ps(p, reinterpret_cast<__m256>(v));
#elif defined(__SSE2__)
  _mm_stream_ps(p, reinterpret_cast<__m128>(v));
#else
  store(p, v);
#endif
}
VOVNET_INLINE void stream_end() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}
VOVNET_INLINE Vec all(float x) { return x - Vec{}; }
// NaN stays NaN, as in PyTorch's ReLU, because the comparison is false for it.
VOVNET_INLINE Vec relu(Vec v) { return v < Vec{} ? Vec{} : v; }
VOVNET_INLINE Vec max_keeping_nan(Vec a, Vec b) { return (a > b) | (a != a) ? a : b; }

}  // namespace VOVNET_ISA
