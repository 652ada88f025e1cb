// The matrix kernel: one block computes one 128 x 128 tile of the output. Three products use it:
//   Forward          out (pixels, O)   = sum_i x_i W_i^T    K: the columns of the inputs, one after the other
//   InputGradients   dx_i (pixels, Ci) = g W_i              K: the columns of g, the rows of W
//   WeightGradient   dW (O, sum C)     = g^T x_i            K: the rows of g and of the inputs, split over blocks
#pragma once

#include "operand.cuh"

namespace vovnet {

struct Forward {
  static constexpr KLayout kA = KLayout::kColumns, kB = KLayout::kColumns;
  static constexpr bool kStreamed = true;  // stores the output past the L2 cache
  template <class T>
  using Out = T;
};
struct InputGradients {
  static constexpr KLayout kA = KLayout::kColumns, kB = KLayout::kRows;
  static constexpr bool kStreamed = true;  // stores the output past the L2 cache
  template <class T>
  using Out = T;
};
struct WeightGradient {
  static constexpr KLayout kA = KLayout::kRows, kB = KLayout::kRows;
  static constexpr bool kStreamed = false;
  template <class T>
  using Out = float;  // partial sums, one matrix per split
};

struct Problem {
  Panels<const void> a, b;
  Panels<void> out;
  const void* bias;      // (columns) of the storage type, or null
  const void* residual;  // (rows, columns) of the storage type, or null
  uint8_t* mask;         // ceil(rows * columns / 8), or null
  bool relu;
  int64_t rows;                 // of the output
  int columns;                  // of the output
  int row_tiles, column_tiles;  // of the output
  int64_t depth;                // size of K, if K lies in rows
  int64_t split_depth;          // part of K that a split takes
  int64_t split_stride;         // elements between the outputs of two splits
  int steps;                    // most steps of a split's loop over K
  int phases;                   // number of positions at which rows of tiles begin their loop over K
};

constexpr int kWarpTile = 64;
constexpr int kFragments = kWarpTile / 16;            // fragments of a warp in each dimension
constexpr int kStageStride = kWarpTile + 8;           // floats per line of the stage in which a warp arranges its sums
constexpr int kStageBytes = 16 * kStageStride * 4;    // a stage has 16 lines

template <class ComputeType, class Product>
struct Layout {
  using T = typename ComputeType::Storage;
  using A = Operand<ComputeType, Product::kA>;
  using B = Operand<ComputeType, Product::kB>;
  using Fragments = typename ComputeType::template Fragments<Product::kA, Product::kB>;
  static constexpr int kTileBytes = A::kBytes + B::kBytes;
  static constexpr int shared_bytes(int architecture) {
    const int tiles = stage_count(architecture) * kTileBytes;
    return tiles > 4 * kStageBytes ? tiles : 4 * kStageBytes;
  }
};

// The tile that a block computes. Neighbours in launch order share rows of A, and blocks that share columns of B are at
// most 8 tiles of columns apart, so that both are read from DRAM once and then from the L2 cache.
struct TileCoord {
  int64_t row;
  int column;
  int64_t split;
  unsigned row_tile;
};
__device__ inline TileCoord tile_coord_of(const Problem& problem, unsigned block) {
  const unsigned rows = static_cast<unsigned>(problem.row_tiles);
  const unsigned columns = static_cast<unsigned>(problem.column_tiles);
  const unsigned widest = min(8u, columns);
  const unsigned split = block / (rows * columns);
  block %= rows * columns;
  const unsigned first = block / (rows * widest) * widest;
  block %= rows * widest;
  const unsigned width = min(widest, columns - first);
  const unsigned row = block / width;
  return {static_cast<int64_t>(row) * kTile, static_cast<int>(first + block % width) * kTile, split, row};
}

// Blocks that run at the same time advance at the same speed. If all began with the same columns of the weight, a small
// L2 cache would have evicted these before the next blocks begin. So rows of tiles begin at `phases` positions, and
// every part of the weight is read again soon.
template <class ComputeType>
__device__ KIterator<ComputeType> make_k_iterator(const Problem& problem, const TileCoord& coord, KLayout depth) {
  constexpr int kStep = KIterator<ComputeType>::kStep;
  if (depth == KLayout::kRows) {
    const int64_t begin = coord.split * problem.split_depth;
    return {0, begin, min(begin + problem.split_depth, problem.depth)};
  }
  const unsigned phase = coord.row_tile % static_cast<unsigned>(problem.phases);
  int step = static_cast<int>(phase * static_cast<unsigned>(problem.steps) / static_cast<unsigned>(problem.phases));
  int panel = 0;
  while (step * kStep >= problem.a.columns[panel]) step -= (problem.a.columns[panel++] + kStep - 1) / kStep;
  return {panel, step * kStep, problem.depth};
}

__device__ inline int warp_row() { return static_cast<int>(threadIdx.x / 64) * kWarpTile; }
__device__ inline int warp_column() { return static_cast<int>(threadIdx.x / 32 % 2) * kWarpTile; }

// sums += A B over the tiles' part of K, for the warp's 64 x 64.
template <class ComputeType, class Product, class Sum>
__device__ void multiply(const typename ComputeType::Storage* a_tile, const typename ComputeType::Storage* b_tile,
                         Sum (&sums)[kFragments][kFragments]) {
  using L = Layout<ComputeType, Product>;
#pragma unroll ComputeType::kUnroll
  for (int depth = 0; depth < L::A::kStep; depth += ComputeType::kDepth) {
    typename L::Fragments::A a[kFragments];
#pragma unroll
    for (int i = 0; i < kFragments; ++i) {
      load_fragment(a[i], L::A::at(a_tile, warp_row() + 16 * i, depth), L::A::kStride);
    }
#pragma unroll
    for (int j = 0; j < kFragments; ++j) {
      typename L::Fragments::B b;
      load_fragment(b, L::B::at(b_tile, warp_column() + 16 * j, depth), L::B::kStride);
#pragma unroll
      for (int i = 0; i < kFragments; ++i) multiply_add(sums[i][j], a[i], b);
    }
  }
}

// The loop over K: while a tile is multiplied, the next ones are copied.
template <class ComputeType, class Product, class Sum>
__device__ void accumulate(const Problem& problem, const TileCoord& coord, Sum (&sums)[kFragments][kFragments]) {
  using L = Layout<ComputeType, Product>;
  using T = typename ComputeType::Storage;
  constexpr bool kAsync = async_copies(kArchitecture);
  constexpr int kStages = stage_count(kArchitecture);
  constexpr int kAhead = kAsync ? kStages - 1 : 1;
  typename L::A a(problem.a, coord.row, problem.rows);
  typename L::B b(problem.b, coord.column, problem.columns);
  KIterator<ComputeType> k_iterator = make_k_iterator<ComputeType>(problem, coord, Product::kA);
  const auto a_tile = [](int step) {
    return reinterpret_cast<T*>(shared_memory() + step % kStages * L::kTileBytes);
  };
  const auto b_tile = [](int step) {
    return reinterpret_cast<T*>(shared_memory() + step % kStages * L::kTileBytes + L::A::kBytes);
  };
  const auto fetch = [&](int step) {
    if (step < problem.steps) {
      a.fetch(k_iterator, a_tile(step));
      b.fetch(k_iterator, b_tile(step));
      k_iterator.next(problem.a, Product::kA);
    }
    if constexpr (kAsync) commit_copies();  // one group per step, even if empty, keeps the count right
  };
#pragma unroll
  for (int step = 0; step < kAhead; ++step) fetch(step);
  for (int step = 0; step < problem.steps; ++step) {
    if constexpr (kAsync) {
      wait_copies<kStages - 2>();
      block_barrier();  // this step's tile is there, and no warp still reads the one that fetch overwrites
    } else {
      block_barrier();  // no warp still reads the tile
      a.put(a_tile(step));
      b.put(b_tile(step));
      block_barrier();  // the tile is there
    }
    fetch(step + kAhead);
    multiply<ComputeType, Product>(a_tile(step), b_tile(step), sums);
  }
}

template <class T>
struct alignas(kVectorBytes) Vector {
  static constexpr int kCount = kVectorBytes / static_cast<int>(sizeof(T));
  T at[kCount];
};

// A run is 8 neighbouring elements: one vector of 16-bit elements, or two of float32, which may be in different panels.
constexpr int kRun = 8;
template <class T>
__device__ void load_run(float (&values)[kRun], const T* source) {
  constexpr int kCount = Vector<T>::kCount;
#pragma unroll
  for (int v = 0; v < kRun; v += kCount) {
    const auto vector = load(reinterpret_cast<const Vector<T>*>(source + v));
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[v + i] = to_float(vector.at[i]);
  }
}

// The address of a thread's run of columns in the output; the same for all rows of a tile.
template <class Out, bool kStreamed>
struct Target {
  static constexpr int kVectors = kRun / Vector<Out>::kCount;
  Out* first_row[kVectors];  // null beyond the last column
  int64_t stride[kVectors];

