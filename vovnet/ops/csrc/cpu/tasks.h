// Hands out the tasks of a layer to threads.
#pragma once

#include "vec.h"

namespace VOVNET_ISA {

// Each thread first gets the tasks of a range of its own, in order, so that from layer to layer it computes the same
// part of the maps, which its caches hold; then those that other threads have not begun.
class Tasks {
 public:
  Tasks(int64_t total, int threads) : total_(total), ranges_(threads < kMost ? threads : kMost) {
    for (int64_t r = 0; r < ranges_; ++r) range_[r].next = begin(r);
  }
  // Returns the next task of a thread, or -1 if none are left.
  VOVNET_INLINE int64_t take(int64_t thread) {
    for (int64_t k = 0; k < ranges_; ++k) {
      const int64_t r = (thread + k) % ranges_;
      if (__atomic_load_n(&range_[r].next, __ATOMIC_RELAXED) >= begin(r + 1)) continue;
      const int64_t i = __atomic_fetch_add(&range_[r].next, 1, __ATOMIC_RELAXED);
      if (i < begin(r + 1)) return i;
    }
    return -1;
  }
  // True if task i is the first of the thread's own range, and if it is in that range.
  VOVNET_INLINE bool is_first(int64_t thread, int64_t i) const { return i == begin(thread % ranges_); }
  VOVNET_INLINE bool is_own(int64_t thread, int64_t i) const {
    return i >= begin(thread % ranges_) && i < begin(thread % ranges_ + 1);
  }

 private:
  static constexpr int64_t kMost = 64;
  struct alignas(kLine) Range {  // on a cache line of its own
    int64_t next;
  };
  VOVNET_INLINE int64_t begin(int64_t r) const { return r * total_ / ranges_; }

  int64_t total_, ranges_;
  Range range_[kMost] = {};
};

}  // namespace VOVNET_ISA
