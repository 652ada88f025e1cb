// The operators' CPU kernels for torch: checks, memory, calls. Schemas and references are in vovnet/ops/packed.py.
#include <new>
#include <optional>
#include <string>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "kernels.h"
#include "memory.h"
#include "runtime.h"
#include "torch_maps.h"

namespace {

using namespace vovnet::cpu;
using vovnet::checks::Call;
using vovnet::checks::shape_of;
using vovnet::checks::words;

void check_place(const Call& call, const std::string& argument, const Tensor& tensor) {
  if (!tensor.is_cpu()) call.refuse(argument, "a tensor on the CPU", "one on " + vovnet::checks::place_of(tensor));
}

void check_float(const Call& call, const std::string& argument, const Tensor& tensor) {
  call.dtype(argument, tensor, ScalarType::Float);
  check_place(call, argument, tensor);
}

// What a method's number says: how products are computed, and, by bits, that maps and products are of bfloat16, and
// that products are of float32 nevertheless.
constexpr int64_t kBFloat16Bit = 16, kFloatProductsBit = 32;

Element element_of(int64_t method) { return method & kBFloat16Bit ? Element::kBFloat16 : Element::kFloat32; }

Numbers numbers_of(int64_t method) {
  if (element_of(method) == Element::kFloat32) return Numbers::kFloat32;
  return method & kFloatProductsBit ? Numbers::kBFloat16Maps : Numbers::kBFloat16;
}

ScalarType dtype_of(Element element) { return element == Element::kFloat32 ? ScalarType::Float : ScalarType::BFloat16; }

int64_t bytes_of(Element element) { return element == Element::kFloat32 ? 4 : 2; }

const ConvKernels& convs_of(int64_t method) { return kernels().convs[static_cast<int>(numbers_of(method))]; }

bool is_winograd(Method method) { return method >= Method::kWinograd2; }

Method method_of(const Call& call, const std::string& argument, int64_t method) {
  const int64_t number = method & ~(kBFloat16Bit | kFloatProductsBit);
  if (number < 0 || number > 4 || (method & kFloatProductsBit && !(method & kBFloat16Bit))) {
    call.refuse(argument, "0 to 4, and 16 more for bfloat16 maps and products or 48 for bfloat16 maps alone",
                std::to_string(method));
  }
  return static_cast<Method>(number);
}

void check_map(const Call& call, const std::string& argument, const Tensor& map, ScalarType dtype) {
  call.dtype(argument, map, dtype);
  check_place(call, argument, map);
  call.feature_map(argument, map);
}

constexpr int64_t kLeastChannels = 16;  // of a feature map; with fewer it is a picture

Weight weight_of(const Call& call, const std::string& argument, const Tensor& weight, int64_t method) {
  if (weight.dim() != 4 || weight.numel() == 0) {
    call.refuse(argument, "(out channels, channels, height, width)", words(shape_of(weight)));
  }
  check_float(call, argument, weight);
  const Weight made{static_cast<const float*>(weight.const_data_ptr()),
                    weight.size(0),
                    weight.size(1),
                    {weight.size(2), weight.size(3)},
                    method_of(call, "method", method)};
  const bool fits = made.kernel[0] == 3 && made.kernel[1] == 3 && made.channels >= kLeastChannels;
  if (is_winograd(made.method) && !fits) {
    call.refuse(argument, "a 3x3 kernel and 16 or more channels for Winograd's transform", words(shape_of(weight)));
  }
  if (made.method == Method::kStrassen && made.channels < kLeastChannels) {
    call.refuse(argument, "16 or more channels for Strassen's product", words(shape_of(weight)));
  }
  return made;
}

Tensor pack_conv(Tensor weight, int64_t method) {
  const Call call("pack_conv");
  const Weight made = weight_of(call, "weight", weight, method);
  call.contiguous("weight", weight);
  const ConvKernels& convs = convs_of(method);
  // Where maps are allocated: packed weights are read from end to end, on huge pages if there are any.
  Tensor packed = new_map("pack_conv", {1, convs.packed_size(made) / 4, 1, 1}, ScalarType::Float);
  convs.pack(made, packed.mutable_data_ptr(), parallel());
  return packed;
}

// A convolution but for its sources and its result.
Conv conv_of(const Call& call, const std::string& suffix, const Tensor& weight, const std::optional<Tensor>& bias,
             const Tensor& packed, int64_t method) {
  const Weight made = weight_of(call, "weight" + suffix, weight, method);
  check_float(call, "packed" + suffix, packed);
  call.contiguous("packed" + suffix, packed);
  const int64_t size = convs_of(method).packed_size(made) / 4;
  if (packed.numel() != size) {
    call.refuse("packed" + suffix,
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
    check_float(call, "bias" + suffix, *bias);
    call.shape("bias" + suffix, *bias, {made.out_channels}, "a number an output channel,");
    call.contiguous("bias" + suffix, *bias);
    conv.bias = static_cast<const float*>(bias->const_data_ptr());
  }
  return conv;
}

void run_conv(const char* op, int64_t method, const Conv& conv, const Parallel& threads) {
  if (conv.batch * conv.out_height * conv.out_width == 0) return;
  const ConvKernels& convs = convs_of(method);
  const auto bytes = static_cast<size_t>(convs.scratch_size(conv, threads.threads));
  try {
    const Scratch scratch(bytes);
    convs.conv(conv, scratch.data(), threads);
  } catch (const std::bad_alloc&) {
    no_memory(op, bytes);
  }
}

Tensor packed_conv(Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> residual, Tensor packed,
                   std::vector<int64_t> stride, std::vector<int64_t> padding, bool relu, int64_t method) {
  const Call call("packed_conv");
  Conv conv = conv_of(call, "", weight, bias, packed, method);
  if (x.dim() != 4 || x.size(1) != conv.channels) {
    call.refuse("x", "(N, " + std::to_string(conv.channels) + ", H, W), as the weight has channels",
                words(shape_of(x)));
  }
  const Element element = element_of(method);
  const ScalarType dtype = dtype_of(element);
  if (conv.channels < kLeastChannels) {
    check_float(call, "x", x);
  } else {
    check_map(call, "x", x, dtype);
  }
  if (stride.size() != 2 || stride[0] < 1 || stride[1] < 1)
    call.refuse("stride", "two steps of at least 1", words(stride));
  if (padding.size() != 2 || padding[0] < 0 || padding[1] < 0) {
    call.refuse("padding", "two numbers of at least 0", words(padding));
  }
  conv.count = 1;
  conv.sources[0] = {x.const_data_ptr(), conv.channels};
  conv.batch = x.size(0), conv.height = x.size(2), conv.width = x.size(3);
  for (int i = 0; i < 4; ++i) conv.strides[i] = x.stride(i);
  int64_t out[2];
  for (int i = 0; i < 2; ++i) {
    conv.stride[i] = stride[i], conv.padding[i] = padding[i];
    const int64_t slack = x.size(2 + i) + 2 * padding[i] - conv.kernel[i];
    if (slack < 0)
      call.refuse("x", "a map that holds the kernel " + words({conv.kernel[0], conv.kernel[1]}), words(shape_of(x)));
    out[i] = slack / stride[i] + 1;
  }
  conv.out_height = out[0], conv.out_width = out[1];
  const int64_t step = conv.method == Method::kWinogradStrided ? 2 : 1;
  if (is_winograd(conv.method) && (stride[0] != step || stride[1] != step)) {
    call.refuse("stride", std::to_string(step) + " for this transform of Winograd's", words(stride));
  }
  conv.relu = relu;
  if (residual) {
    check_map(call, "residual", *residual, dtype);
    if (residual->size(0) != conv.batch || residual->size(1) != conv.out_channels || residual->numel() == 0) {
      call.refuse("residual", "(" + std::to_string(conv.batch) + ", " + std::to_string(conv.out_channels) + ", H, W)",
                  words(shape_of(*residual)));
    }
    if (is_winograd(conv.method)) {
      call.refuse("residual", "none with Winograd's transform", words(shape_of(*residual)));
    }
    conv.residual = residual->const_data_ptr();
    conv.residual_height = residual->size(2), conv.residual_width = residual->size(3);
  }
  Tensor result = new_map("packed_conv", {conv.batch, conv.out_channels, out[0], out[1]}, dtype);
  conv.out = result.mutable_data_ptr();
  run_conv("packed_conv", method, conv, parallel());
  return result;
}

Tensor packed_osa_block(Tensor x, std::vector<Tensor> weights, std::vector<Tensor> biases, std::vector<Tensor> packed,
                        std::vector<int64_t> methods, bool identity) {
  const char* op = "packed_osa_block";
  const Call call(op);
  const size_t layers = weights.size();
  if (layers < 2 || layers > kMaxSources || biases.size() != layers || packed.size() != layers ||
      methods.size() != layers) {
    call.refuse("weights",
                "2 to " + std::to_string(kMaxSources) + ", and a bias, a packed weight and a method for each",
                std::to_string(layers) + ", " + std::to_string(biases.size()) + ", " + std::to_string(packed.size()) +
                    ", " + std::to_string(methods.size()));
  }
  if (x.dim() != 4) call.refuse("x", "a feature map (N, C, H, W)", "shape " + words(shape_of(x)));
  const Element element = element_of(methods[0]);
  const ScalarType dtype = dtype_of(element);
  check_map(call, "x", x, dtype);
  const int64_t pixels = x.size(0) * x.size(2) * x.size(3);
  std::vector<Conv> convs;
  int64_t channels = x.size(1), sum = x.size(1), inside = 0;
  for (size_t i = 0; i < layers; ++i) {
    const std::string suffix = "s[" + std::to_string(i) + "]";
    Conv conv = conv_of(call, suffix, weights[i], biases[i], packed[i], methods[i]);
    const bool last = i + 1 == layers;
    const int64_t expected = last ? sum : channels, kernel = last ? 1 : 3;
    if (conv.channels != expected || conv.kernel[0] != kernel || conv.kernel[1] != kernel) {
      call.refuse("weight" + suffix,
                  "(out channels, " + std::to_string(expected) + ", " + std::to_string(kernel) + ", " +
                      std::to_string(kernel) + ")",
                  words(shape_of(weights[i])));
    }
    if (conv.channels < kLeastChannels) {
      call.refuse("weight" + suffix, "16 or more channels", words(shape_of(weights[i])));
    }
    if (element_of(methods[i]) != element)
      call.refuse("method" + suffix, "all of one precision", std::to_string(methods[i]));
    if (conv.method == Method::kWinogradStrided)
      call.refuse("method" + suffix, "one for a stride of 1", std::to_string(methods[i]));
    conv.batch = x.size(0), conv.height = conv.out_height = x.size(2), conv.width = conv.out_width = x.size(3);
    conv.stride[0] = conv.stride[1] = 1;
    conv.padding[0] = conv.padding[1] = kernel / 2;
    conv.relu = true;
    channels = conv.out_channels;
    if (!last) {
      sum += channels;
      inside += channels;
    }
    convs.push_back(conv);
  }
  if (identity && channels != x.size(1)) {
    call.refuse("identity", "False, or as many channels as the result's " + std::to_string(channels),
                words(shape_of(x)));
  }
  Tensor result = new_map(op, {x.size(0), channels, x.size(2), x.size(3)}, dtype);
  if (pixels == 0) return result;
  const size_t bytes = static_cast<size_t>(inside) * static_cast<size_t>(pixels) * bytes_of(element);
  try {
    const Scratch maps(bytes);
    const Parallel threads = parallel();
    auto* next = static_cast<char*>(maps.data());
    Conv& aggregation = convs.back();
    aggregation.sources[0] = {x.const_data_ptr(), x.size(1)};
    aggregation.count = 1;
    for (size_t i = 0; i + 1 < layers; ++i) {
      Conv& conv = convs[i];
      conv.sources[0] = aggregation.sources[i];
      conv.count = 1;
      conv.out = next;
      conv.next = convs[i + 1].packed;
      conv.next_bytes = packed[i + 1].numel() * 4;
      aggregation.sources[aggregation.count++] = {next, conv.out_channels};
      next += conv.out_channels * pixels * bytes_of(element);
      run_conv(op, methods[i], conv, threads);
    }
    if (identity) {
      aggregation.residual = x.const_data_ptr();
      aggregation.residual_height = aggregation.height, aggregation.residual_width = aggregation.width;
    }
    aggregation.out = result.mutable_data_ptr();
    run_conv(op, methods.back(), aggregation, threads);
  } catch (const std::bad_alloc&) {
    no_memory(op, bytes);
  }
  return result;
}

std::string instruction_set() { return kernels().name; }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(vovnet, m) { m.def("_cpu_instruction_set() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(vovnet, CompositeExplicitAutograd, m) {
  m.impl("_cpu_instruction_set", TORCH_BOX(&instruction_set));
}

STABLE_TORCH_LIBRARY_IMPL(vovnet, CPU, m) {
  m.impl("pack_conv", TORCH_BOX(&pack_conv));
  m.impl("packed_conv", TORCH_BOX(&packed_conv));
  m.impl("packed_osa_block", TORCH_BOX(&packed_osa_block));
}
