// The kernels' launchers with C linkage, for ctypes. Pointers are the host's, registered with `emulation_allocate` of machine.h.
#include <string>

#include "kernels.h"

namespace {

std::string message;

int finish(const vovnet::Result& result) {
  message = result.message;
  return static_cast<int>(result.status);
}
template <class List, class Pointer>
List list_of(Pointer* data, const int* channels, int count) {
  List list{};
  list.count = count;
  for (int i = 0; i < count && i < vovnet::kMaxInputs; ++i) {
    list.data[i] = data[i];
    list.channels[i] = channels[i];
  }
  return list;
}

}  // namespace

extern "C" {

const char* emulation_message() { return message.c_str(); }

int emulated_supported(int dtype, int capability, const int* channels, int count, int out_channels) {
  return vovnet::aggregate_supported(static_cast<vovnet::DType>(dtype), capability, channels, count, out_channels);
}

int emulated_forward(const void** x, const int* channels, int count, const void* weight, const void* bias,
                     const void* residual, void* out, uint8_t* mask, int64_t pixels, int out_channels, int relu,
                     int dtype) {
  return finish(vovnet::aggregate_forward(list_of<vovnet::Inputs>(x, channels, count), weight, bias, residual, out,
                                          mask, pixels, out_channels, relu != 0, static_cast<vovnet::DType>(dtype),
                                          nullptr));
}

int emulated_input_gradients(const void* g, const void* weight, void** dx, const int* channels, int count,
                             int64_t pixels, int out_channels, int dtype) {
  return finish(vovnet::aggregate_input_gradients(g, weight, list_of<vovnet::MutableInputs>(dx, channels, count),
                                                  pixels, out_channels, static_cast<vovnet::DType>(dtype), nullptr));
}

size_t emulated_weight_gradient_workspace(const int* channels, int count, int64_t pixels, int out_channels,
                                          int dtype) {
  return vovnet::aggregate_weight_gradient_workspace(channels, count, pixels, out_channels,
                                                     static_cast<vovnet::DType>(dtype));
}
int emulated_weight_gradient(const void* g, const void** x, const int* channels, int count, void* dweight,
                             void* workspace, int64_t pixels, int out_channels, int dtype) {
  return finish(vovnet::aggregate_weight_gradient(g, list_of<vovnet::Inputs>(x, channels, count), dweight, workspace,
                                                  pixels, out_channels, static_cast<vovnet::DType>(dtype), nullptr));
}

size_t emulated_relu_backward_workspace(int64_t pixels, int channels) {
  return vovnet::relu_backward_workspace(pixels, channels);
}
int emulated_relu_backward(const void* grad, const void* out, const uint8_t* mask, void* g, float* dshift,
                           void* workspace, int64_t pixels, int channels, int dtype) {
  return finish(vovnet::relu_backward(grad, out, mask, g, dshift, workspace, pixels, channels,
                                      static_cast<vovnet::DType>(dtype), nullptr));
}

}  // extern "C"
