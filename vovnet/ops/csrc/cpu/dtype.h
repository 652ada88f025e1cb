// Loads and stores vectors of floats from and to maps of float32 or bfloat16. A bfloat16 number is the upper half of a
// float32, kept as uint16_t.
#pragma once

#include "vec.h"

namespace VOVNET_ISA {

typedef uint16_t Half __attribute__((vector_size(2 * VOVNET_LANES)));
typedef uint16_t HalfU __attribute__((vector_size(2 * VOVNET_LANES), aligned(2), may_alias));
typedef float Float __attribute__((aligned(2), may_alias));  // a pair of bfloat16, read at once
typedef uint32_t Bits __attribute__((vector_size(4 * VOVNET_LANES)));

VOVNET_INLINE Vec load(const uint16_t* p) {
  const Half half = *reinterpret_cast<const HalfU*>(p);
#if defined(__AVX512F__)  // GCC compiles the portable code below to five instructions
  const __m512i bits = _mm512_maskz_cvtepu16_epi32(0xffff, reinterpret_cast<__m256i>(half));
  return reinterpret_cast<Vec>(reinterpret_cast<Bits>(bits) << 16);
#elif defined(__AVX2__)
  const __m256i bits = _mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(half));
  return reinterpret_cast<Vec>(reinterpret_cast<Bits>(bits) << 16);
#else
  return reinterpret_cast<Vec>(__builtin_convertvector(half, Bits) << 16);
#endif
}

// Rounds to nearest, ties to even; NaN stays NaN. The processor's own instruction treats denormals as 0.
VOVNET_INLINE void store(uint16_t* p, Vec v) {
#if defined(__AVX512BF16__)
  const __m256bh rounded = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(rounded));
#else
  const Bits bits = reinterpret_cast<Bits>(v);
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Bits kept = v == v ? rounded : (bits >> 16) | 0x40;
  *reinterpret_cast<HalfU*>(p) = __builtin_convertvector(kept, Half);
#endif
}

// bfloat16 maps are stored through the caches: with half the bytes, streaming gains nothing.
VOVNET_INLINE void stream(uint16_t* p, Vec v) { store(p, v); }

// Stores two neighbouring vectors past the caches; the address is a multiple of their size.
VOVNET_INLINE void stream(float* p, Vec left, Vec right) {
  stream(p, left);
  stream(p + kLanes, right);
}
VOVNET_INLINE void stream(uint16_t* p, Vec left, Vec right) {
#if defined(__AVX512BF16__)
  const __m512bh both = _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(right), reinterpret_cast<__m512>(left));
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), reinterpret_cast<__m512i>(both));
#else
  store(p, left);
  store(p + kLanes, right);
#endif
}

// Loads n numbers; the vector's others are 0.
template <typename T>
VOVNET_INLINE Vec load_some(const T* p, int n) {
  T buffer[kLanes] = {};
  for (int i = 0; i < n; ++i) buffer[i] = p[i];
  return load(buffer);
}
template <typename T>
VOVNET_INLINE void store_some(T* p, Vec v, int n) {
  T buffer[kLanes];
  store(buffer, v);
  for (int i = 0; i < n; ++i) p[i] = buffer[i];
}

// Calls f.run<V>(c) for V vectors at once, from channel c on, until all channels are done; or f.rest(n) if there are
// fewer channels than a vector has lanes. The last vector may overlap the one before it and then computes the same.
template <typename F>
VOVNET_INLINE void for_channels(int64_t channels, const F& f) {
  constexpr int kMany = kLanes == 16 ? 16 : 8;  // the sums and a weight fit into registers
  if (channels < kLanes) return f.rest(static_cast<int>(channels));
  int64_t c = 0;
  for (; c + kMany * kLanes <= channels; c += kMany * kLanes) f.template run<kMany>(c);
  for (; c + 4 * kLanes <= channels; c += 4 * kLanes) f.template run<4>(c);
  for (; c + kLanes <= channels; c += kLanes) f.template run<1>(c);
  if (c < channels) f.template run<1>(channels - kLanes);
}

}  // namespace VOVNET_ISA
