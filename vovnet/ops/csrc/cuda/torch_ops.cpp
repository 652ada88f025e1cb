// The CUDA kernels as Torch operators: checks, device guard, current stream, memory, launches.
//
// Only PyTorch's stable C++ interface is used (lists of tensors need PyTorch 2.10): it compiles in seconds, and the
// library works with later releases, too. vovnet.ops calls these operators inside the public ones. They have no
// autograd, take channels-last tensors only, and refuse what the kernels do not support; vovnet.ops calls
// `_cuda_supported` first.
#include <array>
#include <tuple>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/shim_utils.h>

#include "kernels.h"
#include "../torch_checks.h"

namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using vovnet::checks::ArgChecker;
using vovnet::checks::shape_of;
using vovnet::checks::words;

vovnet::DType kernel_dtype(ScalarType dtype, bool tf32) {
  if (dtype == ScalarType::Half) return vovnet::DType::kFloat16;
  if (dtype == ScalarType::BFloat16) return vovnet::DType::kBFloat16;
  return tf32 ? vovnet::DType::kTensorFloat32 : vovnet::DType::kFloat32;
}

int64_t pixels_of(const Tensor& map) { return map.size(0) * map.size(2) * map.size(3); }

Tensor new_map(const Tensor& like, int64_t channels) {
  const std::array<int64_t, 4> shape{like.size(0), channels, like.size(2), like.size(3)};
  return torch::stable::empty(shape, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              MemoryFormat::ChannelsLast);
}

Tensor new_flat(const Tensor& like, int64_t count, ScalarType dtype) {
  const std::array<int64_t, 1> shape{count};
  return torch::stable::new_empty(like, shape, dtype);
}

const void* data_or_null(const std::optional<Tensor>& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }

// A workspace may be freed as soon as its kernels are queued: torch's allocator reuses its memory only in the order of
// the stream.
cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

void check_result(const char* op, const vovnet::Result& result) {
  if (result.status == vovnet::Status::kOk) return;
  std::string text = "vovnet::" + std::string(op) + ": " + (result.message ? result.message : "the launch failed");
  if (result.status == vovnet::Status::kUnsupported) {
    text += " (no kernel takes this case: use the reference, VOVNET_OPS=off)";
  }
  if (result.status == vovnet::Status::kCuda) {
    char* cause = nullptr;
    torch_c10_cuda_check_msg(result.cuda_error, __FILE__, op, __LINE__, true, &cause);
    if (cause != nullptr) {
      text += std::string(": ") + cause;
      torch_c10_cuda_free_error_msg(cause);
    }
  }
  throw std::runtime_error(text);
}

// ---- osa_aggregate

struct Columns {
  std::vector<int> channels;  // of each input
  int64_t total = 0;          // the weight's columns
};

// Checks the maps (N, C_i, H, W): their number, one dtype, and one N, H, W.
Columns check_inputs(const ArgChecker& check, const std::vector<Tensor>& inputs) {
  if (inputs.empty() || inputs.size() > vovnet::kMaxInputs) {
    check.refuse("inputs", "1 to " + std::to_string(vovnet::kMaxInputs) + " feature maps",
                std::to_string(inputs.size()));
  }
  Columns columns;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const std::string name = "inputs[" + std::to_string(i) + "]";
    check.feature_map(name, inputs[i]);
    check.floating(name, inputs[i]);
    check.dtype(name, inputs[i], inputs[0].scalar_type());
    std::vector<int64_t> same = shape_of(inputs[0]);
    same[1] = inputs[i].size(1);
    check.shape(name, inputs[i], same, "inputs[0]'s N, H, W, so");
    columns.channels.push_back(check.narrow(name, inputs[i].size(1)));
    columns.total += inputs[i].size(1);
  }
  check.narrow("inputs", columns.total);
  return columns;
}

// Checks a contiguous weight (out_channels, sum of the inputs' channels); returns out_channels.
int check_weight(const ArgChecker& check, const Tensor& weight, const Tensor& like, int64_t columns) {
  if (weight.dim() != 2 || weight.size(1) != columns) {
    check.refuse("weight", "(out_channels, " + std::to_string(columns) + "), a column for each channel of the inputs",
                words(shape_of(weight)));
  }
  check.dtype("weight", weight, like.scalar_type());
  check.contiguous("weight", weight);
  return check.narrow("weight", weight.size(0));
}

