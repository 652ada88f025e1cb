#include "launch.cuh"

namespace vovnet {

bool aggregate_supported(DType dtype, int capability, const int* channels, int count, int out_channels) {
  if (capability < 75 || (dtype == DType::kBFloat16 && capability < BFloat16s::kOldestArchitecture)) return false;
  return total_columns(channels, count, dtype) > 0 && output_columns_supported(out_channels);
}

Result aggregate_forward(const Inputs& x, const void* weight, const void* bias, const void* residual, void* out,
                         uint8_t* mask, int64_t pixels, int out_channels, bool relu, DType dtype,
                         cudaStream_t stream) {
  const int in_channels = total_columns(x.channels, x.count, dtype);
  if (in_channels < 0 || !output_columns_supported(out_channels) || pixels < 0) return invalid(kBadShape);
  if (pixels == 0) return done();
  bool usable = weight != nullptr && out != nullptr;
  usable = usable && aligned(weight) && aligned(bias) && aligned(residual) && aligned(out);
  Problem problem{};
  int column = 0;
  for (int i = 0; i < x.count; ++i) {
    usable = usable && x.data[i] != nullptr && aligned(x.data[i]);
    append(problem.a, x.data[i], x.channels[i], x.channels[i]);
    append(problem.b, column_of(weight, column, dtype), x.channels[i], in_channels);
    column += x.channels[i];
  }
  if (!usable) return invalid(kBadPointer);
  append(problem.out, out, out_channels, out_channels);
  problem.bias = bias;
  problem.residual = residual;
  problem.mask = mask;
  problem.relu = relu;
  const int64_t blocks = lay_out<Forward>(problem, pixels, out_channels, 1, dtype);
  return launch_product<Forward>(dtype, problem, blocks, stream);
}

}  // namespace vovnet
