#include "sum_partials.cuh"

namespace vovnet {

template <class Out>
__global__ void __launch_bounds__(kSumThreads)
    sum_partials_kernel(const float* partials, Out* out, int64_t columns, int count) {
  const int line = static_cast<int>(threadIdx.x) / kSumColumns;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kSumColumns + threadIdx.x % kSumColumns;
  float sum = 0.0f;
  if (column < columns) {
#pragma unroll 4
    for (int i = line; i < count; i += kSumLines) sum += load(partials + i * columns + column);
  }
  float* sums = reinterpret_cast<float*>(shared_memory());  // (lines, columns)
  store_shared(sums + threadIdx.x, sum);
  block_barrier();
  if (line > 0 || column >= columns) return;
  for (int i = 1; i < kSumLines; ++i) sum += load_shared(sums + i * kSumColumns + threadIdx.x);
  store(out + column, from_float<Out>(sum));
}

template <class Out>
static Result launch_sum(const float* partials, void* out, int64_t columns, int count, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(divide_up(columns, kSumColumns));
  return launch(sum_partials_kernel<Out>, blocks, kSumThreads, kSumBytes, stream, partials,
                static_cast<Out*>(out), columns, count);
}

Result sum_partials(const float* partials, void* out, int64_t columns, int count, DType dtype, cudaStream_t stream) {
  if (divide_up(columns, kSumColumns) > kMaxBlocks) return unsupported("expected fewer than 2^36 sums");
  switch (dtype) {
    case DType::kFloat16: return launch_sum<Half>(partials, out, columns, count, stream);
    case DType::kBFloat16: return launch_sum<BFloat16>(partials, out, columns, count, stream);
    default: return launch_sum<float>(partials, out, columns, count, stream);
  }
}

}  // namespace vovnet