// Checks the gradient of the sum (N, out_channels, H, W), with the N, H, W of the inputs.
void check_gradient(const ArgChecker& check, const Tensor& g, const Tensor& like) {
  check.feature_map("g", g);
  check.dtype("g", g, like.scalar_type());
  std::vector<int64_t> expected = shape_of(like);
  expected[1] = g.size(1);
  check.shape("g", g, expected, "inputs[0]'s N, H, W, so");
}

void check_on_cuda(ArgChecker& check, const std::vector<Tensor>& inputs) {
  for (size_t i = 0; i < inputs.size(); ++i) check.on_cuda("inputs[" + std::to_string(i) + "]", inputs[i]);
}

vovnet::Inputs kernel_inputs(const std::vector<Tensor>& inputs, const Columns& columns) {
  vovnet::Inputs x{};
  x.count = static_cast<int>(inputs.size());
  for (int i = 0; i < x.count; ++i) {
    x.data[i] = inputs[i].const_data_ptr();
    x.channels[i] = columns.channels[i];
  }
  return x;
}

// True if the kernels support these on a GPU of `capability` (75, 80, ...). The tensors' device is not checked.
bool supported(const std::vector<Tensor>& inputs, const Tensor& weight, int64_t capability, bool tf32) {
  if (inputs.empty() || inputs.size() > vovnet::kMaxInputs || weight.numel() == 0) return false;
  const ScalarType dtype = inputs[0].scalar_type();
  if (dtype != ScalarType::Half && dtype != ScalarType::BFloat16 && dtype != ScalarType::Float) return false;
  std::vector<int> channels;
  for (const Tensor& map : inputs) {
    if (map.dim() != 4 || map.scalar_type() != dtype || map.size(1) > std::numeric_limits<int>::max()) return false;
    if (reinterpret_cast<uintptr_t>(map.const_data_ptr()) % 16 != 0) return false;
    channels.push_back(static_cast<int>(map.size(1)));
  }
  if (reinterpret_cast<uintptr_t>(weight.const_data_ptr()) % 16 != 0) return false;
  return vovnet::aggregate_supported(kernel_dtype(dtype, tf32), static_cast<int>(capability), channels.data(),
                                     static_cast<int>(channels.size()), static_cast<int>(weight.size(0)));
}

std::tuple<Tensor, Tensor> aggregate_forward(const std::vector<Tensor>& inputs, const Tensor& weight,
                                             const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                                             bool relu, bool with_mask, bool tf32) {
  ArgChecker check("_cuda_aggregate_forward");
  const Columns columns = check_inputs(check, inputs);
  const Tensor& like = inputs[0];
  const int out_channels = check_weight(check, weight, like, columns.total);
  if (bias) {
    check.shape("bias", *bias, {out_channels}, "a value for each output channel, so");
    check.dtype("bias", *bias, like.scalar_type());
    check.contiguous("bias", *bias);
  }
  if (residual) {
    check.feature_map("residual", *residual);
    check.shape("residual", *residual, {like.size(0), out_channels, like.size(2), like.size(3)}, "the result's shape");
    check.dtype("residual", *residual, like.scalar_type());
  }
  check_on_cuda(check, inputs);
  check.on_cuda("weight", weight);
  if (bias) check.on_cuda("bias", *bias);
  if (residual) check.on_cuda("residual", *residual);

  const torch::stable::accelerator::DeviceGuard guard(check.device());
  Tensor out = new_map(like, out_channels);
  Tensor mask = new_flat(like, with_mask ? (out.numel() + 7) / 8 : 0, ScalarType::Byte);
  if (out.numel() > 0) {
    check_result("_cuda_aggregate_forward",
                 vovnet::aggregate_forward(kernel_inputs(inputs, columns), weight.const_data_ptr(), data_or_null(bias),
                                           data_or_null(residual), out.mutable_data_ptr(),
                                           with_mask ? static_cast<uint8_t*>(mask.mutable_data_ptr()) : nullptr,
                                           pixels_of(like), out_channels, relu, kernel_dtype(like.scalar_type(), tf32),
                                           current_stream(check.device())));
  }
  return {out, mask};
}

