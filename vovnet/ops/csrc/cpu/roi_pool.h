// The arguments of RoIAlign and max-pool: plain structs without Torch, shared by all instruction sets and
// torch_roi_pool.cpp.
//
// Maps are channels-last, float32 or bfloat16 (the upper half of a float32, as uint16_t). Sums are float32.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vovnet::cpu {

struct Parallel;

enum class DType : int { kFloat32 = 0, kBFloat16 = 1 };

// A pixel that a bin reads along one axis: its offset in elements from the first pixel, and its weight in the average.
struct Tap {
  int64_t offset;
  float weight;
};

// The taps of all bins along one axis: bin i reads taps[begin[i]] to taps[begin[i + 1] - 1].
struct Bins {
  const Tap* taps;
  const int64_t* begin;
  int64_t count;
};

// One RoI: the bin (y, x) is the sum of rows[y].weight * columns[x].weight * pixel over the taps of both axes.
struct Patch {
  const void* map;  // the first pixel of its image
  Bins rows, columns;
  int64_t channels;
  void* out;     // (rows.count, columns.count, channels)
  bool streams;  // store `out` past the caches; it and each bin then begin at a multiple of 64 bytes
};

// A max-pool. Kernels compute output rows [begin, end), counted over all images.
struct MaxPool {
  const void* x;
  int64_t channels, height, width, out_height, out_width;
  int64_t kernel[2], stride[2], padding[2];  // in y and x
  void* out;
};

// A level of a feature pyramid. `scale` is the map's size divided by the image's.
struct Level {
  const void* map;  // (batch, height, width, channels)
  int64_t height, width;
  float scale;
};

struct RoiAlign {
  const Level* levels;
  int64_t channels;
  int64_t count;           // number of RoIs
  const float* rois;       // (count, 5): index of the image, x1, y1, x2, y2
  const int64_t* level_of; // (count)
  int64_t out_height, out_width, sampling_ratio;
  bool aligned;
  void* out;  // (count, out_height, out_width, channels)
};

// The kernels of one DType, compiled for each instruction set.
struct RoiPoolKernels {
  void (*average)(const Patch&);
  void (*max_rows)(const MaxPool&, int64_t begin, int64_t end);
};

// Computes torchvision's roi_align of every RoI on its level. The images and levels of the RoIs must exist.
void roi_align(const RoiAlign&, DType, const RoiPoolKernels*, const Parallel&);

// Every window begins inside the map or its padding, which is at most half a window.
void max_pool(const MaxPool&, int64_t batch, DType, const RoiPoolKernels*, const Parallel&);

}  // namespace vovnet::cpu
