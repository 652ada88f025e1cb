#include "torch_layers.h"

#include <limits>

#include "runtime.h"

namespace vovnet::cpu {
namespace {

// Flags of a method's number: maps and products are bfloat16; products are float32 nevertheless.
constexpr int64_t kBFloat16Bit = 16, kFloatProductsBit = 32;

ComputeType compute_type_of(int64_t method) {
  if (dtype_of(method) == DType::kFloat32) return ComputeType::kFloat32;
  return method & kFloatProductsBit ? ComputeType::kBFloat16Maps : ComputeType::kBFloat16;
}

Method method_of(const ArgChecker& check, const std::string& argument, int64_t method) {
  const int64_t number = method & ~(kBFloat16Bit | kFloatProductsBit);
  if (number < 0 || number > 3 || (method & kFloatProductsBit && !(method & kBFloat16Bit))) {
    check.refuse(argument, "0 to 3, and 16 more for bfloat16 maps and products or 48 for bfloat16 maps alone",
                std::to_string(method));
  }
  return static_cast<Method>(number);
}

void check_float(const ArgChecker& check, const std::string& argument, const Tensor& tensor) {
  check.dtype(argument, tensor, ScalarType::Float);
  check_on_cpu(check, argument, tensor);
}

// Returns the number of windows along an axis as PyTorch counts them: the last one begins inside the map or before it.
int64_t windows(int64_t size, int64_t kernel, int64_t stride, int64_t padding, bool ceil_mode) {
  const int64_t room = size + 2 * padding - kernel + (ceil_mode ? stride - 1 : 0);  // for the windows after the first
  if (room < 0) return 0;
  const int64_t count = room / stride + 1;
  return ceil_mode && (count - 1) * stride >= size + padding ? count - 1 : count;
}

// Returns the name of an argument of a single layer, or of layer `at` of a chain.
std::string named(const char* one, const char* many, int64_t at) {
  return at < 0 ? one : many + ("[" + std::to_string(at) + "]");
}

}  // namespace

DType dtype_of(int64_t method) { return method & kBFloat16Bit ? DType::kBFloat16 : DType::kFloat32; }

ScalarType scalar_type_of(DType dtype) { return dtype == DType::kFloat32 ? ScalarType::Float : ScalarType::BFloat16; }

const ConvKernels& convs_of(int64_t method) { return kernels().convs[static_cast<int>(compute_type_of(method))]; }

bool is_winograd(Method method) { return method >= Method::kWinograd2; }

void check_on_cpu(const ArgChecker& check, const std::string& argument, const Tensor& tensor) {
  if (!tensor.is_cpu()) check.refuse(argument, "a tensor on the CPU", "one on " + vovnet::checks::device_name(tensor));
}

void check_map(const ArgChecker& check, const std::string& argument, const Tensor& map, ScalarType dtype) {
  check.dtype(argument, map, dtype);
  check_on_cpu(check, argument, map);
  check.feature_map(argument, map);
}

void check_input(const ArgChecker& check, const std::string& argument, const Tensor& x, int64_t channels,
                 int64_t method) {
  if (x.dim() != 4 || x.size(1) != channels) {
    check.refuse(argument, "(N, " + std::to_string(channels) + ", H, W), with as many channels as the weight",
                words(shape_of(x)));
  }
  if (channels < kImageChannels) {
    check_float(check, argument, x);
  } else {
    check_map(check, argument, x, scalar_type_of(dtype_of(method)));
  }
}

void check_pair(const ArgChecker& check, const std::string& argument, const std::vector<int64_t>& pair, int64_t least) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (pair.size() != 2 || pair[0] < least || pair[1] < least || pair[0] > kMost || pair[1] > kMost) {
    check.refuse(argument, "two numbers from " + std::to_string(least) + " to " + std::to_string(kMost), words(pair));
  }
}

Weight weight_of(const ArgChecker& check, int64_t at, const Tensor& weight, int64_t method) {
  const std::string argument = named("weight", "weights", at);
  if (weight.dim() != 4 || weight.numel() == 0) {
    check.refuse(argument, "(out channels, channels, height, width)", words(shape_of(weight)));
  }
  check_float(check, argument, weight);
  const Weight made{static_cast<const float*>(weight.const_data_ptr()),
                    weight.size(0),
                    weight.size(1),
                    {weight.size(2), weight.size(3)},
                    method_of(check, named("method", "methods", at), method)};
  const bool fits = made.kernel[0] == 3 && made.kernel[1] == 3 && made.channels >= kImageChannels;
  if (is_winograd(made.method) && !fits) {
    check.refuse(argument, "a 3x3 kernel and 16 or more channels for Winograd's transform", words(shape_of(weight)));
  }
  return made;
}

