// A small machine that runs CUDA's execution model on the host: blocks one after the other in random order, each
// thread a fiber, fibers in random order between the points where they wait. It stops at the first access beyond its
// allocation, misaligned access, race in shared memory, warp or barrier that not all threads reach.
//
// The same interface has a second implementation, traffic.cpp, which computes nothing and follows the addresses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

// What the kernels' global memory is: everything else is out of bounds. The reset forgets all of it, and begins a random
// order. With C linkage, for ctypes.
extern "C" void emulation_reset(uint64_t seed);
extern "C" void emulation_allocate(const void* begin, int64_t bytes, int writable);

// From now on a launch runs only its last blocks, so many; -1: all, as after a reset. For maps too large to compute.
extern "C" void emulation_only_last(int64_t blocks);

namespace emulation {

struct Index {
  unsigned x;
};
extern Index thread_index, block_index;

// Runs a kernel; the error's text, or null.
const char* run(unsigned blocks, int threads, int shared_bytes, const std::function<void()>& kernel);

// Stops the block; never returns.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

enum class Use { kRead, kWrite, kWriteStreamed };  // streamed: may leave the caches first
void touch_global(const void* address, size_t bytes, Use use);
void touch_shared(const void* address, size_t bytes, bool write);
unsigned char* shared_base();

void block_barrier();
void copy_async(void* target, const void* source, bool valid);
void commit_copies();
void wait_copies(int pending);

// Waits until all 32 lanes have come with the same operation; the last one carries it out, on the lanes' arguments.
using Collective = void (*)(void* const (&arguments)[32]);
void collective(Collective operation, void* argument);

}  // namespace emulation
