// The second step of every reduction: adds float32 partial sums in a fixed order, so that equal inputs give equal bits.
#pragma once

#include "launch.cuh"

namespace vovnet {

constexpr int kSumColumns = 32;  // columns of a block
constexpr int kSumLines = 8;     // lines of a block; each adds every 8th partial sum
constexpr int kSumThreads = kSumColumns * kSumLines;
constexpr int kSumBytes = kSumThreads * 4;

// out[column] = sum of partials[i][column];  partials (count, columns), out (columns) as the dtype is stored.
Result sum_partials(const float* partials, void* out, int64_t columns, int count, DType dtype, cudaStream_t stream);

}  // namespace vovnet
