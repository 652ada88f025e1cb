// The CUDA kernels of One-Shot Aggregation, as functions on raw device pointers. Nothing here knows Torch.
//
// Layout: channels-last. A feature map of N images is a row-major matrix (pixels = N*H*W) x channels; a weight is
// row-major (out_channels) x (sum of the inputs' channels), the columns in the order of the inputs.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_runtime_api.h>
#else
typedef struct CUstream_st* cudaStream_t;
#endif

namespace vovnet {

constexpr int kMaxInputs = 16;

enum class DType : int { kFloat16 = 0, kBFloat16 = 1, kFloat32 = 2, kTensorFloat32 = 3 };  // TF32 is stored as float32

// The outcome of a launch. After `kUnsupported` the caller takes the reference path.
enum class Status : int { kOk = 0, kUnsupported = 1, kInvalid = 2, kCuda = 3 };

struct Result {
  Status status;
  int cuda_error;       // a cudaError_t where status is kCuda
  const char* message;  // static text
};

struct Inputs {
  const void* data[kMaxInputs];    // each (pixels, channels[i])
  int channels[kMaxInputs];
  int count;
};

struct MutableInputs {
  void* data[kMaxInputs];          // each (pixels, channels[i]); null if the gradient is not wanted
  int channels[kMaxInputs];
  int count;
};

// True if the kernels support the arguments: the dtype on this compute capability (75, 80, ...), 1 to kMaxInputs
// inputs, channels in multiples of 16 bytes, out_channels in multiples of 8. All pointers must be multiples of 16
// bytes.
bool aggregate_supported(DType dtype, int capability, const int* channels, int count, int out_channels);

// out = relu?(sum_i x_i W_i^T + bias) + residual?
//   weight (out_channels, sum channels), bias (out_channels) or null, residual (pixels, out_channels) or null: of dtype
//   out (pixels, out_channels) of dtype
//   mask null, or ceil(pixels * out_channels / 8) bytes: bit e % 8 of byte e / 8 is set if element e of the sum,
//   rounded to dtype and before the residual, is not <= 0; NaN sets its bit, as in PyTorch
Result aggregate_forward(const Inputs& x, const void* weight, const void* bias, const void* residual, void* out,
                         uint8_t* mask, int64_t pixels, int out_channels, bool relu, DType dtype, cudaStream_t stream);

// dx_i = g W_i, each written directly to its own tensor; g (pixels, out_channels).
Result aggregate_input_gradients(const void* g, const void* weight, const MutableInputs& dx, int64_t pixels,
                                 int out_channels, DType dtype, cudaStream_t stream);

// dweight = g^T x (out_channels, sum channels), reduced over pixels in a fixed order through `workspace`
// (float32, `aggregate_weight_gradient_workspace` bytes), so that equal inputs give equal bits.
size_t aggregate_weight_gradient_workspace(const int* channels, int count, int64_t pixels, int out_channels,
                                           DType dtype);
Result aggregate_weight_gradient(const void* g, const Inputs& x, void* dweight, void* workspace, int64_t pixels,
                                 int out_channels, DType dtype, cudaStream_t stream);

// g = grad * keep, and dshift = the sum of g over pixels, in one pass.
//   keep: the bit of `mask` (as aggregate_forward writes it); if mask is null, !(out <= 0); if both are null, true
//   Any number of channels. Multiples of 8 are read 16 bytes at once; the pointers must then be multiples of 16 bytes.
//   dshift (channels) float32 or null, reduced in a fixed order through `workspace`
//   g may be grad itself, or null if only dshift is wanted
size_t relu_backward_workspace(int64_t pixels, int channels);
Result relu_backward(const void* grad, const void* out, const uint8_t* mask, void* g, float* dshift, void* workspace,
                     int64_t pixels, int channels, DType dtype, cudaStream_t stream);

// What a build's report needs for each kernel beside the output of ptxas: threads and dynamic shared memory of a
// launch, from the constants that the launch uses. `name` is what c++filt prints, without namespaces, arguments and
// casts: "aggregate_kernel<__half, 128, 64, 3>".
struct KernelLaunch {
  const char* name;
  int threads;
  int dynamic_shared_bytes;
};

// Points `launches` to the static table of kernels for a capability (75, 80, ...); returns their number.
extern "C" int vovnet_kernel_launches(int capability, const KernelLaunch** launches);

}  // namespace vovnet
