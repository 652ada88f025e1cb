// The product that everything rests on: a few packed rows times a panel of packed columns, summed in registers.
//
// Packed numbers are float32, or bfloat16 (as uint16_t) where the processor multiplies pairs of them. A line of 64
// bytes holds a block of the inner dimension: 16 or 32 numbers, 16 steps of the product. Rows are packed as
// [block][row][line]: a broadcast then has a constant displacement, and what makes a line (a transform, a copy) writes
// whole vectors. Columns are packed as [step][kPanel], a number or a pair each. The sums of R rows, a step's columns
// and a broadcast fill the registers.
#pragma once

#include "element.h"
#include "vec.h"

namespace VOVNET_ISA {

constexpr int kPanel = 2 * kLanes;            // columns
constexpr int kRows = kLanes == 16 ? 14 : 6;  // rows at most: 28 of 32, 12 of 16 registers are sums
constexpr int kSteps = 16;                    // of a block

template <typename S>
constexpr int kBlock = kLine / static_cast<int>(sizeof(S));  // numbers of the inner dimension in a block
template <typename S>
constexpr int kPerStep = kBlock<S> / kSteps;

// The inner dimension is multiplied a chunk at a time, so that a chunk's columns stay in the first-level cache for all
// rows of a strip.
constexpr int64_t kChunk = 8;  // blocks; also the longest chain of sums

constexpr int kAheadLines = 4;       // of a product's `ahead`, for each block
constexpr int kColumnsAhead = 8192;  // bytes: what is read while a line comes from memory

// One step of a row: its number, or pair of numbers, times two vectors of columns. Compilers given the choice overwrite
// a factor instead of the sum, and then move sums around; so the instructions are spelled out where registers are
// scarce.
#if defined(__AVX2__)
VOVNET_INLINE void add_step(Vec& a, Vec& b, const float* row, Vec left, Vec right) {
  Vec x;
  asm("vbroadcastss %[row], %[x]\n\tvfmadd231ps %[x], %[left], %[a]\n\tvfmadd231ps %[x], %[right], %[b]"
      : [a] "+v"(a), [b] "+v"(b), [x] "=&v"(x)
      : [row] "m"(*row), [left] "v"(left), [right] "v"(right));
}
#else
VOVNET_INLINE void add_step(Vec& a, Vec& b, const float* row, Vec left, Vec right) {
  const Vec x = all(*row);
  a += x * left;
  b += x * right;
}
#endif
#if defined(__AVX512BF16__)
VOVNET_INLINE void add_step(Vec& a, Vec& b, const uint16_t* row, Vec left, Vec right) {
  Vec x;
  asm("vbroadcastss %[row], %[x]\n\tvdpbf16ps %[x], %[left], %[a]\n\tvdpbf16ps %[x], %[right], %[b]"
      : [a] "+v"(a), [b] "+v"(b), [x] "=&v"(x)
      : [row] "m"(*reinterpret_cast<const Float*>(row)), [left] "v"(left), [right] "v"(right));
}
#endif
VOVNET_INLINE Vec columns_at(const void* p) { return load(static_cast<const float*>(p)); }

// c[row][kPanel] = product (+ what stands there, if `add`), in sums of `chain` blocks: rounding errors grow with the
// length of a chain.
//
// rows: [blocks][R][line]; columns: [16 * blocks][kPanel]. Both are asked for beyond their ends, for the next product's
// follow. From `next` on, a line for each step is brought into the first-level cache; from `ahead` on, kAheadLines for
// each block into the second.
template <typename S, int R>
void multiply(const S* rows, const S* columns, int64_t blocks, int64_t chain, float* c, bool add, const char* next,
              const char* ahead) {
  constexpr int kWide = kPanel * kPerStep<S>, kHalf = kLanes * kPerStep<S>;
  Vec sums[R][2];
  float partial[R * kPanel] __attribute__((aligned(kLine)));
  for (bool first = true;; first = false) {
    const int64_t until = blocks > chain ? blocks - chain : 0;
#pragma GCC unroll 14
    for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = Vec{};
    for (; blocks > until; --blocks) {
#pragma GCC unroll 16
      for (int k = 0; k < kSteps; ++k) {
        // Columns pass by once: they are not to push the rows out of the second-level cache.
        const S* here = columns + k * kWide;
        __builtin_prefetch(here + kColumnsAhead / sizeof(S), 0, 0);
        if (kLanes == 16) __builtin_prefetch(here + kHalf + kColumnsAhead / sizeof(S), 0, 0);
        __builtin_prefetch(next + k * kLine, 0, 0);
        if (k < R) __builtin_prefetch(rows + (R + k) * kBlock<S>);
        if (k < kAheadLines) __builtin_prefetch(ahead + k * kLine, 0, 2);
        const Vec left = columns_at(here), right = columns_at(here + kHalf);
#pragma GCC unroll 14
        for (int r = 0; r < R; ++r) {
          add_step(sums[r][0], sums[r][1], rows + r * kBlock<S> + k * kPerStep<S>, left, right);
        }
      }
      rows += R * kBlock<S>;
      columns += kSteps * kWide;
      next += kSteps * kLine;
      ahead += kAheadLines * kLine;
    }
    if (!first) {
#pragma GCC unroll 14
      for (int r = 0; r < R; ++r) {
        sums[r][0] += load(partial + r * kPanel);
        sums[r][1] += load(partial + r * kPanel + kLanes);
      }
    }
    if (blocks == 0) break;
#pragma GCC unroll 14
    for (int r = 0; r < R; ++r) {
      store(partial + r * kPanel, sums[r][0]);
      store(partial + r * kPanel + kLanes, sums[r][1]);
    }
  }
#pragma GCC unroll 14
  for (int r = 0; r < R; ++r, c += kPanel) {
    if (add) {
      sums[r][0] += load(c);
      sums[r][1] += load(c + kLanes);
    }
    store(c, sums[r][0]);
    store(c + kLanes, sums[r][1]);
  }
}

template <typename S>
using Multiply = void (*)(const S*, const S*, int64_t, int64_t, float*, bool, const char*, const char*);

template <typename S>
VOVNET_INLINE Multiply<S> multiply_of(int rows) {
  switch (rows) {
    case 1:
      return multiply<S, 1>;
    case 2:
      return multiply<S, 2>;
    case 3:
      return multiply<S, 3>;
    case 4:
      return multiply<S, 4>;
    case 5:
      return multiply<S, 5>;
    case 6:
      return multiply<S, 6>;
#if VOVNET_LANES == 16
    case 7:
      return multiply<S, 7>;
    case 8:
      return multiply<S, 8>;
    case 9:
      return multiply<S, 9>;
    case 10:
      return multiply<S, 10>;
    case 11:
      return multiply<S, 11>;
    case 12:
      return multiply<S, 12>;
    case 13:
      return multiply<S, 13>;
    default:
      return multiply<S, 14>;
#else
    default:
      return multiply<S, 6>;
#endif
  }
}

// Memory that will be wanted next, range by range, for the products' `ahead`.
struct Ahead {
  static constexpr int kMost = 64;
  const char* from[kMost];
  int64_t bytes[kMost];
  int count = 0, at = 0;
  int64_t wait = 0;  // blocks of products that pass before the first