Conv conv_of(const ArgChecker& check, int64_t at, const Tensor& weight, const std::optional<Tensor>& bias,
             const Tensor& packed, int64_t method) {
  const Weight made = weight_of(check, at, weight, method);
  const std::string packed_name = named("packed", "packed", at);
  check_float(check, packed_name, packed);
  check.contiguous(packed_name, packed);
  const int64_t size = convs_of(method).packed_size(made) / 4;
  if (packed.numel() != size) {
    check.refuse(packed_name,
                "what pack_conv makes of this weight for method " + std::to_string(method) + ", " +
                    std::to_string(size) + " numbers",
                std::to_string(packed.numel()));
  }
  Conv conv{};
  conv.channels = made.channels;
  conv.out_channels = made.out_channels;
  conv.kernel[0] = made.kernel[0], conv.kernel[1] = made.kernel[1];
  conv.method = made.method;
  conv.packed = packed.const_data_ptr();
  if (bias) {
    const std::string bias_name = named("bias", "biases", at);
    check_float(check, bias_name, *bias);
    check.shape(bias_name, *bias, {made.out_channels}, "one number per output channel,");
    check.contiguous(bias_name, *bias);
    conv.bias = static_cast<const float*>(bias->const_data_ptr());
  }
  return conv;
}

Map Map::of(const Tensor& x) {
  return {x.const_data_ptr(),
          x.size(0),
          x.size(1),
          x.size(2),
          x.size(3),
          {x.stride(0), x.stride(1), x.stride(2), x.stride(3)},
          x.scalar_type() == ScalarType::BFloat16 ? DType::kBFloat16 : DType::kFloat32};
}

Map Map::dense(int64_t batch, int64_t channels, int64_t height, int64_t width, DType dtype) {
  const int64_t line = width * channels;
  return {nullptr, batch, channels, height, width, {height * line, 1, line, channels}, dtype};
}

void read(const Map& x, Conv& conv) {
  conv.count = 1;
  conv.sources[0] = {x.data, conv.channels};
  conv.batch = x.batch, conv.height = x.height, conv.width = x.width;
  for (int i = 0; i < 4; ++i) conv.strides[i] = x.strides[i];
}

Map set_geometry(const ArgChecker& check, const std::string& argument, const Map& x, const std::vector<int64_t>& stride,
         const std::vector<int64_t>& padding, int64_t method, Conv& conv) {
  read(x, conv);
  check_pair(check, "stride", stride, 1);
  check_pair(check, "padding", padding, 0);
  const int64_t size[] = {x.height, x.width};
  int64_t out[2];
  for (int i = 0; i < 2; ++i) {
    conv.stride[i] = stride[i], conv.padding[i] = padding[i];
    const int64_t slack = size[i] + 2 * padding[i] - conv.kernel[i];
    if (slack < 0) {
      check.refuse(argument, "a map at least as large as the kernel " + words({conv.kernel[0], conv.kernel[1]}),
                  words(x.shape()));
    }
    out[i] = slack / stride[i] + 1;
  }
  conv.out_height = out[0], conv.out_width = out[1];
  const int64_t step = conv.method == Method::kWinogradStrided ? 2 : 1;
  if (is_winograd(conv.method) && (stride[0] != step || stride[1] != step)) {
    check.refuse("stride", std::to_string(step) + " for this transform of Winograd's", words(stride));
  }
  return Map::dense(x.batch, conv.out_channels, out[0], out[1], dtype_of(method));
}

MaxPool pool_of(const ArgChecker& check, const std::string& argument, const Map& x, const std::vector<int64_t>& kernel,
                const std::vector<int64_t>& stride, const std::vector<int64_t>& padding, bool ceil_mode) {
  check_pair(check, "kernel", kernel, 1);
  check_pair(check, "stride", stride, 1);
  check_pair(check, "padding", padding, 0);
  if (padding[0] > kernel[0] / 2 || padding[1] > kernel[1] / 2) {
    check.refuse("padding", "at most half of the kernel " + words(kernel), words(padding));
  }
  MaxPool pool{};
  pool.x = x.data;
  pool.channels = x.channels, pool.height = x.height, pool.width = x.width;
  pool.out_height = windows(x.height, kernel[0], stride[0], padding[0], ceil_mode);
  pool.out_width = windows(x.width, kernel[1], stride[1], padding[1], ceil_mode);
  if (x.height == 0 || x.width == 0 || pool.out_height < 1 || pool.out_width < 1) {
    check.refuse(argument, "a map that a window " + words(kernel) + " fits in", "shape " + words(x.shape()));
  }
  for (int axis = 0; axis < 2; ++axis) {
    pool.kernel[axis] = kernel[axis], pool.stride[axis] = stride[axis], pool.padding[axis] = padding[axis];
  }
  return pool;
}

void run_conv(int64_t method, const Conv& conv, const Parallel& threads, Workspace& workspace) {
  if (conv.batch * conv.out_height * conv.out_width == 0) return;
  const ConvKernels& convs = convs_of(method);
  convs.conv(conv, workspace.of(static_cast<size_t>(convs.scratch_size(conv, threads.threads))), threads);
}

}  // namespace vovnet::cpu
