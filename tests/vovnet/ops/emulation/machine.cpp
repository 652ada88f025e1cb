#include "machine.h"

#include <csetjmp>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include <ucontext.h>

namespace emulation {

Index thread_index, block_index;

namespace {

constexpr size_t kStack = 128 * 1024;
constexpr unsigned char kPoison = 0xff;  // a NaN in every format

struct Allocation {
  uintptr_t begin, end;
  bool writable;
};
std::vector<Allocation> allocations;
size_t last_allocation;
int64_t only_last = -1;

uint64_t random_state = 1;
unsigned random_below(unsigned limit) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return static_cast<unsigned>(random_state >> 33) % limit;
}

struct Copy {
  void* target;
  unsigned char bytes[16];
  int group;
};
enum class State { kRunnable, kAtBarrier, kInWarp, kDone };
struct Fiber {
  ucontext_t context;
  jmp_buf jump;
  std::unique_ptr<char[]> stack;
  bool started = false;
  State state = State::kDone;
  std::vector<Copy> copies;  // under way
  int group = 0;             // that the next copies belong to
  int warp_epoch = 0;        // the collectives that it has passed
};
struct Warp {
  std::vector<int> runnable;
  Collective operation = nullptr;
  void* arguments[32];
  int arrived = 0;
};
// Who used 4 bytes of shared memory since the last barrier of the block.
struct Word {
  int write_epoch = -1, writer = 0, write_warp_epoch = 0;
  int read_epoch = -1, reader = 0, read_warp_epoch = 0;
  bool read_by_many = false;  // by several warps
};

std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Warp> warps;
std::vector<unsigned char> shared;
std::vector<Word> words;
size_t shared_bytes_now;
int thread_count, current, at_barrier, done, epoch;
unsigned favoured;
const std::function<void()>* kernel_now;
ucontext_t scheduler_context;
jmp_buf scheduler_jump;
char error_text[512];
bool failed;

Fiber& fiber() { return *fibers[static_cast<size_t>(current)]; }

// makecontext starts a fiber, but swapcontext calls the kernel each time: once started, fibers jump.
void leave() {
  if (_setjmp(fiber().jump) == 0) _longjmp(scheduler_jump, 1);
}
void body() {
  for (;;) {
    (*kernel_now)();
    for (const Copy& copy : fiber().copies) {
      if (copy.group >= 0) fail("thread %d ends with an asynchronous copy that it never waited for", current);
    }
    fiber().state = State::kDone;
    ++done;
    leave();
  }
}
void enter(int thread) {
  current = thread;
  thread_index.x = static_cast<unsigned>(thread);
  if (_setjmp(scheduler_jump) != 0) return;
  Fiber& next = fiber();
  if (next.started) _longjmp(next.jump, 1);
  next.started = true;
  if (!next.stack) next.stack = std::make_unique_for_overwrite<char[]>(kStack);
  getcontext(&next.context);
  next.context.uc_stack.ss_sp = next.stack.get();
  next.context.uc_stack.ss_size = kStack;
  next.context.uc_link = nullptr;
  makecontext(&next.context, body, 0);
  swapcontext(&scheduler_context, &next.context);
}

void wake(int thread) {
  fibers[static_cast<size_t>(thread)]->state = State::kRunnable;
  warps[static_cast<size_t>(thread / 32)].runnable.push_back(thread);
}
void wait_as(State state) {
  fiber().state = state;
  leave();
}

// One warp is favoured for a while, so that it runs as far ahead of the others as the barriers let it.
int pick() {
  const auto count = static_cast<unsigned>(warps.size());
  if (random_below(256) == 0) favoured = random_below(count);
  if (warps[favoured].runnable.empty()) {
    const unsigned first = random_below(count);
    unsigned i = 0;
    while (i < count && warps[(first + i) % count].runnable.empty()) ++i;
    if (i == count) return -1;
    favoured = (first + i) % count;
  }
  auto& runnable = warps[favoured].runnable;
  std::swap(runnable[random_below(static_cast<unsigned>(runnable.size()))], runnable.back());
  const int thread = runnable.back();
  runnable.pop_back();
  return thread;
}

void begin_block(int threads, int shared_bytes) {
  thread_count = threads;
  at_barrier = done = epoch = 0;
  favoured = 0;
  shared_bytes_now = static_cast<size_t>(shared_bytes);
  shared.assign(shared_bytes_now + 128, kPoison);
  words.assign(shared_bytes_now / 4 + 1, Word{});
  while (fibers.size() < static_cast<size_t>(threads)) fibers.push_back(std::make_unique<Fiber>());
  warps.assign(static_cast<size_t>((threads + 31) / 32), Warp{});
  for (int thread = 0; thread < threads; ++thread) {
    Fiber& next = *fibers[static_cast<size_t>(thread)];
    next.copies.clear();
    next.group = next.warp_epoch = 0;
    wake(thread);
  }
}
void run_block(int threads, int shared_bytes) {
  begin_block(threads, shared_bytes);
  while (!failed && done < thread_count) {
    const int thread = pick();
    if (thread >= 0) {
      enter(thread);
    } else {
      std::snprintf(error_text, sizeof error_text,
                    "block %u is stuck: %d threads wait at a barrier, %d have ended, %d wait for their warp",
                    block_index.x, at_barrier, done, thread_count - at_barrier - done);
      failed = true;
    }
  }
  if (failed) {  // some are in the middle of the kernel: they begin anew
    for (auto& each : fibers) each->started = false;
  }
}

bool ordered(int thread, int warp_epoch) {
  return thread == current || (thread / 32 == current / 32 && warp_epoch < fiber().warp_epoch);
}
void check_race(Word& word, size_t offset, bool write) {
  if (word.write_epoch == epoch && !ordered(word.writer, word.write_warp_epoch)) {
    fail("race: thread %d %s byte %zu of shared memory, which thread %d wrote since the last barrier", current,
         write ? "writes" : "reads", offset, word.writer);
  }
  if (write) {
    if (word.read_epoch == epoch && (word.read_by_many || !ordered(word.reader, word.read_warp_epoch))) {
      fail("race: thread %d writes byte %zu of shared memory, which thread %d read since the last barrier", current,
           offset, word.reader);
    }
    word.write_epoch = epoch;
    word.writer = current;
    word.write_warp_epoch = fiber().warp_epoch;
  } else {
    const bool again = word.read_epoch == epoch;
    word.read_by_many = again && (word.read_by_many || word.reader / 32 != current / 32);
    // Of two lanes of one warp, none stands for both: a write is ordered after them by a later collective only.
    word.read_warp_epoch = again ? std::max(word.read_warp_epoch, fiber().warp_epoch) : fiber().warp_epoch;
    word.reader = again && word.reader != current ? word.reader : current;
    word.read_epoch = epoch;
  }
}

}  // namespace

