// Small kernels with one fault each, for the test of the emulation itself. Fault 0 is none.
#include "device.cuh"

namespace {

using vovnet::load;
using vovnet::load_shared;
using vovnet::store;
using vovnet::store_shared;

constexpr int kThreads = 64;

enum Fault : int {
  kNone,
  kNoBarrier,          // reads what another warp writes
  kNoWarpBarrier,      // reads what another lane writes
  kOverwritten,        // writes what another warp still reads
  kReadBeyond,         // one element behind the input
  kWriteBeyond,        // one element behind the output
  kSharedBeyond,       // one element behind shared memory
  kMisaligned,         // a wide read at a narrow address
  kWritesInput,
  kLastNotWritten,
  kReadsUnwritten,     // shared memory that nobody wrote
  kSomeSkipBarrier,
  kSomeSkipWarp,
  kNoWait,             // asynchronous copies, read without their wait
  kWaitsForTooFew,     // all groups but one too many
  kNeverWaits,         // and never reads
};

// out[i] = in[n - 1 - i] + in[i ^ 1], for one block, through shared memory.
void reverse_kernel(const float* in, float* out, Fault fault) {
  const auto t = static_cast<int>(threadIdx.x);
  auto* shared = reinterpret_cast<float*>(vovnet::shared_memory());  // (kThreads) and (kThreads)
  if (fault != kReadsUnwritten || t != 3) store_shared(shared + t, load(in + t + (fault == kReadBeyond ? 1 : 0)));
  if (fault == kSomeSkipBarrier && t == 7) return;
  if (fault != kNoBarrier) vovnet::block_barrier();
  const float reversed = load_shared(shared + kThreads - 1 - t);
  if (fault == kOverwritten) store_shared(shared + t, 0.0f);

  store_shared(shared + kThreads + t + (fault == kSharedBeyond ? 1 : 0), load(in + t));
  if (fault != kNoWarpBarrier && !(fault == kSomeSkipWarp && t == 9)) vovnet::warp_barrier();
  const float neighbour = load_shared(shared + kThreads + (t ^ 1));
  if (fault == kMisaligned) load(reinterpret_cast<const vovnet::Bits16*>(in + 1));
  if (fault == kWritesInput) store(const_cast<float*>(in + t), 0.0f);
  if (fault == kLastNotWritten && t == kThreads - 1) return;
  store(out + t + (fault == kWriteBeyond ? 1 : 0), reversed + neighbour);
}

// The same sum, with both halves of shared memory filled by asynchronous copies in two groups.
void copy_kernel(const float* in, float* out, Fault fault) {
  const auto t = static_cast<int>(threadIdx.x);
  auto* shared = reinterpret_cast<float*>(vovnet::shared_memory());
  for (int half = 0; half < 2; ++half) {
    if (t < kThreads / 4) vovnet::copy_async(shared + half * kThreads + 4 * t, in + 4 * t, true);
    vovnet::commit_copies();
  }
  if (fault == kNeverWaits) {
    store(out + t, load(in + kThreads - 1 - t) + load(in + (t ^ 1)));
    return;
  }
  if (fault == kWaitsForTooFew) {
    vovnet::wait_copies<1>();
  } else if (fault != kNoWait) {
    vovnet::wait_copies<0>();
  }
  vovnet::block_barrier();
  const float sum = load_shared(shared + kThreads - 1 - t) + load_shared(shared + kThreads + (t ^ 1));
  vovnet::wait_copies<0>();
  store(out + t, sum);
}

}  // namespace

// in, out (64), registered; the error's text, or "".
extern "C" const char* run_example(int fault, const float* in, float* out) {
  const bool copies = fault >= kNoWait || fault < 0;  // below 0: the copies' kernel without a fault
  const auto chosen = static_cast<Fault>(fault < 0 ? 0 : fault);
  return vovnet::launch(copies ? copy_kernel : reverse_kernel, 1, kThreads, 2 * kThreads * 4, nullptr, in, out, chosen)
      .message;
}
