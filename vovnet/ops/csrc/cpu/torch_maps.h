// New tensors and scratch over pooled memory.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../torch_checks.h"
#include "memory.h"

namespace vovnet::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

[[noreturn]] inline void no_memory(const char* op, size_t bytes) {
  throw std::runtime_error("vovnet::" + std::string(op) + ": expected " + std::to_string(bytes >> 20) +
                           " MiB of memory, more than the system has left: take fewer or smaller images at once");
}

// Returns the bytes of a map; calls no_memory if the number overflows.
inline size_t map_bytes(const char* op, const std::array<int64_t, 4>& shape, ScalarType dtype) {
  size_t bytes = dtype == ScalarType::BFloat16 ? 2 : 4;
  for (const int64_t size : shape) {
    if (__builtin_mul_overflow(bytes, static_cast<size_t>(size), &bytes)) {
      no_memory(op, std::numeric_limits<size_t>::max());
    }
  }
  return bytes;
}

inline std::unique_ptr<Scratch> new_scratch(const char* op, size_t bytes) {
  try {
    return std::make_unique<Scratch>(bytes);
  } catch (const std::bad_alloc&) {
    no_memory(op, bytes);
  }
}

// Returns a new (batch, channels, height, width) map, channels-last, float32 or bfloat16.
inline Tensor new_map(const char* op, const std::array<int64_t, 4>& shape, ScalarType dtype) {
  const size_t bytes = map_bytes(op, shape, dtype);
  void* data = nullptr;
  try {
    data = acquire(bytes);
  } catch (const std::bad_alloc&) {
    no_memory(op, bytes);
  }
  const auto [n, c, h, w] = shape;
  const std::array<int64_t, 4> strides{h * w * c, 1, w * c, c};
  return torch::stable::from_blob(data, shape, strides, torch::stable::Device(torch::headeronly::DeviceType::CPU),
                                  dtype, &release);
}

}  // namespace vovnet::cpu
