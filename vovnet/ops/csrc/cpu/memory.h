// Memory for maps and scratch. Large blocks are returned to a pool, because the system provides new ones page by page
// and filled with zeros, which costs as much as a convolution.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vovnet::cpu {

// Returns `bytes` at an address that is a multiple of 64, on huge pages if the system has them.
//
// Throws std::bad_alloc. Any thread may call both functions, and another one may release the block.
void* acquire(size_t bytes);
void release(void* block);

// The pool holds at most so many idle bytes.
constexpr size_t kMostIdle = size_t{512} << 20;
size_t idle_bytes();
void release_idle();

// A block that is released at the end of its scope.
class Scratch {
 public:
  explicit Scratch(size_t bytes) : data_(acquire(bytes)) {}
  ~Scratch() { release(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* data() const { return data_; }

 private:
  void* data_;
};

}  // namespace vovnet::cpu
