// The two operands of a product: lists of matrices in global memory, copied tile by tile to shared memory.
#pragma once

#include "compute_types.cuh"

namespace vovnet {

constexpr int kTile = 128;          // rows and columns of the output per block
constexpr int kThreads = 128;       // 2 x 2 warps of 64 x 64
constexpr int kLineBytes = 64;      // bytes of a step in K if K is contiguous: two sectors of DRAM
constexpr int kVectorBytes = 16;    // what a thread copies at once

// The number of tiles in shared memory. Before 8.0 the next tile waits in registers while the current one is
// multiplied. From 8.0 on copies are asynchronous, and there are as many tiles as let two blocks share a
// multiprocessor: 4 if it has 164 KB or more, 2 if it has 100 KB.
__host__ __device__ constexpr bool async_copies(int architecture) { return architecture >= 80; }
__host__ __device__ constexpr int stage_count(int architecture) {
  if (!async_copies(architecture)) return 1;
  return architecture == 80 || (architecture >= 90 && architecture < 120) ? 4 : 2;
}

// Matrices whose columns are concatenated. Pointer is `const void` or `void`.
template <class Pointer>
struct Panels {
  Pointer* data[kMaxInputs];   // each (rows, columns[i]) of the storage type; 16-byte aligned
  int64_t stride[kMaxInputs];  // elements from a row to the next; a multiple of 16 bytes
  int columns[kMaxInputs];     // a multiple of 16 bytes
  int count;
};

// The panel of a column of the concatenation, and the column within it; `panel` is -1 behind the last.
struct Column {
  int panel;
  int offset;
};
template <class Pointer>
__device__ Column find_column(const Panels<Pointer>& panels, int column) {
  for (int i = 0; i < panels.count; ++i) {
    if (column < panels.columns[i]) return {i, column};
    column -= panels.columns[i];
  }
  return {-1, 0};
}

// The position of the loop over K: in the columns of a panel, from the last of which it wraps around, or in the rows.
template <class ComputeType>
struct KIterator {
  static constexpr int kStep = kLineBytes / static_cast<int>(sizeof(typename ComputeType::Storage));
  int panel;
  int64_t offset;
  int64_t end;  // of the rows

  __device__ void next(const Panels<const void>& panels, KLayout depth) {
    offset += kStep;
    if (depth == KLayout::kColumns && offset >= panels.columns[panel]) {
      panel = panel + 1 < panels.count ? panel + 1 : 0;
      offset = 0;
    }
  }
};

// One operand of a block. In shared memory a tile has kLines lines of kWidth elements, padded so that lines start in
// different banks.
template <class ComputeType, KLayout kLayout>
class Operand {
 public:
  using T = typename ComputeType::Storage;
  static constexpr int kVector = kVectorBytes / static_cast<int>(sizeof(T));
  static constexpr int kStep = KIterator<ComputeType>::kStep;
  static constexpr int kWidth = kLayout == KLayout::kColumns ? kStep : kTile;
  static constexpr int kLines = kLayout == KLayout::kColumns ? kTile : kStep;
  static constexpr int kStride = kWidth + (kLayout == KLayout::kColumns ? kVector : 8);
  static constexpr int kBytes = kLines * kStride * static_cast<int>(sizeof(T));

  // first: the block's first row (K in columns) or column (K in rows); they end at `limit`.
  __device__ Operand(const Panels<const void>& panels, int64_t first, int64_t limit) : panels_(panels) {
    const int thread = static_cast<int>(threadIdx.x);
    chunk_ = thread % kChunks * kVector;
    line_ = thread / kChunks;
    if constexpr (kLayout == KLayout::kColumns) {
      first_ = first;
      limit_ = limit;
    } else {
      const Column column = find_column(panels, static_cast<int>(first) + chunk_);
      valid_ = column.panel >= 0;
      source_ = static_cast<const T*>(panels.data[valid_ ? column.panel : 0]) + column.offset;
      stride_ = panels.stride[valid_ ? column.panel : 0];
    }
  }

  // Starts the copy of a tile to shared memory, or to registers for `put`.
  __device__ void fetch(const KIterator<ComputeType>& k_iterator, T* tile) {
    const T* source = source_;
    int64_t stride = stride_;
    bool valid = valid_;
    if constexpr (kLayout == KLayout::kColumns) {
      const int column = static_cast<int>(k_iterator.offset) + chunk_;
      valid = column < panels_.columns[k_iterator.panel];
      stride = panels_.stride[k_iterator.panel];
      source = static_cast<const T*>(panels_.data[k_iterator.panel]) + column;
    }
    const int64_t first = kLayout == KLayout::kColumns ? first_ : k_iterator.offset;
    const int64_t limit = kLayout == KLayout::kColumns ? limit_ : k_iterator.end;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int line = line_ + i * kLineStep;
      const bool inside = valid && first + line < limit;
      const T* from = inside ? source + (first + line) * stride : static_cast<const T*>(panels_.data[0]);
      if constexpr (async_copies(kArchitecture)) {
        copy_async(tile + line * kStride + chunk_, from, inside);
      } else {
        held_[i] = inside ? load(reinterpret_cast<const Bits16*>(from)) : Bits16{0, 0, 0, 0};
      }
    }
  }

  __device__ void put(T* tile) const {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      store_shared(reinterpret_cast<Bits16*>(tile + (line_ + i * kLineStep) * kStride + chunk_), held_[i]);
    }
  }

  // The address in a tile of (line, k), where lines are the output's rows or columns.
  __device__ static const T* at(const T* tile, int line, int depth) {
    return kLayout == KLayout::kColumns ? tile + line * kStride + depth : tile + depth * kStride + line;
  }

 private:
  static constexpr int kChunks = kWidth / kVector;
  static constexpr int kLineStep = kThreads / kChunks;
  static constexpr int kCopies = kLines / kLineStep;
  static_assert(kThreads % kChunks == 0 && kLines % kLineStep == 0, "every thread copies the same amount");

  const Panels<const void>& panels_;
  int chunk_;                // the thread's first element in each line
  int line_;                 // its first line
  int64_t first_ = 0, limit_ = 0;
  bool valid_ = true;
  const T* source_ = nullptr;
  int64_t stride_ = 0;
  Bits16 held_[async_copies(kArchitecture) ? 1 : kCopies];
};

}  // namespace vovnet
