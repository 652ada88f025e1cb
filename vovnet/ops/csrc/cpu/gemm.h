// The matrix product: a few packed rows times a panel of packed columns, summed in registers.
//
// Packed numbers are float32; or bfloat16 (as uint16_t) if the processor multiplies pairs of them. A line of 64 bytes
// holds a block of the inner dimension: 16 or 32 numbers, which are 16 steps of the product. Rows are packed as
// [block][row][line], so that a broadcast has a constant displacement and a transform or copy writes whole vectors.
// Columns are packed as [step][kPanel], with a number or a pair for each. The sums of R rows, a step's columns and a
// broadcast fill the registers.
#pragma once

#include "dtype.h"
#include "vec.h"

namespace VOVNET_ISA {

constexpr int kPanel = 2 * kLanes;  // columns of a panel
constexpr int kSteps = 16;          // steps of a block

template <typename S>
constexpr int kBlock = kLine / static_cast<int>(sizeof(S));  // numbers in a block
template <typename S>
constexpr int kPerStep = kBlock<S> / kSteps;

// The inner dimension is multiplied chunk by chunk, so that a chunk's columns stay in the first-level cache for all
// rows of a row tile.
constexpr int64_t kChunk = 8;  // blocks

constexpr int kPrefetchLines = 4;  // lines that a product prefetches per block, see multiply()
// Bytes by which columns are prefetched: from memory, and from the third-level cache. Columns that arrive too early are
// evicted before they are read.
constexpr int kFarDistance = 8192, kNearDistance = 2048;

// The number of products that are summed one after the other before their sum is added to the total. Rounding errors
// grow with the length of such a chain.
enum class AccumulationChain { kChunk, kBlock };

// The most rows: 28 of 32 or 12 of 16 registers hold sums. With chains of a block, half of them hold the totals; where
// registers are few, the totals are in memory.
template <AccumulationChain kind>
constexpr int kRows = kLanes == 16 ? (kind == AccumulationChain::kBlock ? 7 : 14) : 6;

// add_step() is one step of a row: it adds the row's number, or pair of numbers, times two vectors of columns.
// new_chain() first adds the chain's sums to the totals. The instructions are spelled out because compilers overwrite a
// factor instead of the sum, and then move sums between registers.
#if defined(__AVX2__)
VOVNET_INLINE void add_step(Vec& a, Vec& b, const float* row, Vec left, Vec right) {
  Vec x;
  asm("vbroadcastss %[row], %[x]\n\tvfmadd231ps %[x], %[left], %[a]\n\tvfmadd231ps %[x], %[right], %[b]"
      : [a] "+v"(a), [b] "+v"(b), [x] "=&v"(x)
      : [row] "m"(*row), [left] "v"(left), [right] "v"(right));
}
#if defined(__AVX512F__)
#define VOVNET_CHAINS "v"
#define VOVNET_ADD_TO_CHAINS "vaddps %[a], %[before_a], %[before_a]\n\tvaddps %[b], %[before_b], %[before_b]\n\t"
#else
#define VOVNET_CHAINS "m"
#define VOVNET_ADD_TO_CHAINS                                               \
  "vaddps %[before_a], %[a], %[a]\n\tvaddps %[before_b], %[b], %[b]\n\t" \
  "vmovaps %[a], %[before_a]\n\tvmovaps %[b], %[before_b]\n\t"
#endif
VOVNET_INLINE void new_chain(Vec& a, Vec& b, Vec& before_a, Vec& before_b, const float* row, Vec left, Vec right) {
  Vec x;
  asm(VOVNET_ADD_TO_CHAINS
      "vbroadcastss %[row], %[x]\n\tvmulps %[x], %[left], %[a]\n\tvmulps %[x], %[right], %[b]"
      : [a] "+v"(a), [b] "+v"(b), [before_a] "+" VOVNET_CHAINS(before_a), [before_b] "+" VOVNET_CHAINS(before_b),
        [x] "=&v"(x)
      : [row] "m"(*row), [left] "v"(left), [right] "v"(right));
}
#else
VOVNET_INLINE void add_step(Vec& a, Vec& b, const float* row, Vec left, Vec right) {
  const Vec x = all(*row);
  a += x * left;
  b += x * right;
}
VOVNET_INLINE void new_chain(Vec& a, Vec& b, Vec& before_a, Vec& before_b, const float* row, Vec left, Vec right) {
  before_a += a;
  before_b += b;
  a = b = Vec{};
  add_step(a, b, row, left, right);
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

// sums[row][kPanel] = product, plus the old sums if `add`.
//
// rows: [blocks][R][line]; columns: [16 * blocks][kPanel], prefetched `distance` bytes ahead. Both are prefetched
// beyond their ends, because the next product's follow there. One line per step, from `next` on, is brought into the
// first-level cache; kPrefetchLines per block, from `prefetch` on, into the second.
template <typename S, int R, AccumulationChain kind>
void multiply(const S* rows, const S* columns, int64_t blocks, float* sums, bool add, int64_t distance,
              const char* next, const char* prefetch) {
  constexpr int kWide = kPanel * kPerStep<S>, kHalf = kLanes * kPerStep<S>;
  const S* soon = columns + distance / int64_t{sizeof(S)};
  Vec a[R], b[R], before_a[R], before_b[R];
#pragma GCC unroll 14
  for (int r = 0; r < R; ++r) a[r] = b[r] = before_a[r] = before_b[r] = Vec{};
  for (; blocks > 0; --blocks) {
#pragma GCC unroll 16
    for (int k = 0; k < kSteps; ++k) {
      // Columns are read once and should not evict the rows from the second-level cache.
      __builtin_prefetch(soon + k * kWide, 0, 0);
      if (kLanes == 16) __builtin_prefetch(soon + k * kWide + kHalf, 0, 0);
      __builtin_prefetch(next + k * kLine, 0, 0);
      if (k < R) __builtin_prefetch(rows + (R + k) * kBlock<S>);
      if (k < kPrefetchLines) __builtin_prefetch(prefetch + k * kLine, 0, 2);
      const Vec left = columns_at(columns + k * kWide), right = columns_at(columns + k * kWide + kHalf);
#pragma GCC unroll 14
      for (int r = 0; r < R; ++r) {
        const S* row = rows + r * kBlock<S> + k * kPerStep<S>;
        if constexpr (kind == AccumulationChain::kBlock) {
          if (k == 0) {
            new_chain(a[r], b[r], before_a[r], before_b[r], row, left, right);
            continue;
          }
        }
        add_step(a[r], b[r], row, left, right);
      }
    }
    rows += R * kBlock<S>;
    columns += kSteps * kWide;
    soon += kSteps * kWide;
    next += kSteps * kLine;
    prefetch += kPrefetchLines * kLine;
  }
#pragma GCC unroll 14
  for (int r = 0; r < R; ++r, sums += kPanel) {
    if (kind == AccumulationChain::kBlock) {
      a[r] += before_a[r];
      b[r] += before_b[r];
    }
    if (add) {
      a[r] += load(sums);
      b[r] += load(sums + kLanes);
    }
    store(sums, a[r]);
    store(sums + kLanes, b[r]);
  }
}

template <typename S>
using Multiply = void (*)(const S*, const S*, int64_t, float*, bool, int64_t, const char*, const char*);

template <typename S, AccumulationChain kind, int R = kRows<kind>>
VOVNET_INLINE Multiply<S> multiply_of(int rows) {
  if constexpr (R > 1) {
    if (rows < R) return multiply_of<S, kind, R - 1>(rows);
  }
  return multiply<S, R, kind>;
}

constexpr int64_t kKept = int64_t{12} << 20;  // bytes of columns that the third-level cache keeps between row tiles

// Prefetches memory while products are computed: their own columns, and ranges of memory that are read next.
struct Prefetcher {
  static constexpr int kMost = 64;
  const char* from[kMost];
  int64_t bytes[kMost];
  int count = 0, at = 0;
  int64_t wait = 0;  // blocks of products before the first prefetch
  bool cold = true;  // the products' columns come from memory, not from the third-level cache

  VOVNET_INLINE void add(const void* begin, int64_t size) {
    if (count < kMost && size > 0) {
      from[count] = static_cast<const char*>(begin);
      bytes[count++] = size;
    }
  }
  // Adds share i of n of a range.
  VOVNET_INLINE void add_share(const void* begin, int64_t size, int64_t i, int64_t n) {
    const int64_t lines = size / kLine;
    const int64_t first = i * lines / n, end = (i + 1) * lines / n;
    if (begin) add(static_cast<const char*>(begin) + first * kLine, (end - first) * kLine);
  }
  // Starts prefetching as late as `blocks` of products allow, because memory that arrives early is evicted from the
  // second-level cache before it is read.
  VOVNET_INLINE void delay(int64_t blocks) {
    int64_t lines = 0;
    for (int i = 0; i < count; ++i) lines += bytes[i] / kLine;
    wait = blocks - lines / kPrefetchLines - blocks / 16;
  }
  // Returns the next lines to prefetch, or `near` if none are left.
  VOVNET_INLINE const char* take(int64_t blocks, const void* near) {
    wait -= blocks;
    if (at == count || wait >= 0) return static_cast<const char*>(near);
    const char* taken = from[at];
    const int64_t size = blocks * kPrefetchLines * kLine;
    from[at] += size;
    bytes[at] -= size;
    if (bytes[at] <= 0) ++at;
    return taken;
  }
};

// Splits `total` rows into blocks of at most kRows whose sizes differ by at most one: 16 rows are 8 + 8, not 14 + 2.
template <AccumulationChain kind>
struct RowBlocks {
  int64_t total, count;
  explicit RowBlocks(int64_t rows) : total(rows), count((rows + kRows<kind> - 1) / kRows<kind>) {}
  int64_t begin(int64_t i) const { return i * total / count; }
  int rows(int64_t i) const { return static_cast<int>(begin(i + 1) - begin(i)); }
};

// A range of row blocks.
struct RowBlockRange {
  int64_t begin, end;
};

// Multiplies some packed rows of a row tile by one panel: sums[row][kPanel] = product, plus the old sums if `add`.
//
// rows: row block by row block, [blocks][R][line] each; columns: [16 * blocks][kPanel].
template <AccumulationChain kind, typename S>
inline void multiply_row_tile(const RowBlocks<kind>& row_blocks, const RowBlockRange& range, const S* rows,
                              const S* columns, int64_t blocks, float* sums, bool add, Prefetcher& prefetcher) {
  for (int64_t from = 0; from < blocks; from += kChunk) {
    const int64_t here = blocks - from < kChunk ? blocks - from : kChunk;
    for (int64_t b = range.begin; b < range.end; ++b) {
      const int64_t first = row_blocks.begin(b);
      const int count = row_blocks.rows(b);
      const S* begin = rows + (first * blocks + from * count) * kBlock<S>;
      const char* next = reinterpret_cast<const char*>(begin);
      if (prefetcher.cold && b - range.begin < 2) {
        // The next chunk's columns are prefetched during two row blocks; the first alone leaves too little time.
        next = reinterpret_cast<const char*>(columns + (from + here) * kBlock<S> * kPanel) +
               (b - range.begin) * here * kSteps * kLine;
      }
      multiply_of<S, kind>(count)(begin, columns + from * kBlock<S> * kPanel, here, sums + first * kPanel,
                                  add || from > 0, prefetcher.cold ? kFarDistance : kNearDistance, next,
                                  prefetcher.take(here, begin));
    }
  }
}

}  // namespace VOVNET_ISA
