#include "sum_partials.cuh"

namespace vovnet {

Result aggregate_input_gradients(const void* g, const void* weight, const MutableInputs& dx, int64_t pixels,
                                 int out_channels, DType dtype, cudaStream_t stream) {
  const int in_channels = total_columns(dx.channels, dx.count, dtype);
  if (in_channels < 0 || !output_columns_supported(out_channels) || pixels < 0) return invalid(kBadShape);
  if (pixels == 0) return done();
  bool usable = g != nullptr && weight != nullptr && aligned(g) && aligned(weight);
  Problem problem{};
  append(problem.a, g, out_channels, out_channels);
  int column = 0;
  int wanted = 0;
  for (int i = 0; i < dx.count; ++i) {
    if (dx.data[i] != nullptr) {
      usable = usable && aligned(dx.data[i]);
      append(problem.b, column_of(weight, column, dtype), dx.channels[i], in_channels);
      append(problem.out, dx.data[i], dx.channels[i], dx.channels[i]);
      wanted += dx.channels[i];
    }
    column += dx.channels[i];
  }
  if (!usable) return invalid(kBadPointer);
  if (wanted == 0) return done();
  problem.depth = out_channels;
  const int64_t blocks = lay_out<InputGradients>(problem, pixels, wanted, 1, dtype);
  return launch_product<InputGradients>(dtype, problem, blocks, stream);
}

// How pixels are split over blocks: enough blocks for a large GPU, but at least 512 pixels each, so that adding the
// partial sums is cheap. It depends on the shapes alone, so that every GPU adds in the same order.
struct Splits {
  int64_t pixels;  // of every split but the last
  int count;
};
static Splits split(int64_t pixels, int64_t tiles, DType dtype) {
  const int64_t step = kLineBytes / element_bytes(dtype);
  int64_t count = divide_up(256, tiles);
  if (count > divide_up(pixels, 512)) count = divide_up(pixels, 512);
  if (count < 1) return {0, 0};
  const int64_t each = divide_up(divide_up(pixels, count), step) * step;
  return {each, static_cast<int>(divide_up(pixels, each))};
}
static Splits weight_splits(int in_channels, int64_t pixels, int out_channels, DType dtype) {
  return split(pixels, divide_up(out_channels, kTile) * divide_up(in_channels, kTile), dtype);
}

size_t aggregate_weight_gradient_workspace(const int* channels, int count, int64_t pixels, int out_channels,
                                           DType dtype) {
  const int in_channels = total_columns(channels, count, dtype);
  if (in_channels < 0 || !output_columns_supported(out_channels) || pixels < 0) return 0;
  const auto elements = static_cast<size_t>(in_channels) * static_cast<size_t>(out_channels);
  return static_cast<size_t>(weight_splits(in_channels, pixels, out_channels, dtype).count) * elements * sizeof(float);
}

Result aggregate_weight_gradient(const void* g, const Inputs& x, void* dweight, void* workspace, int64_t pixels,
                                 int out_channels, DType dtype, cudaStream_t stream) {
  const int in_channels = total_columns(x.channels, x.count, dtype);
  if (in_channels < 0 || !output_columns_supported(out_channels) || pixels < 0) return invalid(kBadShape);
  const Splits splits = weight_splits(in_channels, pixels, out_channels, dtype);
  const int64_t elements = static_cast<int64_t>(in_channels) * out_channels;
  bool usable = dweight != nullptr && aligned(dweight) && aligned(workspace) && aligned(g);
  usable = usable && (pixels == 0 || (g != nullptr && workspace != nullptr));
  Problem problem{};
  append(problem.a, g, out_channels, out_channels);
  for (int i = 0; i < x.count; ++i) {
    usable = usable && (pixels == 0 || x.data[i] != nullptr) && aligned(x.data[i]);
    append(problem.b, x.data[i], x.channels[i], x.channels[i]);
  }
  if (!usable) return invalid(kBadPointer);
  if (splits.count > 0) {
    append(problem.out, workspace, in_channels, in_channels);
    problem.depth = pixels;
    problem.split_depth = splits.pixels;
    problem.split_stride = elements;
    const int64_t blocks = lay_out<WeightGradient>(problem, out_channels, in_channels, splits.count, dtype);
    const Result result = launch_product<WeightGradient>(dtype, problem, blocks, stream);
    if (result.status != Status::kOk) return result;
  }
  return sum_partials(static_cast<const float*>(workspace), dweight, elements, splits.count, dtype, stream);
}

}  // namespace vovnet
