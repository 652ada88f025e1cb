#include "runtime.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include <torch/csrc/stable/ops.h>

namespace vovnet::cpu {
namespace {

Kernels choose() {
  const char* given = std::getenv("VOVNET_ISA");
  const std::string wanted = given == nullptr ? "" : given;
  if (!wanted.empty() && wanted != "plain" && wanted != "avx2" && wanted != "avx512") {
    throw std::runtime_error("VOVNET_ISA='" + wanted + "': expected one of plain, avx2, avx512");
  }
#if !defined(VOVNET_PLAIN_ONLY)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && (wanted.empty() || wanted == "avx512")) {
    Kernels chosen = vovnet_cpu_kernels_avx512;
#if !defined(VOVNET_NO_AVX512_BF16)
    if (__builtin_cpu_supports("avx512bf16")) {
      chosen.convs[static_cast<int>(ComputeType::kBFloat16)] = vovnet_cpu_bfloat16_convs[0];
      chosen.convs[static_cast<int>(ComputeType::kBFloat16Maps)] = vovnet_cpu_bfloat16_convs[1];
    }
#endif
    return chosen;
  }
  if (avx2 && wanted != "plain") return vovnet_cpu_kernels_avx2;
#endif
  return vovnet_cpu_kernels_plain;
}

void run(int64_t tasks, void (*task)(void*, int64_t), void* context) {
  if (tasks == 1) {
    for (int64_t i = 0; i < tasks; ++i) task(context, i);
    return;
  }
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(context, i);
  });
}

}  // namespace

const Kernels& kernels() {
  static const Kernels chosen = choose();
  return chosen;
}

Parallel parallel() { return {static_cast<int>(torch::stable::get_num_threads()), run}; }

}  // namespace vovnet::cpu