extern "C" void emulation_reset(uint64_t seed) {
  allocations.clear();
  last_allocation = 0;
  only_last = -1;
  random_state = seed * 0x9e3779b97f4a7c15u + 1;
}
extern "C" void emulation_allocate(const void* begin, int64_t bytes, int writable) {
  const auto address = reinterpret_cast<uintptr_t>(begin);
  allocations.push_back({address, address + static_cast<uintptr_t>(bytes), writable != 0});
}

extern "C" void emulation_only_last(int64_t blocks) { only_last = blocks; }

void fail(const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  const int used = std::snprintf(error_text, sizeof error_text, "block %u: ", block_index.x);
  std::vsnprintf(error_text + used, sizeof error_text - static_cast<size_t>(used), format, arguments);
  va_end(arguments);
  failed = true;
  _longjmp(scheduler_jump, 1);
}

const char* run(unsigned blocks, int threads, int shared_bytes, const std::function<void()>& kernel) {
  failed = false;
  kernel_now = &kernel;
  // Per multiprocessor: 64 KB, 163 KB, 99 KB, 227 KB for a block at most.
  const int capability = EMULATED_CAPABILITY;
  const int limit = capability < 80 ? 64 : capability == 80 ? 163 : capability < 90 || capability >= 120 ? 99 : 227;
  if (blocks < 1 || blocks > 0x7fffffffu || threads < 1 || threads > 1024 || shared_bytes > limit * 1024) {
    return "invalid configuration of a launch";
  }
  const unsigned count = only_last < 0 || only_last > blocks ? blocks : static_cast<unsigned>(only_last);
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), blocks - count);
  for (unsigned i = count; i > 1; --i) std::swap(order[i - 1], order[random_below(i)]);
  for (unsigned i = 0; i < count && !failed; ++i) {
    block_index.x = order[i];
    run_block(threads, shared_bytes);
  }
  return failed ? error_text : nullptr;
}