std::vector<Tensor> aggregate_input_gradients(const Tensor& g, const Tensor& weight, const std::vector<Tensor>& inputs,
                                              const std::vector<bool>& wanted, bool tf32) {
  ArgChecker check("_cuda_aggregate_input_gradients");
  const Columns columns = check_inputs(check, inputs);
  check_gradient(check, g, inputs[0]);
  const int out_channels = check_weight(check, weight, inputs[0], columns.total);
  if (g.size(1) != out_channels) {
    check.refuse("g", std::to_string(out_channels) + " channels as weight has rows", std::to_string(g.size(1)));
  }
  if (wanted.size() != inputs.size()) {
    check.refuse("wanted", "a flag for each of the " + std::to_string(inputs.size()) + " inputs",
                std::to_string(wanted.size()));
  }
  check.on_cuda("g", g);
  check.on_cuda("weight", weight);
  check_on_cuda(check, inputs);

  const torch::stable::accelerator::DeviceGuard guard(check.device());
  std::vector<Tensor> gradients;
  vovnet::MutableInputs dx{};
  dx.count = static_cast<int>(inputs.size());
  bool any = false;
  for (int i = 0; i < dx.count; ++i) {
    gradients.push_back(wanted[i] ? new_map(inputs[i], columns.channels[i]) : new_flat(g, 0, g.scalar_type()));
    dx.channels[i] = columns.channels[i];
    dx.data[i] = wanted[i] ? gradients.back().mutable_data_ptr() : nullptr;
    any = any || gradients.back().numel() > 0;
  }
  if (any) {
    check_result("_cuda_aggregate_input_gradients",
                 vovnet::aggregate_input_gradients(g.const_data_ptr(), weight.const_data_ptr(), dx, pixels_of(g),
                                                   out_channels, kernel_dtype(g.scalar_type(), tf32),
                                                   current_stream(check.device())));
  }
  return gradients;
}

Tensor aggregate_weight_gradient(const Tensor& g, const std::vector<Tensor>& inputs, bool tf32) {
  ArgChecker check("_cuda_aggregate_weight_gradient");
  const Columns columns = check_inputs(check, inputs);
  check_gradient(check, g, inputs[0]);
  const int out_channels = check.narrow("g", g.size(1));
  check.on_cuda("g", g);
  check_on_cuda(check, inputs);

  const torch::stable::accelerator::DeviceGuard guard(check.device());
  const std::array<int64_t, 2> shape{out_channels, columns.total};
  const int64_t pixels = pixels_of(g);
  if (pixels == 0 || out_channels == 0 || columns.total == 0) return torch::stable::new_zeros(g, shape);
  Tensor dweight = torch::stable::new_empty(g, shape);
  const vovnet::DType dtype = kernel_dtype(g.scalar_type(), tf32);
  const size_t bytes = vovnet::aggregate_weight_gradient_workspace(
      columns.channels.data(), static_cast<int>(inputs.size()), pixels, out_channels, dtype);
  const Tensor workspace = new_flat(g, static_cast<int64_t>(bytes), ScalarType::Byte);
  check_result("_cuda_aggregate_weight_gradient",
               vovnet::aggregate_weight_gradient(g.const_data_ptr(), kernel_inputs(inputs, columns),
                                                 dweight.mutable_data_ptr(), workspace.mutable_data_ptr(), pixels,
                                                 out_channels, dtype, current_stream(check.device())));
  return dweight;
}

// ---- The gradient of a ReLU, and its sum per channel

void check_relu_arguments(const ArgChecker& check, const Tensor& grad, const std::optional<Tensor>& out,
                          const std::optional<Tensor>& mask) {
  check.feature_map("grad", grad);
  check.floating("grad", grad);
  if (out && mask) check.refuse("out, mask", "at most one of them", "both");
  if (out) {
    check.feature_map("out", *out);
    check.shape("out", *out, shape_of(grad), "grad's shape");
    check.dtype("out", *out, grad.scalar_type());
  }
  if (mask) {
    check.dtype("mask", *mask, ScalarType::Byte);
    check.shape("mask", *mask, {(grad.numel() + 7) / 8}, "a bit for each element of grad, so");
    check.contiguous("mask", *mask);
  }
}

