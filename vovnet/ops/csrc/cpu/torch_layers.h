// Layers as Torch hands them over: checks, sizes, memory, calls.
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

// What a method's number says beside how products are computed: what maps are of.
DType dtype_of(int64_t method);
ScalarType scalar_type_of(DType dtype);
const ConvKernels& convs_of(int64_t method);
bool is_winograd(Method method);

void check_on_cpu(const ArgChecker& check, const std::string& argument, const Tensor& tensor);
void check_map(const ArgChecker& check, const std::string& argument, const Tensor& map, ScalarType dtype);
// What a convolution reads: a feature map of its method's element, or an image, in float32 and of any layout.
void check_input(const ArgChecker& check, const std::string& argument, const Tensor& x, int64_t channels, int64_t method);
// Two sizes, of height and width, each from `least` to where no sum of a few of them overflows.
void check_pair(const ArgChecker& check, const std::string& argument, const std::vector<int64_t>& pair, int64_t least);

// Checked layers but for their maps. `at` is the place in a chain, or kAlone.
constexpr int64_t kAlone = -1;
Weight weight_of(const ArgChecker& check, int64_t at, const Tensor& weight, int64_t method);
Conv conv_of(const ArgChecker& check, int64_t at, const Tensor& weight, const std::optional<Tensor>& bias,
             const Tensor& packed, int64_t method);

// A map on its way from layer to layer.
struct Map {
  const void* data;
  int64_t batch, channels, height, width;
  int64_t strides[4];  // in elements, for n, c, y, x
  DType dtype;

  static Map of(const Tensor& x);
  // Channels-last, without data yet.
  static Map dense(int64_t batch, int64_t channels, int64_t height, int64_t width, DType dtype);
  std::vector<int64_t> shape() const { return {batch, channels, height, width}; }
};

// Makes a map a convolution's only source.
void read(const Map& x, Conv& conv);
// Does so, and sets the convolution's sizes. Returns the output.
Map set_geometry(const ArgChecker& check, const std::string& argument, const Map& x, const std::vector<int64_t>& stride,
         const std::vector<int64_t>& padding, int64_t method, Conv& conv);
// A checked max-pool of a map.
MaxPool pool_of(const ArgChecker& check, const std::string& argument, const Map& x, const std::vector<int64_t>& kernel,
                const std::vector<int64_t>& stride, const std::vector<int64_t>& padding, bool ceil_mode);

// Memory that layers use one after the other.
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
