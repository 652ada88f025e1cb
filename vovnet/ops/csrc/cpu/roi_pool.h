// What RoIAlign and max-pool take: plain structs without Torch, shared by all instruction sets and torch_roi_pool.cpp.
//
// Maps are channels-last, of float32 or bfloat16 (the upper half of a float32, as uint16_t); sums are float32.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vovnet::cpu {

struct Parallel;

enum class DType : int { kFloat32 = 0, kBFloat16 = 1 };

// A pixel that a bin reads along one axis: how many elements it lies behind the first, and its share of the average.
struct Tap {
  int64_t offset;
  float weight;
};

// Of every bin along one axis: bin i reads taps[begin[i]] up to, not including, taps[begin[i + 1]].
struct Bins {
  const Tap* taps;
  const int64_t* begin;
  int64_t count;
};

// One RoI: the bin (y, x) is the sum of rows[y].weight * columns[x].weight * pixel over the taps of both axes.
struct Patch {
  const void* map;  // its image's first pixel
  Bins rows, columns;
  int64_t channels;
  void* out;     // (rows.count, columns.count, channels)
  bool streams;  // whether `out` goes past the caches; then it and each bin begin at a multiple of 64 bytes
};

// A max-pool. Kernels take its output rows [begin, end), counted through the images.
struct MaxPool {
  const void* x;
  int64_t channels, height, width, out_height, out_width;
  int64_t kernel[2], stride[2], padding[2];  // of y and x
  void* out;
};

// A level of a feature pyramid. `scale` takes a length of the image to one of the map.
struct Level {
  const void* map;  // (batch, height, width, channels)
  int64_t height, width;
  float scale;
};

struct RoiAlign {
  const Level* levels;
  int64_t channels;
  int64_t count;           // of RoIs
  const float* rois;       // (count, 5): index of the image, x1, y1, x2, y2
  const int64_t* level_of; // (count)
  int64_t out_height, out_width, sampling_ratio;
  bool aligned;
  void* out;  // (count, out_height, out_width, channels)
};

// The part of them that each instruction set has: an entry for each DType.
struct RoiPoolKernels {
  void (*average)(const Patch&);
  void (*max_rows)(const MaxPool&, int64_t begin, int64_t end);
};

// torchvision's roi_align of every RoI on the level that is its own. Images and levels that RoIs name must be there.
void roi_align(const RoiAlign&, DType, const RoiPoolKernels*, const Parallel&);

// The rows' last window begins inside of the map or its upper padding, which is at most half a window.
void max_pool(const MaxPool&, int64_t batch, DType, const RoiPoolKernels*, const Parallel&);

}  // namespace vovnet::cpu
