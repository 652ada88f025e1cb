// Checks of the operators' tensors. Every error is a std::runtime_error (RuntimeError in Python) whose message names
// the operator, the argument, what was expected and what was given.
//
// A tensor's device is checked last, so that all other checks can be tested on a machine without a GPU.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <torch/csrc/stable/tensor.h>

// The namespace in PyTorch's library. Copies of a library that are loaded side by side have one each.
#if !defined(VOVNET_NAMESPACE)
#define VOVNET_NAMESPACE vovnet
#endif

namespace vovnet::checks {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string words(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Byte: return "uint8";
    default: return torch::headeronly::toString(dtype);
  }
}

inline std::string words(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

inline std::vector<int64_t> shape_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.begin(), sizes.end()};
}

inline std::string device_name(const Tensor& tensor) {
  if (tensor.is_cuda()) return "cuda:" + std::to_string(tensor.get_device_index());
  return tensor.is_cpu() ? "cpu" : "neither the CPU nor a CUDA device";
}

// Checks the arguments of one call. It knows the operator's name, for messages, and the device of the first tensor.
class ArgChecker {
 public:
  explicit ArgChecker(const char* op) : op_(op) {}

  [[noreturn]] void refuse(const std::string& argument, const std::string& expected, const std::string& got) const {
    throw std::runtime_error("vovnet::" + std::string(op_) + ": " + argument + ": expected " + expected + ", got " +
                             got);
  }

  // Expects a channels-last (N, C, H, W) map; strides of dimensions of size 1 do not matter.
  void feature_map(const std::string& argument, const Tensor& tensor) const {
    if (tensor.dim() != 4) refuse(argument, "a feature map (N, C, H, W)", "shape " + words(shape_of(tensor)));
    constexpr int order[] = {1, 3, 2, 0};
    int64_t stride = 1;
    for (const int axis : order) {
      if (tensor.size(axis) != 1 && tensor.stride(axis) != stride && tensor.numel() > 0) {
        refuse(argument, "channels-last memory (tensor.contiguous(memory_format=torch.channels_last))", "strides " +
               words(std::vector<int64_t>(tensor.strides().begin(), tensor.strides().end())));
      }
      stride *= tensor.size(axis);
    }
  }

  void contiguous(const std::string& argument, const Tensor& tensor) const {
    if (!tensor.is_contiguous()) refuse(argument, "contiguous memory (tensor.contiguous())", "a strided view");
  }

  void shape(const std::string& argument, const Tensor& tensor, const std::vector<int64_t>& expected,
             const std::string& meaning) const {
    if (shape_of(tensor) != expected) refuse(argument, meaning + " " + words(expected), words(shape_of(tensor)));
  }

  void dtype(const std::string& argument, const Tensor& tensor, ScalarType expected) const {
    if (tensor.scalar_type() != expected) refuse(argument, words(expected), words(tensor.scalar_type()));
  }

  // Expects a dtype that has kernels.
  void floating(const std::string& argument, const Tensor& tensor) const {
    const ScalarType got = tensor.scalar_type();
    if (got != ScalarType::Half && got != ScalarType::BFloat16 && got != ScalarType::Float) {
      refuse(argument, "float16, bfloat16 or float32", words(got));
    }
  }

  // Expects a tensor on the same GPU as the others, at an address that is a multiple of 16 bytes.
  void on_cuda(const std::string& argument, const Tensor& tensor) {
    if (!tensor.is_cuda()) refuse(argument, "a tensor on a CUDA device", "one on " + device_name(tensor));
    if (device_ < 0) device_ = tensor.get_device_index();
    if (tensor.get_device_index() != device_) {
      refuse(argument, "a tensor on cuda:" + std::to_string(device_) + " like the others",
             "one on " + device_name(tensor));
    }
    if (tensor.numel() > 0 && reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 != 0) {
      refuse(argument, "data aligned to 16 bytes (tensor.clone())", "a view that starts in between");
    }
  }

  int narrow(const std::string& argument, int64_t value) const {
    if (value > std::numeric_limits<int>::max()) refuse(argument, "at most 2147483647 channels", std::to_string(value));
    return static_cast<int>(value);
  }

  int32_t device() const { return device_; }

 private:
  const char* op_;
  int32_t device_ = -1;
};

}  // namespace vovnet::checks
