// What the stand-alone programs share: kernels by name, threads, data, memory that is watched, and comparisons.
//
// Each program is linked with memory.cpp, the isa_*.cpp of the machine and what it tests besides, and knows no Torch:
//   PROGRAM INSTRUCTION_SET [quick]
// It ends with 0, with 1 and a line for each mismatch, or with 77 where the processor lacks the instruction set.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "kernels.h"

namespace checks {

using vovnet::cpu::DType;
using vovnet::cpu::ComputeType;
using vovnet::cpu::Kernels;
using vovnet::cpu::Parallel;

constexpr int kLacking = 77;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInf = std::numeric_limits<float>::infinity();

inline int failures = 0;

// Of an instruction set; exits where there are none, or the processor lacks it.
inline Kernels kernels_of(const std::string& name) {
  if (name == "plain") return vovnet_cpu_kernels_plain;
#if !defined(VOVNET_PLAIN_ONLY)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (name == "avx2" && avx2) return vovnet_cpu_kernels_avx2;
  if (name == "avx512" && avx512) return vovnet_cpu_kernels_avx512;
#if !defined(VOVNET_NO_AVX512_BF16)
  if (name == "avx512_bf16" && avx512 && __builtin_cpu_supports("avx512bf16")) {
    Kernels kernels = vovnet_cpu_kernels_avx512;
    kernels.convs[static_cast<int>(ComputeType::kBFloat16)] = vovnet_cpu_bfloat16_convs[0];
    kernels.convs[static_cast<int>(ComputeType::kBFloat16Maps)] = vovnet_cpu_bfloat16_convs[1];
    return kernels;
  }
#endif
#endif
  std::printf("this processor or this program has no %s\n", name.c_str());
  std::exit(kLacking);
}

// ---- Threads

using Task = void (*)(void*, int64_t);

inline void serially(int64_t tasks, Task task, void* context) {
  for (int64_t i = 0; i < tasks; ++i) task(context, i);
}

template <int N>
void in_threads(int64_t tasks, Task task, void* context) {
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t i = next++; i < tasks; i = next++) task(context, i);
  };
  std::vector<std::thread> threads;
  for (int64_t i = 1; i < std::min<int64_t>(N, tasks); ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
}

// The third is what a call inside of another parallel section meets: work for many, done by one.
constexpr Parallel kParallels[] = {{1, serially}, {3, in_threads<3>}, {5, serially}, {16, in_threads<16>}};

// ---- Data

// Uniform in [low, high), the same on every machine.
inline float draw(float low = -1, float high = 1) {
  static uint64_t state = 1;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return low + (high - low) * static_cast<float>(state >> 40) / (1 << 24);
}

inline int64_t draw_int(int64_t low, int64_t high) {
  return low + static_cast<int64_t>(draw(0, 1) * static_cast<float>(high - low));
}

inline float value(float x) { return x; }

inline float value(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

// To the nearest bfloat16, ties to even, by counting: not as the kernels do it.
template <typename T>
T rounded(double x) {
  if constexpr (sizeof(T) == 4) {
    return static_cast<float>(x);
  } else {
    if (std::isnan(x)) return 0x7fc0;
    uint32_t bits;
    const float single = static_cast<float>(x);
    std::memcpy(&bits, &single, 4);
    const uint16_t down = static_cast<uint16_t>(bits >> 16), up = static_cast<uint16_t>(down + 1);
    const uint32_t rest = bits & 0xffff;
    return rest > 0x8000 || (rest == 0x8000 && down % 2) ? up : down;
  }
}

// Memory of exactly so many elements, at a multiple of 64 bytes: sanitizers see the first byte beside it. All bits are
// set, which no test expects: NaN, to those that read what nobody has written.
template <typename T>
struct Buffer {
  explicit Buffer(int64_t count) : size(count), data(new (std::align_val_t(64)) T[static_cast<size_t>(count)], Free{}) {
    if (count > 0) std::memset(data.get(), 0xff, static_cast<size_t>(count) * sizeof(T));
  }
  T* begin() { return data.get(); }
  T* end() { return data.get() + size; }
  struct Free {
    void operator()(T* p) const { ::operator delete[](p, std::align_val_t(64)); }
  };
  int64_t size;
  std::unique_ptr<T[], Free> data;
};

template <typename T>
Buffer<T> random_map(int64_t count) {
  Buffer<T> map(count);
  for (T& x : map) x = rounded<T>(draw());
  return map;
}

// ---- Comparisons

inline bool same(double got, double expected, double tolerance) {
  if (std::isnan(expected)) return std::isnan(got);
  return got == expected || std::abs(got - expected) <= tolerance;
}

inline void check(bool good, const char* what, int64_t at, double got, double expected) {
  if (good || ++failures >= 20) return;
  std::printf("%s: element %lld: expected %.9g, got %.9g\n", what, static_cast<long long>(at), expected, got);
}

inline int finish() {
  std::printf(failures ? "%d mismatches\n" : "ok\n", failures);
  return failures ? 1 : 0;
}

// What a program is asked for.
struct Request {
  Kernels kernels;
  bool quick;

  Request(int count, char** words) {
    if (count < 2) {
      std::printf("usage: %s INSTRUCTION_SET [quick]\n", words[0]);
      std::exit(2);
    }
    kernels = kernels_of(words[1]);
    quick = count > 2 && std::string(words[2]) == "quick";
  }
};

}  // namespace checks