  __device__ Target(const Panels<void>& out, int column, int64_t split_offset) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const Column found = find_column(out, column + v * Vector<Out>::kCount);
      first_row[v] =
          found.panel < 0 ? nullptr : static_cast<Out*>(out.data[found.panel]) + found.offset + split_offset;
      stride[v] = found.panel < 0 ? 0 : out.stride[found.panel];
    }
  }
  __device__ void write(int64_t row, const float (&values)[kRun]) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      if (first_row[v] == nullptr) continue;
      Vector<Out> vector;
#pragma unroll
      for (int i = 0; i < Vector<Out>::kCount; ++i) {
        vector.at[i] = from_float<Out>(values[v * Vector<Out>::kCount + i]);
      }
      Out* to = first_row[v] + row * stride[v];
      if constexpr (kStreamed) {
        Bits16 bits;
        memcpy(&bits, &vector, sizeof bits);
        store_streamed(reinterpret_cast<Bits16*>(to), bits);
      } else {
        store(reinterpret_cast<Vector<Out>*>(to), vector);
      }
    }
  }
};

// Applies bias, mask, ReLU and residual to the float32 sums of one run. Mask and ReLU keep what is not <= 0, so NaN is
// kept, as in PyTorch.
template <class T>
__device__ void epilogue(const Problem& problem, int64_t row, int column, const float (&bias)[kRun],
                       float (&values)[kRun]) {
  const int64_t element = row * problem.columns + column;
  unsigned bits = 0;
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    values[i] += bias[i];
    // After rounding to the output's type: what rounds to 0 has no gradient.
    bits |= to_float(from_float<T>(values[i])) <= 0.0f ? 0u : 1u << i;
    if (problem.relu && values[i] <= 0.0f) values[i] = 0.0f;
  }
  if (problem.mask != nullptr) store(problem.mask + element / 8, static_cast<uint8_t>(bits));
  if (problem.residual != nullptr) {
    float residual[kRun];
    load_run(residual, static_cast<const T*>(problem.residual) + element);
#pragma unroll
    for (int i = 0; i < kRun; ++i) values[i] += residual[i];
  }
}

