// Memory of maps and scratch: large blocks come back to a pool, because the system hands out new ones page by page, and
// filling them with zeros costs as much as a convolution.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vovnet::cpu {

// `bytes` at an address that is a multiple of 64, on huge pages where the system has them.
//
// Throws std::bad_alloc. For every thread; release() may be called by another one.
void* acquire(size_t bytes);
void release(void* block);

// What the pool holds for later: never more than this, in bytes.
constexpr size_t kMostIdle = size_t{512} << 20;
size_t idle_bytes();
void release_idle();

// A block that ends with its scope.
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
