// Layers from Torch tensors: checks, sizes, memory, calls.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels.h"
#include "torch_maps.h"

namespace vovnet::cpu {

using vovnet::checks::ArgChecker;
using vovnet::checks::shape_of;
using vovnet::checks::words;

// The dtype of maps is part of a method's number.
DType dtype_of(int64_t method);
ScalarType scalar_type_of(DType dtype);
const ConvKernels& convs_of(int64_t method);
bool is_winograd(Method method);

void check_on_cpu(const ArgChecker& check, const std::string& argument, const Tensor& tensor);
void check_map(const ArgChecker& check, const std::string& argument, const Tensor& map, ScalarType dtype);
// Checks a convolution's input: a feature map of its method's dtype, or an image in float32 and any layout.
void check_input(const ArgChecker& check, const std::string& argument, const Tensor& x, int64_t channels,
                 int64_t method);
// Checks a pair for height and width; both are at least `least` and small enough that sums do not overflow.
void check_pair(const ArgChecker& check, const std::string& argument, const std::vector<int64_t>& pair, int64_t least);

// Check the arguments of a layer except for its maps. `at` is the index in a chain, or kAlone.
constexpr int64_t kAlone = -1;
Weight weight_of(const ArgChecker& check, int64_t at, const Tensor& weight, int64_t method);
Conv conv_of(const ArgChecker& check, int64_t at, const Tensor& weight, const std::optional<Tensor>& bias,
             const Tensor& packed, int64_t method);

// A map between two layers.
struct Map {
  const void* data;
  int64_t batch, channels, height, width;
  int64_t strides[4];  // in elements, for n, c, y, x
  DType dtype;

  static Map of(const Tensor& x);
  // Returns a channels-last map without data.
  static Map dense(int64_t batch, int64_t channels, int64_t height, int64_t width, DType dtype);
  std::vector<int64_t> shape() const { return {batch, channels, height, width}; }
};

// Makes a map the convolution's only source.
void read(const Map& x, Conv& conv);
// Does so, sets the convolution's sizes, and returns its output without data.
Map set_geometry(const ArgChecker& check, const std::string& argument, const Map& x, const std::vector<int64_t>& stride,
         const std::vector<int64_t>& padding, int64_t method, Conv& conv);
// Returns a max-pool of a map; checks its arguments.
MaxPool pool_of(const ArgChecker& check, const std::string& argument, const Map& x, const std::vector<int64_t>& kernel,
                const std::vector<int64_t>& stride, const std::vector<int64_t>& padding, bool ceil_mode);

// Scratch memory that layers use one after the other.
class Workspace {
 public:
  explicit Workspace(const char* op) : op_(op) {}
  void* of(size_t bytes) {
    if (!memory_ || bytes > bytes_) {
      memory_.reset();
      memory_ = new_scratch(op_, bytes);
      bytes_ = bytes;
    }
    return memory_->data();
  }

 private:
  const char* op_;
  std::unique_ptr<Scratch> memory_;
  size_t bytes_ = 0;
};

void run_conv(int64_t method, const Conv& conv, const Parallel& threads, Workspace& workspace);

}  // namespace vovnet::cpu
