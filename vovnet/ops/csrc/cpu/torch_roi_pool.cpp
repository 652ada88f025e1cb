// RoIAlign and max-pool as Torch operators: checks, memory, threads.
#include <string>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "kernels.h"
#include "roi_pool.h"
#include "runtime.h"
#include "torch_layers.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using vovnet::checks::ArgChecker;
using vovnet::checks::shape_of;
using vovnet::checks::words;
using vovnet::cpu::DType;

DType dtype_of(const ArgChecker& check, const std::string& argument, const Tensor& map) {
  const ScalarType got = map.scalar_type();
  if (got != ScalarType::Float && got != ScalarType::BFloat16) {
    check.refuse(argument, "float32 or bfloat16", words(got));
  }
  return got == ScalarType::Float ? DType::kFloat32 : DType::kBFloat16;
}

// ---- pool_max

Tensor pool_max(const Tensor& x, const std::vector<int64_t>& kernel, const std::vector<int64_t>& stride,
                const std::vector<int64_t>& padding, bool ceil_mode) {
  ArgChecker check("pool_max");
  check.feature_map("x", x);
  const DType dtype = dtype_of(check, "x", x);
  vovnet::cpu::MaxPool pool =
      vovnet::cpu::pool_of(check, "x", vovnet::cpu::Map::of(x), kernel, stride, padding, ceil_mode);
  Tensor out = vovnet::cpu::new_map("pool_max", {x.size(0), pool.channels, pool.out_height, pool.out_width},
                                    x.scalar_type());
  if (out.numel() > 0) {
    pool.out = out.mutable_data_ptr();
    vovnet::cpu::max_pool(pool, x.size(0), dtype, vovnet::cpu::kernels().roi_pool, vovnet::cpu::parallel());
  }
  return out;
}

// ---- roi_align_levels

std::vector<vovnet::cpu::Level> check_maps(const ArgChecker& check, const std::vector<Tensor>& maps,
                                           const std::vector<double>& scales) {
  if (maps.empty()) check.refuse("maps", "one feature map or more", "none");
  if (scales.size() != maps.size()) {
    check.refuse("scales", "one for each map, " + std::to_string(maps.size()), std::to_string(scales.size()));
  }
  std::vector<vovnet::cpu::Level> levels;
  for (size_t i = 0; i < maps.size(); ++i) {
    const std::string name = "maps[" + std::to_string(i) + "]";
    check.feature_map(name, maps[i]);
    check.dtype(name, maps[i], maps[0].scalar_type());
    const int64_t height = maps[i].size(2), width = maps[i].size(3);
    check.shape(name, maps[i], {maps[0].size(0), maps[0].size(1), height, width}, "maps[0]'s N and C, so");
    levels.push_back({maps[i].const_data_ptr(), height, width, static_cast<float>(scales[i])});
  }
  return levels;
}

// The images and levels of the RoIs are read, so they must exist.
void check_rois(const ArgChecker& check, const Tensor& rois, const Tensor& level_of, int64_t images, int64_t levels) {
  if (rois.dim() != 2 || rois.size(1) != 5) {
    check.refuse("rois", "(K, 5): index of the image, x1, y1, x2, y2", words(shape_of(rois)));
  }
  check.dtype("rois", rois, ScalarType::Float);
  check.contiguous("rois", rois);
  check.shape("levels", level_of, {rois.size(0)}, "one for each RoI, so");
  check.dtype("levels", level_of, ScalarType::Long);
  check.contiguous("levels", level_of);
  const auto* roi = static_cast<const float*>(rois.const_data_ptr());
  const auto* level = static_cast<const int64_t*>(level_of.const_data_ptr());
  for (int64_t i = 0; i < rois.size(0); ++i, roi += 5) {
    if (!(roi[0] >= 0 && roi[0] < static_cast<float>(images))) {
      check.refuse("rois[" + std::to_string(i) + "]", "an image's index below " + std::to_string(images),
                  std::to_string(roi[0]));
    }
    if (level[i] < 0 || level[i] >= levels) {
      check.refuse("levels[" + std::to_string(i) + "]", "a map's index below " + std::to_string(levels),
                  std::to_string(level[i]));
    }
  }
}

Tensor roi_align_levels(const std::vector<Tensor>& maps, const Tensor& rois, const Tensor& levels,
                        const std::vector<double>& scales, const std::vector<int64_t>& output_size,
                        int64_t sampling_ratio, bool aligned) {
  ArgChecker check("roi_align_levels");
  const std::vector<vovnet::cpu::Level> pyramid = check_maps(check, maps, scales);
  const DType dtype = dtype_of(check, "maps[0]", maps[0]);
  check_rois(check, rois, levels, maps[0].size(0), static_cast<int64_t>(pyramid.size()));
  vovnet::cpu::check_pair(check, "output_size", output_size, 1);
  Tensor out = vovnet::cpu::new_map("roi_align_levels",
                                    {rois.size(0), maps[0].size(1), output_size[0], output_size[1]},
                                    maps[0].scalar_type());
  if (out.numel() > 0) {
    vovnet::cpu::roi_align({pyramid.data(), maps[0].size(1), rois.size(0),
                            static_cast<const float*>(rois.const_data_ptr()),
                            static_cast<const int64_t*>(levels.const_data_ptr()), output_size[0], output_size[1],
                            sampling_ratio, aligned, out.mutable_data_ptr()},
                           dtype, vovnet::cpu::kernels().roi_pool, vovnet::cpu::parallel());
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(VOVNET_NAMESPACE, CPU, library) {
  library.impl("pool_max", TORCH_BOX(&pool_max));
  library.impl("roi_align_levels", TORCH_BOX(&roi_align_levels));
}
