#include "memory.h"

#include <cstdlib>
#include <iterator>
#include <limits>
#include <map>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <pthread.h>
#include <sys/mman.h>
#endif

namespace vovnet::cpu {
namespace {

constexpr size_t kHuge = size_t{2} << 20;  // a huge page
constexpr size_t kLine = 64;

// Precedes each block, on a cache line of its own.
struct Header {
  size_t bytes;  // usable
  void* begin;   // the pointer for free()
};
static_assert(sizeof(Header) <= kLine);

class Pool {
 public:
  Pool() {
#if defined(__linux__)
    // After fork() the child must not find the lock held by a thread that does not exist there.
    pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                   [] { instance().mutex_.unlock(); });
#endif
  }

  // Never destroyed, because tensors may be released during the exit of the process.
  static Pool& instance() {
    static Pool* pool = new Pool;
    return *pool;
  }

  void* take(size_t bytes) {
    if (bytes > std::numeric_limits<size_t>::max() - 2 * kHuge) throw std::bad_alloc();
    const bool large = bytes >= kHuge / 2;
    if (large) {
      const std::lock_guard<std::mutex> lock(mutex_);
      auto found = idle_.lower_bound(bytes);
      // A block of more than twice the size is kept for larger requests.
      if (found != idle_.end() && found->first / 2 <= bytes) {
        found = std::prev(idle_.upper_bound(found->first));  // the block released last: the caches may still hold it
        void* block = found->second;
        idle_bytes_ -= found->first;
        idle_.erase(found);
        return block;
      }
    }
    const size_t total = large ? (bytes + kLine + kHuge - 1) / kHuge * kHuge : (bytes + 2 * kLine - 1) / kLine * kLine;
    try {
      return allocate(total);
    } catch (const std::bad_alloc&) {
      clear();  // idle blocks may be the memory that is missing
      return allocate(total);
    }
  }

  void give(void* block) {
    const Header* header = header_of(block);
    if (header->bytes >= kHuge / 2) {
      const std::lock_guard<std::mutex> lock(mutex_);
      // The smallest blocks are freed first, because they cost the least to allocate again.
      while (idle_bytes_ + header->bytes > kMostIdle && !idle_.empty() && idle_.begin()->first < header->bytes) {
        drop(idle_.begin());
      }
      if (idle_bytes_ + header->bytes <= kMostIdle) {
        try {
          idle_.emplace(header->bytes, block);
          idle_bytes_ += header->bytes;
          return;
        } catch (const std::bad_alloc&) {
          // There is no memory even for the entry, so the block is freed.
        }
      }
    }
    std::free(header->begin);
  }

  size_t idle() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return idle_bytes_;
  }

  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    while (!idle_.empty()) drop(idle_.begin());
  }

 private:
  using Idle = std::multimap<size_t, void*>;

  static Header* header_of(void* block) { return reinterpret_cast<Header*>(static_cast<char*>(block) - kLine); }

  // `total` bytes include the header and are a multiple of the alignment.
  static void* allocate(size_t total) {
    const bool large = total >= kHuge;
    void* begin = std::aligned_alloc(large ? kHuge : kLine, total);
    if (begin == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    if (large) madvise(begin, total, MADV_HUGEPAGE);
#endif
    void* block = static_cast<char*>(begin) + kLine;
    *header_of(block) = {total - kLine, begin};
    return block;
  }

  void drop(Idle::iterator entry) {
    idle_bytes_ -= entry->first;
    std::free(header_of(entry->second)->begin);
    idle_.erase(entry);
  }

  std::mutex mutex_;
  Idle idle_;
  size_t idle_bytes_ = 0;
};

}  // namespace

void* acquire(size_t bytes) { return Pool::instance().take(bytes); }

void release(void* block) {
  if (block != nullptr) Pool::instance().give(block);
}

size_t idle_bytes() { return Pool::instance().idle(); }

void release_idle() { Pool::instance().clear(); }

}  // namespace vovnet::cpu
