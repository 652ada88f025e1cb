// What the launchers share: checks, the geometry of a product, the choice of the kernel.
#pragma once

#include "aggregate.cuh"

namespace vovnet {

constexpr int kMaxColumns = 1 << 24;                // of an operand, over all panels
constexpr int64_t kMaxBlocks = (int64_t{1} << 31) - 1;

inline Result invalid(const char* message) { return {Status::kInvalid, 0, message}; }
inline Result unsupported(const char* message) { return {Status::kUnsupported, 0, message}; }
inline Result done() { return {Status::kOk, 0, ""}; }

inline int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }
inline int element_bytes(DType dtype) { return dtype == DType::kFloat16 || dtype == DType::kBFloat16 ? 2 : 4; }
inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % kVectorBytes == 0; }

// Returns the columns of all inputs together; -1 if one is not a multiple of 16 bytes, or there are none or too many.
inline int total_columns(const int* channels, int count, DType dtype) {
  if (count < 1 || count > kMaxInputs) return -1;
  const int vector = kVectorBytes / element_bytes(dtype);
  int64_t total = 0;
  for (int i = 0; i < count; ++i) {
    if (channels[i] < 1 || channels[i] % vector != 0) return -1;
    total += channels[i];
  }
  return total <= kMaxColumns ? static_cast<int>(total) : -1;
}
inline bool output_columns_supported(int out_channels) {
  return out_channels >= kRun && out_channels % kRun == 0 && out_channels <= kMaxColumns;
}
constexpr const char* kBadShape = "expected channels in multiples of 16 bytes, out_channels in multiples of 8";
constexpr const char* kBadPointer = "expected device pointers that are not null, at multiples of 16 bytes";

template <class Pointer>
void append(Panels<Pointer>& panels, Pointer* data, int columns, int64_t stride) {
  panels.data[panels.count] = data;
  panels.columns[panels.count] = columns;
  panels.stride[panels.count++] = stride;
}
inline const void* column_of(const void* matrix, int64_t column, DType dtype) {
  return static_cast<const char*>(matrix) + column * element_bytes(dtype);
}

// Sets what follows from the output's shape and the operands' panels; returns the number of blocks, -1 if too many.
template <class Product>
int64_t lay_out(Problem& problem, int64_t rows, int columns, int64_t splits, DType dtype) {
  const int step = kLineBytes / element_bytes(dtype);
  problem.rows = rows;
  problem.columns = columns;
  problem.row_tiles = static_cast<int>(divide_up(rows, kTile));
  problem.column_tiles = static_cast<int>(divide_up(columns, kTile));
  problem.steps = static_cast<int>(divide_up(problem.split_depth, step));
  problem.phases = 1;
  if constexpr (Product::kA == KLayout::kColumns) {
    problem.steps = 0;
    for (int i = 0; i < problem.a.count; ++i) problem.steps += static_cast<int>(divide_up(problem.a.columns[i], step));
    // Phases help if the whole weight stays in the smallest L2 cache, of 4 MB. A larger weight would be read again in
    // each phase.
    const int64_t weight_bytes = int64_t{problem.steps} * kLineBytes * columns;
    if (weight_bytes <= 3 << 20) problem.phases = 8;
  }
  const int64_t tiles = divide_up(rows, kTile) * problem.column_tiles;
  return tiles <= kMaxBlocks / splits ? tiles * splits : -1;
}

template <class ComputeType, class Product>
Result launch_kernel(const Problem& problem, unsigned blocks, cudaStream_t stream) {
  const auto kernel = aggregate_kernel<ComputeType, Product>;
  const int architecture = compiled_architecture(kernel);
  if (architecture != 0 && architecture < ComputeType::kOldestArchitecture) {
    return unsupported("this GPU, or what the kernels were compiled for, is older than the dtype's tensor cores");
  }
  return launch(kernel, blocks, kThreads, Layout<ComputeType, Product>::shared_bytes(architecture), stream, problem);
}

template <class Product>
Result launch_product(DType dtype, const Problem& problem, int64_t blocks, cudaStream_t stream) {
  if (blocks < 0) return unsupported("expected fewer than 2^31 tiles of 128 x 128");
  if (blocks == 0) return done();
  const auto count = static_cast<unsigned>(blocks);
  switch (dtype) {
    case DType::kFloat16: return launch_kernel<Float16, Product>(problem, count, stream);
    case DType::kBFloat16: return launch_kernel<BFloat16s, Product>(problem, count, stream);
    case DType::kFloat32: return launch_kernel<Float32, Product>(problem, count, stream);
    case DType::kTensorFloat32: {
      const Result result = launch_kernel<TensorFloat32, Product>(problem, count, stream);
      // A GPU without TF32 computes in float32, as PyTorch does.
      return result.status == Status::kUnsupported ? launch_kernel<Float32, Product>(problem, count, stream) : result;
    }
  }
  return invalid("expected one of the four dtypes");
}

}  // namespace vovnet