// Arranges the warp's sums in shared memory, 16 rows at a time, and writes them row by row.
template <class ComputeType, class Product, class Sum>
__device__ void write_out(const Problem& problem, const TileCoord& coord, const Sum (&sums)[kFragments][kFragments]) {
  using T = typename ComputeType::Storage;
  using Out = typename Product::template Out<T>;
  constexpr bool kForward = std::is_same_v<Product, Forward>;
  constexpr int kRuns = kWarpTile / kRun;  // of a row
  float* stage = reinterpret_cast<float*>(shared_memory() + threadIdx.x / 32 * kStageBytes);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int run = lane % kRuns * kRun;
  const int column = coord.column + warp_column() + run;
  const Target<Out, Product::kStreamed> target(problem.out, column, coord.split * problem.split_stride);
  float bias[kRun] = {};
  if constexpr (kForward) {
    if (problem.bias != nullptr && column < problem.columns) {
      load_run(bias, static_cast<const T*>(problem.bias) + column);
    }
  }
#pragma unroll
  for (int i = 0; i < kFragments; ++i) {
    warp_barrier();  // all lanes have read the previous rows
#pragma unroll
    for (int j = 0; j < kFragments; ++j) store_fragment(stage + 16 * j, sums[i][j], kStageStride);
    warp_barrier();
    for (int line = lane / kRuns; line < 16; line += 32 / kRuns) {
      const int64_t row = coord.row + warp_row() + 16 * i + line;
      if (row >= problem.rows || column >= problem.columns) continue;
      const auto* staged = reinterpret_cast<const Vector<float>*>(stage + line * kStageStride + run);
      const Vector<float> halves[2] = {load_shared(staged), load_shared(staged + 1)};
      float values[kRun];
#pragma unroll
      for (int v = 0; v < kRun; ++v) values[v] = halves[v / 4].at[v % 4];
      if constexpr (kForward) epilogue<T>(problem, row, column, bias, values);
      target.write(row, values);
    }
  }
}

template <class ComputeType, class Product>
__global__ void __launch_bounds__(kThreads, 2) aggregate_kernel(const __grid_constant__ Problem problem) {
  if constexpr (kArchitecture >= ComputeType::kOldestArchitecture) {
    const TileCoord coord = tile_coord_of(problem, blockIdx.x);
    typename Layout<ComputeType, Product>::Fragments::Sum sums[kFragments][kFragments] = {};
    accumulate<ComputeType, Product>(problem, coord, sums);
    block_barrier();  // the tiles' memory becomes the warps' stages
    write_out<ComputeType, Product>(problem, coord, sums);
  }
}

}  // namespace vovnet
