// The host's half of device.cuh: what the kernels ask of a device, as calls to the machine of machine.h.
// EMULATED_CAPABILITY (75, 80, ...) chooses the architecture; EMULATED_TRACE follows addresses and computes nothing.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels.h"
#include "machine.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __grid_constant__
#define threadIdx emulation::thread_index
#define blockIdx emulation::block_index

namespace vovnet {

using std::min;

#ifdef EMULATED_TRACE
constexpr bool kTrace = true;
#else
constexpr bool kTrace = false;
#endif
constexpr int kArchitecture = EMULATED_CAPABILITY;

using Half = _Float16;
struct BFloat16 {
  uint16_t bits;
};
struct alignas(16) Bits16 {
  unsigned word[4];
};

inline float to_float(float value) { return value; }
inline float to_float(Half value) { return static_cast<float>(value); }
inline float to_float(BFloat16 value) { return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }

template <class T>
T from_float(float value);
template <>
inline float from_float(float value) {
  return value;
}
template <>
inline Half from_float(float value) {
  return static_cast<Half>(value);
}
template <>
inline BFloat16 from_float(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (value != value) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};  // to the nearest, ties to even
}

template <class T>
T load(const T* source) {
  emulation::touch_global(source, sizeof(T), emulation::Use::kRead);
  if constexpr (kTrace) return T{};
  return *source;
}
template <class T>
void store(T* target, T value) {
  emulation::touch_global(target, sizeof(T), emulation::Use::kWrite);
  if constexpr (!kTrace) *target = value;
}
inline void store_streamed(Bits16* target, Bits16 value) {
  emulation::touch_global(target, sizeof(Bits16), emulation::Use::kWriteStreamed);
  if constexpr (!kTrace) *target = value;
}

inline unsigned char* shared_memory() { return emulation::shared_base(); }
template <class T>
T load_shared(const T* source) {
  if constexpr (kTrace) return T{};
  emulation::touch_shared(source, sizeof(T), false);
  T value;
  std::memcpy(&value, source, sizeof(T));  // shared memory is seen as several types
  return value;
}
template <class T>
void store_shared(T* target, T value) {
  if constexpr (kTrace) return;
  emulation::touch_shared(target, sizeof(T), true);
  std::memcpy(target, &value, sizeof(T));
}

inline void copy_async(void* target, const void* source, bool valid) { emulation::copy_async(target, source, valid); }
inline void commit_copies() { emulation::commit_copies(); }
template <int kPending>
void wait_copies() {
  emulation::wait_copies(kPending);
}
inline void block_barrier() { emulation::block_barrier(); }

inline void nothing(void* const (&)[32]) {}
inline void warp_barrier() {
  if constexpr (!kTrace) emulation::collective(nothing, nullptr);
}

// The matrix instructions, as the PTX ISA defines them.
struct MatricesCall {
  const void* row;
  unsigned* words;
  unsigned lane_row[4];  // the 16 bytes at `row`
};
template <bool kTransposed>
void load_matrices_now(void* const (&arguments)[32]) {
  const auto call = [&](int lane) { return static_cast<MatricesCall*>(arguments[lane]); };
  for (int lane = 0; lane < 32; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint16_t pair[2];
      for (int i = 0; i < 2; ++i) {
        const int row = kTransposed ? 2 * (lane % 4) + i : lane / 4;
        const int column = kTransposed ? lane / 4 : 2 * (lane % 4) + i;
        std::memcpy(&pair[i], reinterpret_cast<const char*>(call(8 * matrix + row)->lane_row) + 2 * column, 2);
      }
      std::memcpy(&call(lane)->words[matrix], pair, 4);
    }
  }
}
template <bool kTransposed>
void load_matrices(unsigned (&words)[4], const void* row) {
  if constexpr (kTrace) return;
  MatricesCall call{row, words, {}};
  emulation::touch_shared(row, 16, false);
  std::memcpy(call.lane_row, row, 16);
  emulation::collective(load_matrices_now<kTransposed>, &call);
}

struct Tf32 {};
struct MultiplyCall {
  float* sum;
  const unsigned* a;
  const unsigned* b;
};
// Element i of the word that holds (16 or 32 bits an element).
template <class Type>
float element(unsigned word, int i) {
  if constexpr (std::is_same_v<Type, Tf32>) {
    return std::bit_cast<float>(word & ~0x1fffu);  // the hardware does not read the lower bits
  } else {
    return to_float(std::bit_cast<Type>(static_cast<uint16_t>(word >> 16 * i)));
  }
}
template <class Type>
void multiply_matrices_now(void* const (&arguments)[32]) {
  constexpr int kEach = std::is_same_v<Type, Tf32> ? 1 : 2;  // elements a word
  constexpr int kDepth = 8 * kEach;
  float a[16][kDepth], b[kDepth][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto* call = static_cast<const MultiplyCall*>(arguments[lane]);
    const int group = lane / 4, pair = lane % 4;
    for (int i = 0; i < kEach; ++i) {
      for (int word = 0; word < 4; ++word) {
        a[group + 8 * (word % 2)][kEach * pair + i + kDepth / 2 * (word / 2)] = element<Type>(call->a[word], i);
      }
      for (int word = 0; word < 2; ++word) {
        b[kEach * pair + i + kDepth / 2 * word][group] = element<Type>(call->b[word], i);
      }
    }
  }
  for (int row = 0; row < 16; ++row) {
    float sums[8] = {};
    for (int k = 0; k < kDepth; ++k) {
      for (int column = 0; column < 8; ++column) sums[column] += a[row][k] * b[k][column];
    }
    for (int column = 0; column < 8; ++column) {
      const auto* call = static_cast<const MultiplyCall*>(arguments[row % 8 * 4 + column / 2]);
      call->sum[row / 8 * 2 + column % 2] += sums[column];
    }
  }
}
template <class Type>
void multiply_matrices(float (&sum)[4], const unsigned (&a)[4], const unsigned* b) {
  if constexpr (kTrace) return;
  MultiplyCall call{sum, a, b};
  emulation::collective(multiply_matrices_now<Type>, &call);
}
inline unsigned round_to_tf32(unsigned bits) {
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits;
  return (bits + 0x1000u) & ~0x1fffu;  // to the nearest, ties away from zero
}

inline int compiled_architecture(const void*) { return kArchitecture; }
template <class... Parameters>
int compiled_architecture(void (*)(Parameters...)) {
  return kArchitecture;
}
template <class... Parameters>
Result launch(void (*kernel)(Parameters...), unsigned blocks, int threads, int shared_bytes, cudaStream_t,
              const Parameters&... parameters) {
  const char* error = emulation::run(blocks, threads, shared_bytes, [&] { kernel(parameters...); });
  if (error != nullptr) return {Status::kCuda, 700, error};
  return {Status::kOk, 0, ""};
}

}  // namespace vovnet
