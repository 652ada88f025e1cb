// The types of numbers that the matrix kernel multiplies, with their fragments: for tensor cores, or for plain FFMA.
#pragma once

#include "device.cuh"

namespace vovnet {

// Which dimension of an operand in memory is K, the dimension that the product sums over: its columns, so that
// neighbours in memory are neighbours in K, or its rows.
enum class KLayout : int { kColumns = 0, kRows = 1 };

// Fragments are parts of a product, spread over the lanes of a warp: A is (16, K), B is (K, 16), their sum is (16, 16)
// in float32. `kContiguousK` is true if neighbours in K are neighbours in shared memory. All lanes must take part in
// each call.

// Fragments for tensor cores, in the registers that the matrix instructions expect. `Type` says what the registers
// hold, T is the type in memory.
namespace tensor {

__device__ inline int group() { return static_cast<int>(threadIdx.x % 32 / 4); }
__device__ inline int pair() { return static_cast<int>(threadIdx.x % 4); }

template <class Type, bool kContiguousK>
struct FragmentA {
  unsigned words[4];  // rows 0-7 and 8-15 of the first half of K, then of the second
};
template <class Type, bool kContiguousK>
struct FragmentB {
  unsigned words[4];  // columns 0-7 of the first and of the second half of K, then columns 8-15
};
struct Accumulator {
  float sums[2][4];  // columns 0-7, 8-15
};

// Loads the words of (half of the lines, half of K); lines are A's rows or B's columns. With `kLineFirst` the halves of
// the lines alternate first.
template <bool kContiguousK, bool kLineFirst, class T>
__device__ void load_words(unsigned (&words)[4], const T* source, int stride) {
  constexpr int kHalf = 16 / static_cast<int>(sizeof(T));  // of K
  if constexpr (kContiguousK || sizeof(T) == 2) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int row = lane % 8;
    const int matrix = lane / 8;
    const int line_half = kLineFirst ? matrix % 2 : matrix / 2;
    const int depth_half = kLineFirst ? matrix / 2 : matrix % 2;
    const T* address = kContiguousK ? source + (row + 8 * line_half) * stride + kHalf * depth_half
                                        : source + (row + kHalf * depth_half) * stride + 8 * line_half;
    load_matrices<!kContiguousK>(words, address);
  } else {  // load_matrices transposes 16-bit elements only
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int line_half = kLineFirst ? i % 2 : i / 2;
      const int depth_half = kLineFirst ? i / 2 : i % 2;
      words[i] = load_shared(reinterpret_cast<const unsigned*>(source + (pair() + kHalf * depth_half) * stride +
                                                               group() + 8 * line_half));
    }
  }
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (unsigned& word : words) word = round_to_tf32(word);
  }
}

template <class Type, bool kContiguousK, class T>
__device__ void load_fragment(FragmentA<Type, kContiguousK>& a, const T* source, int stride) {
  load_words<kContiguousK, true>(a.words, source, stride);
}
template <class Type, bool kContiguousK, class T>
__device__ void load_fragment(FragmentB<Type, kContiguousK>& b, const T* source, int stride) {
  load_words<kContiguousK, false>(b.words, source, stride);
}
template <class Type, bool kA, bool kB>
__device__ void multiply_add(Accumulator& sum, const FragmentA<Type, kA>& a, const FragmentB<Type, kB>& b) {
  multiply_matrices<Type>(sum.sums[0], a.words, b.words);
  multiply_matrices<Type>(sum.sums[1], a.words, b.words + 2);
}
__device__ inline void store_fragment(float* target, const Accumulator& sum, int stride) {
  struct alignas(8) Two {
    float at[2];
  };
#pragma unroll
  for (int i = 0; i < 4; ++i) {  // two columns of rows 0-7 and 8-15, for both halves of the columns
    float* place = target + (group() + 8 * (i % 2)) * stride + 8 * (i / 2) + 2 * pair();
    store_shared(reinterpret_cast<Two*>(place), Two{{sum.sums[i / 2][2 * (i % 2)], sum.sums[i / 2][2 * (i % 2) + 1]}});
  }
}

}  // namespace tensor