void touch_global(const void* address, size_t bytes, Use use) {
  const bool write = use != Use::kRead;
  const auto begin = reinterpret_cast<uintptr_t>(address);
  if (begin % bytes != 0) fail("thread %d: %zu bytes at a misaligned global address", current, bytes);
  const auto holds = [&](const Allocation& a) { return begin >= a.begin && begin + bytes <= a.end; };
  if (last_allocation >= allocations.size() || !holds(allocations[last_allocation])) {
    last_allocation = 0;
    while (last_allocation < allocations.size() && !holds(allocations[last_allocation])) ++last_allocation;
  }
  if (last_allocation == allocations.size()) {
    fail("thread %d %s %zu bytes of global memory out of bounds", current, write ? "writes" : "reads", bytes);
  }
  if (write && !allocations[last_allocation].writable) fail("thread %d writes to an input", current);
}

unsigned char* shared_base() {
  const auto address = reinterpret_cast<uintptr_t>(shared.data());
  return shared.data() + (128 - address % 128) % 128;
}
void touch_shared(const void* address, size_t bytes, bool write) {
  const auto offset = static_cast<size_t>(static_cast<const unsigned char*>(address) - shared_base());
  if (offset % bytes != 0) fail("thread %d: %zu bytes at a misaligned shared address", current, bytes);
  if (offset + bytes > shared_bytes_now) {
    fail("thread %d %s %zu bytes of shared memory out of bounds", current, write ? "writes" : "reads", bytes);
  }
  for (size_t word = offset / 4; word < (offset + bytes + 3) / 4; ++word) check_race(words[word], word * 4, write);
}

void block_barrier() {
  if (++at_barrier < thread_count) {
    wait_as(State::kAtBarrier);
    return;
  }
  at_barrier = 0;
  ++epoch;
  for (int thread = 0; thread < thread_count; ++thread) {
    if (thread != current) wake(thread);
  }
}

// The target is poisoned at once and filled at the wait: neither its old nor its new content can be relied on between.
void copy_async(void* target, const void* source, bool valid) {
  Copy copy{target, {}, fiber().group};
  if (valid) {
    touch_global(source, 16, Use::kRead);
    std::memcpy(copy.bytes, source, 16);
  }
  touch_shared(target, 16, true);
  std::memset(target, kPoison, 16);
  fiber().copies.push_back(copy);
}
void commit_copies() { ++fiber().group; }
void wait_copies(int pending) {
  auto& copies = fiber().copies;
  size_t kept = 0;
  for (const Copy& copy : copies) {
    if (copy.group < fiber().group - pending) {
      touch_shared(copy.target, 16, true);
      std::memcpy(copy.target, copy.bytes, 16);
    } else {
      copies[kept++] = copy;
    }
  }
  copies.resize(kept);
}

void collective(Collective operation, void* argument) {
  Warp& warp = warps[static_cast<size_t>(current / 32)];
  if (warp.arrived > 0 && warp.operation != operation) {
    fail("thread %d is at another instruction than the other lanes of its warp", current);
  }
  warp.operation = operation;
  warp.arguments[current % 32] = argument;
  if (++warp.arrived < 32) {
    wait_as(State::kInWarp);
  } else {
    operation(warp.arguments);
    warp.arrived = 0;
    const int first = current / 32 * 32;
    for (int thread = first; thread < first + 32; ++thread) {
      if (thread != current) wake(thread);
    }
  }
  ++fiber().warp_epoch;
}

}  // namespace emulation
