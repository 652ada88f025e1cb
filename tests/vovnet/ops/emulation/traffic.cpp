// The machine of machine.h without arithmetic: it follows the addresses that the kernels touch through a model of the L2
// cache and counts what reaches DRAM.
//
// The cache is fully associative, with sectors of 32 bytes. The least recently used one is evicted; where the hint is
// heeded, of those that were last written as streamed first, which is what PTX calls evict-first. A read that misses
// costs a sector; a written sector costs one when it is evicted or at the end, and one more where only a part of it was
// written. The GPU holds `resident` blocks at once, which begin in launch order. They advance in lock-step, from barrier
// to barrier; where one ends, the next in launch order begins. With one resident block, they run one after the other.
#include <cstdlib>
#include <unordered_map>
#include <vector>

#include "machine.h"

namespace emulation {

Index thread_index, block_index;

namespace {

constexpr uint32_t kWhole = 0xffffffffu;  // the bytes of a sector

struct Access {
  uint32_t sector;
  uint32_t written;  // a bit each byte; 0: a read
  bool streamed;
};
using Trace = std::vector<std::vector<Access>>;  // of a block: its epochs' accesses

struct Allocation {
  uintptr_t begin, end;
  uint32_t first_sector;
};
std::vector<Allocation> allocations;
size_t last_allocation;

struct Sector {
  int32_t older = -1, newer = -1;
  uint32_t dirty = 0;
  bool cached = false, fetched = false, streamed = false;
};
std::vector<Sector> sectors;
struct Order {
  int32_t oldest = -1, newest = -1;
};
Order orders[2];  // of the sectors that stay, and of those written as streamed, which go first
int64_t cached_sectors, capacity, read_sectors, written_sectors;
int resident_blocks;
bool heed_streaming;

Trace* trace;
size_t epoch;

void unlink(const Sector& sector) {
  Order& order = orders[sector.streamed];
  (sector.older >= 0 ? sectors[static_cast<size_t>(sector.older)].newer : order.oldest) = sector.newer;
  (sector.newer >= 0 ? sectors[static_cast<size_t>(sector.newer)].older : order.newest) = sector.older;
}
void link_newest(Sector& sector, int32_t id) {
  Order& order = orders[sector.streamed];
  sector.older = order.newest;
  sector.newer = -1;
  (order.newest >= 0 ? sectors[static_cast<size_t>(order.newest)].newer : order.oldest) = id;
  order.newest = id;
}
void evict_oldest() {
  Sector& sector = sectors[static_cast<size_t>(orders[1].oldest >= 0 ? orders[1].oldest : orders[0].oldest)];
  if (sector.dirty != 0) {
    ++written_sectors;
    if (sector.dirty != kWhole && !sector.fetched) ++read_sectors;
  }
  unlink(sector);
  sector = Sector{};
  --cached_sectors;
}
void play(const Access& access) {
  Sector& sector = sectors[access.sector];
  if (sector.cached) {
    unlink(sector);
  } else {
    if (cached_sectors == capacity) evict_oldest();
    ++cached_sectors;
    sector.cached = true;
  }
  sector.streamed = access.streamed && heed_streaming;
  link_newest(sector, static_cast<int32_t>(access.sector));
  sector.dirty |= access.written;
  if (access.written == 0 && !sector.fetched && sector.dirty != kWhole) {
    ++read_sectors;
    sector.fetched = true;
  }
}

// What a warp touches with one instruction reaches the cache as whole sectors: accesses of an epoch to the same sector are
// one.
void coalesce(std::vector<Access>& accesses) {
  std::unordered_map<uint32_t, size_t> places;
  size_t kept = 0;
  for (const Access& access : accesses) {
    const auto [place, added] = places.try_emplace(access.sector, kept);
    if (added) {
      accesses[kept++] = access;
    } else {
      accesses[place->second].written |= access.written;
    }
  }
  accesses.resize(kept);
}

Trace trace_of(unsigned block, int threads, const std::function<void()>& kernel) {
  Trace result;
  trace = &result;
  block_index.x = block;
  for (int thread = 0; thread < threads; ++thread) {
    thread_index.x = static_cast<unsigned>(thread);
    epoch = 0;
    kernel();
  }
  for (auto& accesses : result) coalesce(accesses);
  return result;
}

struct Running {
  Trace trace;
  size_t epoch;
};

}  // namespace

extern "C" void emulation_reset(uint64_t) {
  allocations.clear();
  sectors.clear();
  orders[0] = orders[1] = Order{};
  cached_sectors = read_sectors = written_sectors = 0;
  last_allocation = 0;
}
extern "C" void emulation_allocate(const void* begin, int64_t bytes, int) {
  const auto address = reinterpret_cast<uintptr_t>(begin);
  allocations.push_back({address, address + static_cast<uintptr_t>(bytes), static_cast<uint32_t>(sectors.size())});
  sectors.resize(sectors.size() + static_cast<size_t>(bytes + 31) / 32);
}

const char* run(unsigned blocks, int threads, int, const std::function<void()>& kernel) {
  std::vector<Running> running;
  unsigned next = 0;
  while (next < blocks || !running.empty()) {
    while (next < blocks && running.size() < static_cast<size_t>(resident_blocks)) {
      running.push_back({trace_of(next++, threads, kernel), 0});
    }
    for (Running& block : running) {
      if (block.epoch < block.trace.size()) {
        for (const Access& access : block.trace[block.epoch]) play(access);
      }
      ++block.epoch;
    }
    std::erase_if(running, [](const Running& block) { return block.epoch >= block.trace.size(); });
  }
  return nullptr;
}

void fail(const char* format, ...) {
  (void)format;
  std::abort();
}

void touch_global(const void* address, size_t bytes, Use use) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  const auto holds = [&](const Allocation& a) { return begin >= a.begin && begin + bytes <= a.end; };
  if (last_allocation >= allocations.size() || !holds(allocations[last_allocation])) {
    last_allocation = 0;
    while (last_allocation < allocations.size() && !holds(allocations[last_allocation])) ++last_allocation;
    if (last_allocation == allocations.size()) fail("out of bounds");
  }
  const Allocation& allocation = allocations[last_allocation];
  const uintptr_t offset = begin - allocation.begin;
  const uint32_t part = (bytes == 32 ? kWhole : (1u << bytes) - 1) << offset % 32;
  if (trace->size() <= epoch) trace->resize(epoch + 1);
  (*trace)[epoch].push_back({allocation.first_sector + static_cast<uint32_t>(offset / 32),
                             use == Use::kRead ? 0 : part, use == Use::kWriteStreamed});
}
void touch_shared(const void*, size_t, bool) {}
unsigned char* shared_base() { return nullptr; }
void block_barrier() { ++epoch; }
void copy_async(void*, const void* source, bool valid) {
  if (valid) touch_global(source, 16, Use::kRead);
}
void commit_copies() {}
void wait_copies(int) {}
void collective(Collective, void*) {}

}  // namespace emulation

extern "C" {
void traffic_configure(int64_t cache_bytes, int resident, int heed) {
  emulation::capacity = cache_bytes / 32;
  emulation::resident_blocks = resident;
  emulation::heed_streaming = heed != 0;
}
// Writes back what is still in the cache, and gives the bytes that DRAM read and wrote since the reset.
void traffic_finish(int64_t* read_bytes, int64_t* written_bytes) {
  while (emulation::cached_sectors > 0) emulation::evict_oldest();
  *read_bytes = emulation::read_sectors * 32;
  *written_bytes = emulation::written_sectors * 32;
}
}
