// A ReLU's backward and the gradient of a frozen norm's shift, in one pass over the feature map.
#pragma once

#include "sum_partials.cuh"

namespace vovnet {

constexpr int kReluThreads = 256;
constexpr int kReluBytes = kReluThreads * kRun * 4;  // the threads' sums

struct ReluProblem {
  const void* grad;     // (pixels, channels)
  const void* out;      // (pixels, channels), or null
  const uint8_t* mask;  // ceil(pixels * channels / 8), or null
  void* g;              // (pixels, channels), or null
  float* partials;      // (slabs, channels), or null
  int64_t pixels;
  int channels;
  int lanes;            // threads over channels, a power of 2; the block's other threads take other pixels
  int groups;           // blocks over channels
  int64_t slab;         // pixels of a block
};

// A thread takes kElements neighbouring channels: 8, or 1 if channels are not a multiple of 8.
template <class T, int kElements>
__device__ void load_elements(float (&values)[kElements], const T* source) {
  if constexpr (kElements == kRun) {
    load_run(values, source);
  } else {
    values[0] = to_float(load(source));
  }
}
template <class T, int kElements>
__device__ void store_elements(T* target, const float (&values)[kElements]) {
  constexpr int kCount = kElements == kRun ? Vector<T>::kCount : 1;
#pragma unroll
  for (int v = 0; v < kElements; v += kCount) {
    if constexpr (kElements == kRun) {
      Vector<T> vector;
#pragma unroll
      for (int i = 0; i < kCount; ++i) vector.at[i] = from_float<T>(values[v + i]);
      store(reinterpret_cast<Vector<T>*>(target + v), vector);
    } else {
      store(target, from_float<T>(values[0]));
    }
  }
}

// Returns one bit per element from `element` on: whether it is kept.
template <class T, int kElements>
__device__ unsigned kept(const ReluProblem& problem, int64_t element) {
  if (problem.mask != nullptr) return static_cast<unsigned>(load(problem.mask + element / 8)) >> element % 8;
  if (problem.out == nullptr) return ~0u;
  float out[kElements];
  load_elements(out, static_cast<const T*>(problem.out) + element);
  unsigned bits = 0;
#pragma unroll
  for (int i = 0; i < kElements; ++i) bits |= out[i] <= 0.0f ? 0u : 1u << i;
  return bits;
}

// Adds the threads' sums over the block's pixels, line by line, and writes the sum of the slab.
template <int kElements>
__device__ void write_partials(const ReluProblem& problem, const float (&sums)[kElements], int first_channel,
                               unsigned slab) {
  float* shared = reinterpret_cast<float*>(shared_memory());  // (lines, lanes, elements)
#pragma unroll
  for (int i = 0; i < kElements; ++i) store_shared(shared + threadIdx.x * kElements + i, sums[i]);
  block_barrier();
  const int width = problem.lanes * kElements;
  const int lines = kReluThreads / problem.lanes;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += kReluThreads) {
    if (first_channel + i >= problem.channels) break;
    float sum = 0.0f;
    for (int line = 0; line < lines; ++line) sum += load_shared(shared + line * width + i);
    store(problem.partials + static_cast<int64_t>(slab) * problem.channels + first_channel + i, sum);
  }
}

template <class T, int kElements>
__global__ void __launch_bounds__(kReluThreads) relu_backward_kernel(const ReluProblem problem) {
  const int thread = static_cast<int>(threadIdx.x);
  const unsigned slab = blockIdx.x / static_cast<unsigned>(problem.groups);
  const int first_channel =
      static_cast<int>(blockIdx.x % static_cast<unsigned>(problem.groups)) * problem.lanes * kElements;
  const int channel = first_channel + thread % problem.lanes * kElements;
  const int64_t begin = slab * problem.slab;
  const int64_t end = begin + problem.slab < problem.pixels ? begin + problem.slab : problem.pixels;
  float sums[kElements] = {};
  if (channel < problem.channels) {
    for (int64_t pixel = begin + thread / problem.lanes; pixel < end; pixel += kReluThreads / problem.lanes) {
      const int64_t element = pixel * problem.channels + channel;
      float values[kElements];
      load_elements(values, static_cast<const T*>(problem.grad) + element);
      const unsigned bits = kept<T, kElements>(problem, element);
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        values[i] = bits >> i & 1 ? values[i] : 0.0f;
        sums[i] += values[i];
      }
      if (problem.g != nullptr) store_elements(static_cast<T*>(problem.g) + element, values);
    }
  }
  if (problem.partials != nullptr) write_partials(problem, sums, first_channel, slab);
}

}  // namespace vovnet