std::tuple<Tensor, Tensor> relu_backward(const Tensor& grad, const std::optional<Tensor>& out,
                                         const std::optional<Tensor>& mask, bool want_g, bool want_shift) {
  ArgChecker check("_cuda_relu_backward");
  check_relu_arguments(check, grad, out, mask);
  const int channels = check.narrow("grad", grad.size(1));
  check.on_cuda("grad", grad);
  if (out) check.on_cuda("out", *out);
  if (mask) check.on_cuda("mask", *mask);

  const torch::stable::accelerator::DeviceGuard guard(check.device());
  Tensor g = want_g ? new_map(grad, channels) : new_flat(grad, 0, grad.scalar_type());
  const std::array<int64_t, 1> shift_shape{want_shift ? channels : 0};
  if (grad.numel() == 0) return {g, torch::stable::new_zeros(grad, shift_shape, ScalarType::Float)};
  Tensor shift = torch::stable::new_empty(grad, shift_shape, ScalarType::Float);
  if (!want_g && !want_shift) return {g, shift};
  const int64_t pixels = pixels_of(grad);
  const size_t bytes = want_shift ? vovnet::relu_backward_workspace(pixels, channels) : 0;
  const Tensor workspace = new_flat(grad, static_cast<int64_t>(bytes), ScalarType::Byte);
  check_result("_cuda_relu_backward",
               vovnet::relu_backward(grad.const_data_ptr(), data_or_null(out),
                                     static_cast<const uint8_t*>(data_or_null(mask)),
                                     want_g ? g.mutable_data_ptr() : nullptr,
                                     want_shift ? static_cast<float*>(shift.mutable_data_ptr()) : nullptr,
                                     workspace.mutable_data_ptr(), pixels, channels,
                                     kernel_dtype(grad.scalar_type(), false), current_stream(check.device())));
  return {g, shift};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(VOVNET_NAMESPACE, library) {
  library.def("_cuda_supported(Tensor[] inputs, Tensor weight, int capability, bool tf32) -> bool");
  library.def(
      "_cuda_aggregate_forward(Tensor[] inputs, Tensor weight, Tensor? bias, Tensor? residual, bool relu, "
      "bool with_mask, bool tf32) -> (Tensor, Tensor)");
  library.def(
      "_cuda_aggregate_input_gradients(Tensor g, Tensor weight, Tensor[] inputs, bool[] wanted, bool tf32) "
      "-> Tensor[]");
  library.def("_cuda_aggregate_weight_gradient(Tensor g, Tensor[] inputs, bool tf32) -> Tensor");
  library.def(
      "_cuda_relu_backward(Tensor grad, Tensor? out, Tensor? mask, bool want_g, bool want_shift) "
      "-> (Tensor, Tensor)");
}

// CPU tensors reach the same functions, because their error is clearer than Torch's own, a page of dispatch keys.
#define VOVNET_IMPLEMENTATIONS(library)                                                          \
  library.impl("_cuda_supported", TORCH_BOX(&supported));                                        \
  library.impl("_cuda_aggregate_forward", TORCH_BOX(&aggregate_forward));                        \
  library.impl("_cuda_aggregate_input_gradients", TORCH_BOX(&aggregate_input_gradients));        \
  library.impl("_cuda_aggregate_weight_gradient", TORCH_BOX(&aggregate_weight_gradient));        \
  library.impl("_cuda_relu_backward", TORCH_BOX(&relu_backward))

STABLE_TORCH_LIBRARY_IMPL(VOVNET_NAMESPACE, CUDA, library) { VOVNET_IMPLEMENTATIONS(library); }
STABLE_TORCH_LIBRARY_IMPL(VOVNET_NAMESPACE, CPU, library) { VOVNET_IMPLEMENTATIONS(library); }