// Fragments of float32 for plain FFMA, with K = 4. A lane owns 2 rows of A and 4 columns of B, so that 8 x 4 lanes
// cover 16 x 16. Lanes read at most 16 bytes at once, without bank conflicts.
namespace exact {

constexpr int kDepth = 4;

// Returns the lane's r-th line: neighbouring lines if they are one wide read, spread if each line is a read of its own.
template <bool kContiguousK, int kLanes, int kOwn>
__device__ int line_of(int lane, int r) {
  return kContiguousK ? lane + kLanes * r : lane * kOwn + r;
}

template <int kOwn>
struct alignas(4 * kOwn) Floats {
  float at[kOwn];
};

template <bool kContiguousK, int kLanes, int kOwn>
__device__ void load_lines(float (&value)[kOwn][kDepth], const float* source, int stride, int lane) {
  if constexpr (kContiguousK) {
#pragma unroll
    for (int r = 0; r < kOwn; ++r) {
      const auto line = load_shared(
          reinterpret_cast<const Floats<kDepth>*>(source + line_of<true, kLanes, kOwn>(lane, r) * stride));
#pragma unroll
      for (int k = 0; k < kDepth; ++k) value[r][k] = line.at[k];
    }
  } else {
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      const auto lines = load_shared(reinterpret_cast<const Floats<kOwn>*>(source + k * stride + lane * kOwn));
#pragma unroll
      for (int r = 0; r < kOwn; ++r) value[r][k] = lines.at[r];
    }
  }
}

__device__ inline int row_lane() { return static_cast<int>(threadIdx.x % 32 / 4); }
__device__ inline int column_lane() { return static_cast<int>(threadIdx.x % 4); }

template <bool kContiguousK>
struct FragmentA {
  float lines[2][kDepth];
};
template <bool kContiguousK>
struct FragmentB {
  float lines[4][kDepth];
};
// Which elements the lane owns depends on both operands' layouts.
template <bool kContiguousA, bool kContiguousB>
struct Accumulator {
  float sums[2][4];
};

template <bool kContiguousK>
__device__ void load_fragment(FragmentA<kContiguousK>& fragment, const float* source, int stride) {
  load_lines<kContiguousK, 8, 2>(fragment.lines, source, stride, row_lane());
}
template <bool kContiguousK>
__device__ void load_fragment(FragmentB<kContiguousK>& fragment, const float* source, int stride) {
  load_lines<kContiguousK, 4, 4>(fragment.lines, source, stride, column_lane());
}
template <bool kA, bool kB>
__device__ void multiply_add(Accumulator<kA, kB>& sum, const FragmentA<kA>& a, const FragmentB<kB>& b) {
#pragma unroll
  for (int k = 0; k < kDepth; ++k) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int c = 0; c < 4; ++c) sum.sums[r][c] = fmaf(a.lines[r][k], b.lines[c][k], sum.sums[r][c]);
    }
  }
}
template <bool kA, bool kB>
__device__ void store_fragment(float* target, const Accumulator<kA, kB>& sum, int stride) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      store_shared(target + line_of<kA, 8, 2>(row_lane(), r) * stride + line_of<kB, 4, 4>(column_lane(), c),
                   sum.sums[r][c]);
    }
  }
}

}  // namespace exact

// A compute type: how numbers are stored, a fragment's size in K, and the oldest architecture that supports it.
template <class T, class Type, int kFragmentDepth, int kOldest>
struct TensorCoreType {
  using Storage = T;
  static constexpr int kDepth = kFragmentDepth;
  static constexpr int kUnroll = 2;  // of the loop over a tile's K: all of it
  static constexpr int kOldestArchitecture = kOldest;
  template <KLayout kA, KLayout kB>
  struct Fragments {
    using A = tensor::FragmentA<Type, kA == KLayout::kColumns>;
    using B = tensor::FragmentB<Type, kB == KLayout::kColumns>;
    using Sum = tensor::Accumulator;
  };
};
struct Float16 : TensorCoreType<Half, Half, 16, 75> {};
struct BFloat16s : TensorCoreType<BFloat16, BFloat16, 16, 80> {};
struct TensorFloat32 : TensorCoreType<float, Tf32, 8, 80> {};

struct Float32 {
  using Storage = float;
  static constexpr int kDepth = exact::kDepth;
  static constexpr int kUnroll = 1;  // a step has enough independent work; unrolling would not fit into the registers
  static constexpr int kOldestArchitecture = 75;
  template <KLayout kA, KLayout kB>
  struct Fragments {
    using A = exact::FragmentA<kA == KLayout::kColumns>;
    using B = exact::FragmentB<kB == KLayout::kColumns>;
    using Sum = exact::Accumulator<kA == KLayout::kColumns, kB == KLayout::kColumns>;
  };
};

}  // namespace vovnet
