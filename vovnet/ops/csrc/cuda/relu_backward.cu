#include "relu_backward.cuh"

namespace vovnet {

// How a feature map is split into blocks: by channels, then by pixels into at most 1024 blocks. It depends on the
// shapes alone, so that every GPU adds in the same order.
struct ReluLayout {
  int elements, lanes, groups, slabs;
  int64_t slab;
};
static ReluLayout relu_layout(int64_t pixels, int channels) {
  ReluLayout layout{};
  layout.elements = channels % kRun == 0 ? kRun : 1;
  const int runs = channels / layout.elements;
  layout.lanes = 1;
  while (layout.lanes < runs && layout.lanes < 32) layout.lanes *= 2;
  layout.groups = static_cast<int>(divide_up(runs, layout.lanes));
  const int64_t lines = kReluThreads / layout.lanes;
  int64_t slabs = divide_up(1024, layout.groups);
  if (slabs > divide_up(pixels, 4 * lines)) slabs = divide_up(pixels, 4 * lines);
  if (slabs < 1) slabs = 1;
  layout.slab = divide_up(pixels, slabs);
  layout.slabs = layout.slab > 0 ? static_cast<int>(divide_up(pixels, layout.slab)) : 0;
  return layout;
}

size_t relu_backward_workspace(int64_t pixels, int channels) {
  if (pixels < 0 || channels < 1) return 0;
  return static_cast<size_t>(relu_layout(pixels, channels).slabs) * static_cast<size_t>(channels) * sizeof(float);
}

template <class T>
static Result launch_relu(const ReluLayout& layout, const ReluProblem& problem, cudaStream_t stream) {
  const auto kernel = layout.elements == kRun ? relu_backward_kernel<T, kRun> : relu_backward_kernel<T, 1>;
  const auto blocks = static_cast<unsigned>(layout.groups) * static_cast<unsigned>(layout.slabs);
  return launch(kernel, blocks, kReluThreads, kReluBytes, stream, problem);
}

Result relu_backward(const void* grad, const void* out, const uint8_t* mask, void* g, float* dshift, void* workspace,
                     int64_t pixels, int channels, DType dtype, cudaStream_t stream) {
  if (pixels < 0 || channels < 1 || channels > kMaxColumns) return invalid("expected pixels >= 0, channels in 1..2^24");
  if (g == nullptr && dshift == nullptr) return done();
  const ReluLayout layout = relu_layout(pixels, channels);
  if (layout.slabs > 0) {
    bool usable = grad != nullptr && (dshift == nullptr || workspace != nullptr);
    if (layout.elements == kRun) usable = usable && aligned(grad) && aligned(out) && aligned(g);
    if (!usable) return invalid(kBadPointer);
    const ReluProblem problem{grad, out, mask, g, dshift != nullptr ? static_cast<float*>(workspace) : nullptr,
                              pixels, channels, layout.lanes, layout.groups, layout.slab};
    Result result = done();
    switch (dtype) {
      case DType::kFloat16: result = launch_relu<Half>(layout, problem, stream); break;
      case DType::kBFloat16: result = launch_relu<BFloat16>(layout, problem, stream); break;
      default: result = launch_relu<float>(layout, problem, stream);
    }
    if (result.status != Status::kOk) return result;
  }
  if (dshift == nullptr) return done();
  return sum_partials(static_cast<const float*>(workspace), dshift, channels, layout.slabs, DType::kFloat32, stream);
}

}  // namespace vovnet
