// RoIAlign without Torch, against plain loops in double. See checks.h.
#include <sys/mman.h>

#include "checks.h"
#include "roi_pool.h"

namespace {

using namespace checks;
using vovnet::cpu::Level;
using vovnet::cpu::RoiPoolKernels;
using vovnet::cpu::RoiAlign;

const RoiPoolKernels* roi_pool;  // by DType

// A sample of one channel, as the paper and torchvision define it.
template <typename T>
double sample(const T* map, int64_t height, int64_t width, int64_t channels, double y, double x) {
  if (!(y >= -1 && y <= height && x >= -1 && x <= width)) return 0;
  y = std::clamp<double>(y, 0, height - 1);
  x = std::clamp<double>(x, 0, width - 1);
  const int64_t top = static_cast<int64_t>(y), left = static_cast<int64_t>(x);
  const int64_t bottom = std::min(top + 1, height - 1), right = std::min(left + 1, width - 1);
  const auto at = [&](int64_t row, int64_t column) -> double { return value(map[(row * width + column) * channels]); };
  return (1 - (y - top)) * ((1 - (x - left)) * at(top, left) + (x - left) * at(top, right)) +
         (y - top) * ((1 - (x - left)) * at(bottom, left) + (x - left) * at(bottom, right));
}

template <typename T>
double expected_average(const RoiAlign& call, int64_t i, int64_t bin_y, int64_t bin_x, int64_t channel) {
  const Level& level = call.levels[call.level_of[i]];
  const float* roi = call.rois + 5 * i;
  double start[2], bin[2];
  int64_t grid[2];
  const int64_t bins[] = {call.out_height, call.out_width};
  for (int axis = 0; axis < 2; ++axis) {
    const double shift = call.aligned ? 0.5 : 0, scale = level.scale;
    start[axis] = roi[2 - axis] * scale - shift;
    double length = roi[4 - axis] * scale - shift - start[axis];
    if (!call.aligned) length = std::max(length, 1.0);
    bin[axis] = length / bins[axis];
    grid[axis] = call.sampling_ratio > 0 ? call.sampling_ratio : static_cast<int64_t>(std::ceil(bin[axis]));
    if (grid[axis] <= 0) return 0;
  }
  const T* map = static_cast<const T*>(level.map) +
                 static_cast<int64_t>(roi[0]) * level.height * level.width * call.channels + channel;
  double sum = 0;
  for (int64_t iy = 0; iy < grid[0]; ++iy) {
    const double y = start[0] + (bin_y + (iy + 0.5) / grid[0]) * bin[0];
    if (!(y >= -1 && y <= level.height)) continue;
    for (int64_t ix = 0; ix < grid[1]; ++ix) {
      const double x = start[1] + (bin_x + (ix + 0.5) / grid[1]) * bin[1];
      sum += sample(map, level.height, level.width, call.channels, y, x);
    }
  }
  return sum / (static_cast<double>(grid[0]) * grid[1]);
}

struct Pyramid {
  std::vector<Level> levels;
  int64_t batch, channels;
};

// Checks the bins of every `step`-th RoI, and that threads change nothing.
template <typename T>
void compare_rois(const char* what, const Pyramid& pyramid, const std::vector<float>& rois,
                  const std::vector<int64_t>& level_of, int64_t out_height, int64_t out_width, int64_t sampling_ratio,
                  bool aligned, int64_t step = 1, bool whole_steps = false) {
  const int64_t count = static_cast<int64_t>(level_of.size()), cells = out_height * out_width * pyramid.channels;
  Buffer<T> out(count * cells), other(count * cells);
  RoiAlign call{pyramid.levels.data(), pyramid.channels, count, rois.data(), level_of.data(), out_height, out_width,
                sampling_ratio, aligned, out.begin()};
  const DType dtype = sizeof(T) == 4 ? DType::kFloat32 : DType::kBFloat16;
  vovnet::cpu::roi_align(call, dtype, roi_pool, kParallels[0]);
  call.out = other.begin();
  vovnet::cpu::roi_align(call, dtype, roi_pool, kParallels[1]);
  check(std::memcmp(out.begin(), other.begin(), count * cells * sizeof(T)) == 0, "threads", 0, 0, 0);
  const double tolerance = (sizeof(T) == 4 ? 0 : 1.0 / 256) + (whole_steps ? 1e-6 : 2e-5);
  for (int64_t i = 0; i < count; i += step) {
    for (int64_t cell = 0; cell < cells; ++cell) {
      const int64_t channel = cell % pyramid.channels, bin = cell / pyramid.channels;
      const double expected = expected_average<T>(call, i, bin / out_width, bin % out_width, channel);
      const double got = value(out.begin()[i * cells + cell]);
      check(same(got, expected, tolerance), what, i * cells + cell, got, expected);
    }
  }
}

template <typename T>
void test_rois(const std::vector<int64_t>& all_channels) {
  for (const int64_t channels : all_channels) {
    std::vector<Buffer<T>> maps;
    Pyramid pyramid{{}, 2, channels};
    for (const auto& [height, width] : {std::pair{24, 31}, {12, 16}, {1, 5}, {6, 1}, {1, 1}}) {
      maps.push_back(random_map<T>(2 * height * width * channels));
      pyramid.levels.push_back({maps.back().begin(), height, width, 0.25f});
    }
    std::vector<float> rois;
    std::vector<int64_t> level_of;
    for (int i = 0; i < 20; ++i) {
      const float x = draw(-20, 120), y = draw(-20, 100), size = std::exp(draw(0, 5));
      rois.insert(rois.end(), {draw(0, 1.999f), x, y, x + size * draw(0.5f, 2), y + size * draw(0.5f, 2)});
      level_of.push_back(draw_int(0, 5));
    }
    for (const int64_t sampling_ratio : {2, 0, 1, 3, -1}) {
      for (const bool aligned : {false, true}) {
        compare_rois<T>("random RoIs", pyramid, rois, level_of, 7, 7, sampling_ratio, aligned);
        compare_rois<T>("random RoIs, other bins", pyramid, rois, level_of, 1, 3, sampling_ratio, aligned);
      }
    }
    compare_rois<T>("no RoI", pyramid, {}, {}, 7, 7, 2, false);
  }
}

// Coordinates in whole steps: samples lie exactly on pixels, on borders, and just beyond.
template <typename T>
void test_borders() {
  constexpr int64_t kChannels = 20;
  Buffer<T> map = random_map<T>(8 * 8 * kChannels);
  const Pyramid pyramid{{{map.begin(), 8, 8, 1.0f}}, 1, kChannels};
  std::vector<float> rois;
  for (const float from : {-9.0f, -3.0f, -2.0f, -1.0f, 0.0f, 3.0f, 6.0f, 7.0f, 8.0f, 9.0f, 40.0f}) {
    for (const float length : {0.0f, 1.0f, 2.0f, 4.0f, 16.0f, -4.0f}) {
      rois.insert(rois.end(), {0, from, 2, from + length, 6});
      rois.insert(rois.end(), {0, 1, from, 5, from + length});
    }
  }
  const std::vector<int64_t> level_of(rois.size() / 5, 0);
  for (const int64_t sampling_ratio : {0, 1, 2, 4}) {
    for (const bool aligned : {false, true}) {
      compare_rois<T>("borders", pyramid, rois, level_of, 2, 4, sampling_ratio, aligned, 1, true);
    }
  }
}

// What no detector should ask for: answers are zeros or few samples, and they come at once.
void test_strange_rois() {
  constexpr int64_t kChannels = 16;
  Buffer<float> map = random_map<float>(8 * 8 * kChannels);
  const Pyramid pyramid{{{map.begin(), 8, 8, 1.0f}}, 1, kChannels};
  for (const float strange : {kNan, kInf, -kInf, 3e38f, -3e38f}) {
    for (int place = 1; place < 5; ++place) {
      std::vector<float> roi{0, 1, 1, 6, 6};
      roi[place] = strange;
      for (const int64_t sampling_ratio : {0, 2}) {
        Buffer<float> out(4 * kChannels);
        const int64_t level = 0;
        vovnet::cpu::roi_align({pyramid.levels.data(), kChannels, 1, roi.data(), &level, 2, 2, sampling_ratio, true,
                                out.begin()}, DType::kFloat32, roi_pool, kParallels[0]);
        for (const float x : out) check(std::abs(x) <= 1, "strange RoI", place, x, 0);
      }
    }
  }
  // Over 4 million samples a side, of which some 12 lie on the map: the average is what they share.
  compare_rois<float>("huge RoI", pyramid, {0, -4194304, 2, 4194304, 6}, {0}, 1, 1, 0, false);
  compare_rois<float>("huge RoI", pyramid, {0, 1, -4194304, 6, 4194304}, {0}, 1, 1, 0, true);
}

// A pixel that no sample touches may hold anything; one that a sample touches shows, even with weight 0.
void test_infinite_pixels() {
  constexpr int64_t kChannels = 16, kSide = 6;
  for (const float special : {kNan, kInf}) {
    Buffer<float> map(kSide * kSide * kChannels);
    std::fill(map.begin(), map.end(), 1.0f);
    const auto set = [&](int64_t y, int64_t x) { map.begin()[(y * kSide + x) * kChannels] = special; };
    set(0, 0);
    set(2, 4);
    const Level level{map.begin(), kSide, kSide, 1.0f};
    const float rois[] = {0, 1, 1, 3, 3, 0, 1, 3, 3, 5, 0, -5, -5, -2, -2};
    const int64_t level_of[] = {0, 0, 0};
    Buffer<float> out(3 * kChannels);
    vovnet::cpu::roi_align({&level, kChannels, 3, rois, level_of, 1, 1, 2, false, out.begin()}, DType::kFloat32,
                           roi_pool, kParallels[0]);
    const float expected[] = {1, 1, 0};  // rows 1 to 3, 3 to 5, and none
    for (int i = 0; i < 3; ++i) {
      const float got = out.begin()[i * kChannels];
      check(got == expected[i], "beside an infinite pixel", i, got, expected[i]);
    }
    const float touching[] = {0, 3, 1, 4.5f, 3, 0, 1.5f, 1.5f, 3.5f, 3.5f};  // the second has weight 0 at column 4
    vovnet::cpu::roi_align({&level, kChannels, 2, touching, level_of, 1, 1, 2, false, out.begin()}, DType::kFloat32,
                           roi_pool, kParallels[0]);
    for (int i = 0; i < 2; ++i) {
      const float got = out.begin()[i * kChannels];
      check(!std::isfinite(got), "on an infinite pixel", i, got, special);
    }
    check(out.begin()[1] == 1, "beside its channel", 1, out.begin()[1], 1);
  }
}

// More than a cache holds, so that it is written past them.
template <typename T>
void test_many_rois() {
  constexpr int64_t kChannels = 256, kCount = 1024;
  Buffer<T> map = random_map<T>(2 * 20 * 20 * kChannels);
  const Pyramid pyramid{{{map.begin(), 20, 20, 0.5f}}, 2, kChannels};
  std::vector<float> rois;
  for (int64_t i = 0; i < kCount; ++i) {
    const float x = draw(0, 30), y = draw(0, 30);
    rois.insert(rois.end(), {static_cast<float>(i % 2), x, y, x + draw(1, 20), y + draw(1, 20)});
  }
  compare_rois<T>("many RoIs", pyramid, rois, std::vector<int64_t>(kCount, 0), 7, 7, 2, false, 37);
}

// More elements than 32 bits count, of which only the last are touched.
void test_far_offsets() {
  constexpr int64_t kSide = 3000, kChannels = 256, kCount = kSide * kSide * kChannels;
  void* memory = mmap(nullptr, kCount * sizeof(float), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    std::printf("skipped: no address space for 9 GB\n");
    return;
  }
  auto* map = static_cast<float*>(memory);
  for (int64_t y = kSide - 4; y < kSide; ++y) {
    for (int64_t i = 0; i < 4 * kChannels; ++i) map[((y + 1) * kSide - 4) * kChannels + i] = draw();
  }
  const Pyramid pyramid{{{map, kSide, kSide, 1.0f}}, 1, kChannels};
  compare_rois<float>("far RoI", pyramid, {0, kSide - 4, kSide - 4, kSide, kSide}, {0}, 4, 4, 2, false);
  // The same memory as a batch of smaller images.
  const Pyramid batch{{{map, kSide / 100, kSide, 1.0f}}, 100, kChannels};
  compare_rois<float>("far image", batch, {99, kSide - 4, 26, kSide, 30}, {0}, 4, 4, 2, false);
  munmap(memory, kCount * sizeof(float));
}

}  // namespace

int main(int count, char** words) {
  const Request request(count, words);
  roi_pool = request.kernels.roi_pool;
  const std::vector<int64_t> channels =
      request.quick ? std::vector<int64_t>{1, 17, 36} : std::vector<int64_t>{1, 3, 15, 16, 17, 36, 100, 256, 300};
  test_rois<float>(channels);
  test_rois<uint16_t>(channels);
  test_borders<float>();
  test_borders<uint16_t>();
  test_strange_rois();
  test_infinite_pixels();
  test_many_rois<float>();
  test_many_rois<uint16_t>();
  if (!request.quick) test_far_offsets();
  return finish();
}
