// RoIAlign except for the arithmetic on maps: computes the positions of samples and distributes RoIs over threads.
//
// Positions equal torchvision's to the last bit, so the compiler must not contract two roundings to one.
#include "roi_pool.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

namespace vovnet::cpu {
namespace {

constexpr int64_t kStreamBytes = int64_t{24} << 20;  // larger results are stored past the caches
constexpr int64_t kChunk = 8;  // RoIs that a thread takes at once; neighbours share pixels

// One axis of a RoI, in pixels of its map.
struct Side {
  float start, bin;  // start of the first bin, length of a bin
  int64_t grid;      // samples in a bin
};

Side side_of(float from, float to, float scale, const RoiAlign& args, int64_t bins) {
  const float shift = args.aligned ? 0.5f : 0.0f;
  const float start = from * scale - shift;
  float length = to * scale - shift - start;
  if (!args.aligned) length = std::max(length, 1.0f);
  const float bin = length / static_cast<float>(bins);
  if (args.sampling_ratio > 0) return {start, bin, args.sampling_ratio};
  const float grid = std::ceil(bin);
  // No samples for NaN, for a negative length, or if their number would overflow in torchvision.
  return {start, bin, grid > 0 && grid < 2147483648.0f ? static_cast<int64_t>(grid) : 0};
}

// The taps of every bin along an axis. The object is used for one RoI after the other, to keep its memory.
class Axis {
 public:
  // Computes the taps; `step` is the distance of two pixels in memory, in elements.
  void lay(const Side& side, int64_t bins, int64_t size, int64_t step) {
    taps_.clear();
    begin_.assign(1, 0);
    for (int64_t b = 0; b < bins; ++b) {
      const float origin = side.start + static_cast<float>(b) * side.bin;
      const auto [first, last] = candidates(side, origin, size);
      for (int64_t i = first; i < last; ++i) {
        add(origin + (static_cast<float>(i) + 0.5f) * side.bin / static_cast<float>(side.grid), size);
      }
      for (size_t i = begin_.back(); i < taps_.size(); ++i) {
        taps_[i].offset *= step;
        taps_[i].weight /= static_cast<float>(side.grid);
      }
      begin_.push_back(static_cast<int64_t>(taps_.size()));
    }
  }

  Bins bins() const { return {taps_.data(), begin_.data(), static_cast<int64_t>(begin_.size()) - 1}; }

 private:
  // Returns a range of samples that contains all samples of a bin on the map. If the RoI is much larger than the map,
  // these are few.
  static std::pair<int64_t, int64_t> candidates(const Side& side, float origin, int64_t size) {
    constexpr int64_t kFew = 64;
    const double step = static_cast<double>(side.bin) / static_cast<double>(side.grid);
    if (side.grid <= kFew || !(step > 0)) return {0, side.grid};
    const double slack = 3 + 1e-6 * (std::abs(static_cast<double>(origin)) + static_cast<double>(size)) / step;
    const auto index = [&](double at) {
      return static_cast<int64_t>(std::clamp(at, 0.0, static_cast<double>(side.grid)));
    };
    return {index((-1.0 - origin) / step - slack), index((static_cast<double>(size) - origin) / step + slack)};
  }

  // Adds a sample by linear interpolation between two pixels. Up to a pixel outside the map it takes the outermost one.
  void add(float at, int64_t size) {
    if (size == 0 || !(at >= -1.0f && at <= static_cast<float>(size))) return;
    at = std::max(at, 0.0f);
    const auto low = static_cast<int64_t>(at);
    if (low >= size - 1) return add(size - 1, 1.0f);
    const float behind = at - static_cast<float>(low);
    add(low, 1.0f - behind);
    add(low + 1, behind);
  }

  // Samples come in order, so if the pixel has a tap already, it is one of the last three.
  void add(int64_t pixel, float weight) {
    const size_t first = std::max(static_cast<size_t>(begin_.back()) + 3, taps_.size()) - 3;
    for (size_t i = taps_.size(); i-- > first;) {
      if (taps_[i].offset == pixel) {
        taps_[i].weight += weight;
        return;
      }
    }
    taps_.push_back({pixel, weight});
  }

  std::vector<Tap> taps_;
  std::vector<int64_t> begin_;
};

// Returns the order of RoIs by level, image and position, so that consecutive RoIs read the same memory.
std::vector<int64_t> order_of(const RoiAlign& args) {
  constexpr float kBand = 16;  // height of a band in pixels of the map; NaN and far RoIs have a band of their own
  std::vector<std::tuple<int64_t, float, float, float, int64_t>> places;
  places.reserve(args.count);
  for (int64_t i = 0; i < args.count; ++i) {
    const float* roi = args.rois + 5 * i;
    const int64_t level = args.level_of[i];
    const float x = roi[1], y = roi[2] * args.levels[level].scale / kBand;
    places.emplace_back(level, std::trunc(roi[0]), std::abs(y) < 1e6f ? std::floor(y) : -1e6f,
                        std::abs(x) < 1e9f ? x : -1e9f, i);
  }
  std::sort(places.begin(), places.end());
  std::vector<int64_t> order;
  order.reserve(places.size());
  for (const auto& place : places) order.push_back(std::get<4>(place));
  return order;
}

struct Job {
  const RoiAlign& args;
  bool streams;
  int64_t element_bytes;
  void (*average)(const Patch&);
  std::vector<int64_t> order;
  std::atomic<int64_t> next{0};
};

void align(const Job& job, int64_t i, Axis& rows, Axis& columns) {
  const RoiAlign& args = job.args;
  const float* roi = args.rois + 5 * i;
  const Level& level = args.levels[args.level_of[i]];
  const int64_t line = level.width * args.channels;
  rows.lay(side_of(roi[2], roi[4], level.scale, args, args.out_height), args.out_height, level.height, line);
  columns.lay(side_of(roi[1], roi[3], level.scale, args, args.out_width), args.out_width, level.width, args.channels);
  const int64_t image = static_cast<int64_t>(roi[0]) * level.height * line;
  const int64_t out = i * args.out_height * args.out_width * args.channels;
  job.average({static_cast<const char*>(level.map) + image * job.element_bytes, rows.bins(), columns.bins(),
               args.channels, static_cast<char*>(args.out) + out * job.element_bytes, job.streams});
}

void work(void* context, int64_t) {
  Job& job = *static_cast<Job*>(context);
  Axis rows, columns;
  const int64_t count = job.args.count;
  for (int64_t begin; (begin = job.next.fetch_add(kChunk)) < count;) {
    for (int64_t i = begin; i < std::min(begin + kChunk, count); ++i) align(job, job.order[i], rows, columns);
  }
}

}  // namespace

void roi_align(const RoiAlign& args, DType dtype, const RoiPoolKernels* kernels, const Parallel& parallel) {
  const bool half = dtype == DType::kBFloat16;
  const int64_t bytes = args.count * args.out_height * args.out_width * args.channels * (half ? 2 : 4);
  const bool aligned = args.channels % 32 == 0 && reinterpret_cast<uintptr_t>(args.out) % 64 == 0;
  Job job{args, aligned && bytes >= kStreamBytes, half ? 2 : 4, kernels[half].average, order_of(args)};
  parallel.run(parallel.threads, work, &job);
}

}  // namespace vovnet::cpu