  VOVNET_INLINE void add(const void* begin, int64_t size) {
    if (count < kMost && size > 0) {
      from[count] = static_cast<const char*>(begin);
      bytes[count++] = size;
    }
  }
  // Share i of n of some memory.
  VOVNET_INLINE void add_share(const void* begin, int64_t size, int64_t i, int64_t n) {
    const int64_t lines = size / kLine;
    const int64_t first = i * lines / n, end = (i + 1) * lines / n;
    if (begin) add(static_cast<const char*>(begin) + first * kLine, (end - first) * kLine);
  }
  // Memory wanted is to come late, or it is gone from the second-level cache before it is read: wait as long as
  // `blocks` of products leave time for.
  VOVNET_INLINE void put_off(int64_t blocks) {
    int64_t lines = 0;
    for (int i = 0; i < count; ++i) lines += bytes[i] / kLine;
    wait = blocks - lines / kAheadLines - blocks / 16;
  }
  // The next few lines; where there are none left, some that are near already.
  VOVNET_INLINE const char* take(int64_t blocks, const void* near) {
    wait -= blocks;
    if (at == count || wait >= 0) return static_cast<const char*>(near);
    const char* taken = from[at];
    const int64_t size = blocks * kAheadLines * kLine;
    from[at] += size;
    bytes[at] -= size;
    if (bytes[at] <= 0) ++at;
    return taken;
  }
};

// `total` rows in blocks of at most kRows whose sizes differ by one at most: 16 rows are 8 + 8, not 14 + 2.
struct RowBlocks {
  int64_t total, count;
  explicit RowBlocks(int64_t rows) : total(rows), count((rows + kRows - 1) / kRows) {}
  int64_t begin(int64_t i) const { return i * total / count; }
  int rows(int64_t i) const { return static_cast<int>(begin(i + 1) - begin(i)); }
};

// Packed rows of a strip times one panel: sums[row][kPanel] = product (+ what stands there, if `add`).
//
// rows: row block by row block, [blocks][R][line] each; columns: [16 * blocks][kPanel].
template <typename S>
inline void multiply_strip(const RowBlocks& row_blocks, const S* rows, const S* columns, int64_t blocks, int64_t chain,
                           float* sums, bool add, Ahead& ahead) {
  for (int64_t from = 0; from < blocks; from += kChunk) {
    const int64_t here = blocks - from < kChunk ? blocks - from : kChunk;
    for (int64_t b = 0; b < row_blocks.count; ++b) {
      const int64_t first = row_blocks.begin(b);
      const int count = row_blocks.rows(b);
      const S* begin = rows + (first * blocks + from * count) * kBlock<S>;
      // The next chunk's columns come while all row blocks are multiplied, not only in the first one's time.
      const char* next = reinterpret_cast<const char*>(b < 2 ? columns + (from + here) * kBlock<S> * kPanel : begin);
      if (b == 1) next += here * kSteps * kLine;
      multiply_of<S>(count)(begin, columns + from * kBlock<S> * kPanel, here, chain, sums + first * kPanel,
                            add || from > 0, next, ahead.take(here, begin));
    }
  }
}

}  // namespace VOVNET_ISA
