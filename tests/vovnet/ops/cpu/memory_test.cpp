// The pool of maps and scratch (memory.h): alignment, reuse, its bound, threads and fork(). See checks.h.
#include "memory.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cinttypes>

#include "checks.h"

namespace {

using namespace checks;
using vovnet::cpu::acquire;
using vovnet::cpu::idle_bytes;
using vovnet::cpu::kMostIdle;
using vovnet::cpu::release;
using vovnet::cpu::release_idle;
using vovnet::cpu::Scratch;

constexpr size_t kMega = size_t{1} << 20;

void check_that(bool good, const char* what, size_t at = 0) {
  check(good, what, static_cast<int64_t>(at), static_cast<double>(idle_bytes()), kMostIdle);
}

void test_blocks() {
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{63}, size_t{64}, size_t{65}, kMega - 65, kMega - 64, kMega - 1,
                             kMega, kMega + 1, 2 * kMega - 64, 2 * kMega - 63, 2 * kMega, 5 * kMega + 7}) {
    for (int again = 0; again < 2; ++again) {  // a new block, then perhaps the same
      void* block = acquire(bytes);
      check_that(reinterpret_cast<uintptr_t>(block) % 64 == 0, "alignment", bytes);
      std::memset(block, 0xff, bytes);
      release(block);
    }
  }
  release(nullptr);
  release_idle();
  check_that(idle_bytes() == 0, "release_idle leaves nothing");
}

void test_reuse() {
  void* block = acquire(8 * kMega);
  check_that(idle_bytes() == 0, "what is in use is not idle");
  release(block);
  const size_t idle = idle_bytes();
  check_that(idle >= 8 * kMega && idle < 11 * kMega, "a large block is kept");
  void* smaller = acquire(6 * kMega);
  check_that(smaller == block && idle_bytes() == 0, "it serves what is somewhat smaller");
  void* other = acquire(8 * kMega);
  check_that(other != block, "nobody gets what is in use");
  release(smaller);
  void* tiny = acquire(2 * kMega);
  check_that(tiny != block && idle_bytes() == idle, "it is too good for what is much smaller");
  release(tiny);
  release(other);
  release_idle();
  release(acquire(1000));
  check_that(idle_bytes() == 0, "small blocks are left to the system");
  {
    const Scratch scratch(3 * kMega);
    std::memset(scratch.data(), 0, 3 * kMega);
    check_that(idle_bytes() == 0, "scratch in use");
  }
  check_that(idle_bytes() >= 3 * kMega, "scratch comes back");
  release_idle();
}

// Nothing here is touched, so that it takes addresses rather than memory.
void test_bound() {
  std::vector<void*> blocks;
  for (int i = 0; i < 20; ++i) blocks.push_back(acquire(60 * kMega));
  for (void* block : blocks) {
    release(block);
    check_that(idle_bytes() <= kMostIdle, "bound");
  }
  check_that(idle_bytes() > kMostIdle - 64 * kMega, "the bound is made use of");
  release(acquire(kMostIdle + kMega));
  check_that(idle_bytes() <= kMostIdle, "a block beyond the bound");
  release_idle();

  blocks.clear();
  for (int i = 0; i < 300; ++i) blocks.push_back(acquire(2 * kMega));
  for (void* block : blocks) {
    release(block);
    check_that(idle_bytes() <= kMostIdle, "bound, of many");
  }
  void* large = acquire(100 * kMega);
  release(large);
  check_that(idle_bytes() <= kMostIdle, "bound, of one in many's place");
  void* again = acquire(100 * kMega);
  check_that(again == large, "small blocks make room for a large one");
  release(again);
  release_idle();
  check_that(idle_bytes() == 0, "all are gone");
}

void test_exhaustion() {
  constexpr size_t kMost = std::numeric_limits<size_t>::max();
  for (const size_t bytes : {kMost, kMost - 1, kMost - 64, kMost - kMega, kMost - 5 * kMega, kMost / 2, kMost / 2 + 1}) {
    bool refused = false;
    try {
      release(acquire(bytes));
    } catch (const std::bad_alloc&) {
      refused = true;
    }
    check_that(refused, "more than there is", bytes);
  }
  release(acquire(kMega));
  release_idle();
}

// Where addresses end, what lies idle makes room. In a child, for the limit stays.
void test_idle_blocks_make_room() {
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they keep what is freed
  const pid_t child = fork();
  if (child == 0) {
    int64_t pages = 0;
    if (FILE* file = std::fopen("/proc/self/statm", "r")) {
      if (std::fscanf(file, "%" SCNd64, &pages) != 1) pages = 0;
      std::fclose(file);
    }
    const rlim_t limit = static_cast<rlim_t>(pages * sysconf(_SC_PAGESIZE)) + 500 * kMega;
    const rlimit limits{limit, limit};
    if (pages == 0 || setrlimit(RLIMIT_AS, &limits) != 0) _exit(0);
    void* blocks[] = {acquire(150 * kMega), acquire(150 * kMega)};
    for (void* block : blocks) release(block);
    try {
      release(acquire(400 * kMega));
    } catch (const std::bad_alloc&) {
      _exit(1);
    }
    _exit(0);
  }
  int status = -1;
  waitpid(child, &status, 0);
  check(status == 0, "idle blocks make room", 0, status, 0);
#endif
}

// Each block belongs to one at a time, and may be given back by another one than took it.
void test_threads() {
  std::atomic<void*> shelf{nullptr};
  const auto work = [&shelf](unsigned seed) {
    for (unsigned i = 0; i < 300; ++i) {
      const size_t words = (seed * 7919 + i * 104729) % (3 * kMega) / sizeof(unsigned) + 2;
      auto* block = static_cast<unsigned*>(acquire(words * sizeof(unsigned)));
      block[0] = block[words - 1] = seed;
      std::this_thread::yield();
      check(block[0] == seed && block[words - 1] == seed, "a block of two", i, block[0], seed);
      release(shelf.exchange(block));
      if (i % 50 == 0) release_idle();
    }
  };
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < 4; ++i) threads.emplace_back(work, i);
  for (std::thread& thread : threads) thread.join();
  release(shelf.load());
  check_that(idle_bytes() <= kMostIdle, "bound, of threads");
  release_idle();
}

// While other threads have the lock every now and then, children of fork() find it free.
void test_fork() {
  std::atomic<bool> done{false};
  std::thread busy([&done] {
    while (!done) release(acquire(2 * kMega));
  });
  for (int i = 0; i < 100; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(60);  // ends a child that waits for ever
      release(acquire(2 * kMega));
      _exit(idle_bytes() > 0 ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    check(status == 0, "in a child of fork()", i, status, 0);
  }
  done = true;
  busy.join();
  release_idle();
}

}  // namespace

int main() {
  test_idle_blocks_make_room();  // first: what malloc keeps of the others would be room enough
  test_blocks();
  test_reuse();
  test_bound();
  test_exhaustion();
  test_threads();
  test_fork();
  return finish();
}
