// Max-pool without Torch, against plain loops in double. See checks.h.
#include <sys/mman.h>

#include "checks.h"
#include "roi_pool.h"

namespace {

using namespace checks;
using vovnet::cpu::MaxPool;
using vovnet::cpu::RoiPoolKernels;

const RoiPoolKernels* roi_pool;  // by DType

int64_t windows(int64_t size, int64_t kernel, int64_t stride, int64_t padding, bool ceil_mode) {
  int64_t count = 0;  // those that end inside, or, with ceil_mode, begin inside
  for (int64_t begin = -padding; ceil_mode ? begin < size : begin + kernel <= size + padding; begin += stride) {
    ++count;
    if (begin + kernel >= size + padding) break;
  }
  return count;
}

template <typename T>
double expected_largest(const MaxPool& pool, int64_t image, int64_t y, int64_t x, int64_t channel) {
  double best = -kInf;
  for (int64_t i = y * pool.stride[0] - pool.padding[0], rows = 0; rows < pool.kernel[0]; ++i, ++rows) {
    for (int64_t j = x * pool.stride[1] - pool.padding[1], columns = 0; columns < pool.kernel[1]; ++j, ++columns) {
      if (i < 0 || i >= pool.height || j < 0 || j >= pool.width) continue;
      const int64_t pixel = (image * pool.height + i) * pool.width + j;
      const double v = value(static_cast<const T*>(pool.x)[pixel * pool.channels + channel]);
      if (std::isnan(v) || std::isnan(best)) {
        best = kNan;
      } else {
        best = std::max(best, v);
      }
    }
  }
  return best;
}

template <typename T>
void test_pools(const std::vector<int64_t>& all_channels) {
  struct Window {
    int64_t kernel[2], stride[2], padding[2];
  };
  const Window all[] = {{{3, 3}, {2, 2}, {0, 0}}, {{3, 3}, {2, 2}, {1, 1}}, {{3, 3}, {1, 1}, {1, 1}},
                        {{2, 3}, {3, 1}, {1, 0}}, {{3, 2}, {2, 3}, {0, 1}}, {{1, 1}, {2, 2}, {0, 0}},
                        {{2, 2}, {5, 5}, {0, 0}}, {{15, 17}, {1, 1}, {7, 8}}};
  for (const int64_t channels : all_channels) {
    for (const auto& [height, width] : {std::pair{9, 12}, {17, 3}, {1, 1}, {2, 7}}) {
      for (const float special : {0.0f, kNan, kInf, -kInf}) {
        Buffer<T> x = random_map<T>(2 * height * width * channels);
        if (special != 0) {
          for (T& v : x) v = draw() > 0.8f ? rounded<T>(special) : v;
          for (int64_t i = 0; i < x.size; i += channels) x.begin()[i] = rounded<T>(special);  // all of a channel
        }
        for (const Window& window : all) {
          for (const bool ceil_mode : {false, true}) {
            MaxPool pool{x.begin(), channels, height, width, 0, 0, {}, {}, {}, nullptr};
            std::copy_n(window.kernel, 2, pool.kernel);
            std::copy_n(window.stride, 2, pool.stride);
            std::copy_n(window.padding, 2, pool.padding);
            pool.out_height = windows(height, window.kernel[0], window.stride[0], window.padding[0], ceil_mode);
            pool.out_width = windows(width, window.kernel[1], window.stride[1], window.padding[1], ceil_mode);
            if (pool.out_height < 1 || pool.out_width < 1) continue;
            Buffer<T> out(2 * pool.out_height * pool.out_width * channels);
            pool.out = out.begin();
            vovnet::cpu::max_pool(pool, 2, sizeof(T) == 4 ? DType::kFloat32 : DType::kBFloat16, roi_pool,
                                  kParallels[ceil_mode]);
            for (int64_t i = 0; i < out.size; ++i) {
              const int64_t pixel = i / channels, row = pixel / pool.out_width;
              const double expected = expected_largest<T>(pool, row / pool.out_height, row % pool.out_height,
                                                          pixel % pool.out_width, i % channels);
              check(same(value(out.begin()[i]), expected, 0), "max-pool", i, value(out.begin()[i]), expected);
            }
          }
        }
      }
    }
  }
}

// More elements than 32 bits count, of which one row is asked for: with windows of one pixel, both maps are as large.
void test_far_offsets() {
  constexpr int64_t kSide = 3000, kChannels = 256, kCount = kSide * kSide * kChannels;
  float* maps[2];
  for (float*& map : maps) {
    void* memory = mmap(nullptr, kCount * sizeof(float), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      std::printf("skipped: no address space for 18 GB\n");
      return;
    }
    map = static_cast<float*>(memory);
  }
  const auto [x, out] = maps;
  for (int64_t i = kCount - 4 * kChannels; i < kCount; ++i) x[i] = draw();
  const MaxPool pool{x, kChannels, kSide, kSide, kSide, kSide, {1, 1}, {1, 1}, {0, 0}, out};
  roi_pool[0].max_rows(pool, kSide - 1, kSide);
  for (int64_t i = kCount - 4 * kChannels; i < kCount; ++i) check(out[i] == x[i], "far row", i, out[i], x[i]);
  for (float* map : maps) munmap(map, kCount * sizeof(float));
}

}  // namespace

int main(int count, char** words) {
  const Request request(count, words);
  roi_pool = request.kernels.roi_pool;
  const std::vector<int64_t> channels =
      request.quick ? std::vector<int64_t>{3, 16, 36} : std::vector<int64_t>{1, 3, 16, 17, 36, 300};
  test_pools<float>(channels);
  test_pools<uint16_t>(channels);
  if (!request.quick) test_far_offsets();
  return finish();
}
