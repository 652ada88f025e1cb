// The threads and shared memory of each kernel, for the build's report.
#include "relu_backward.cuh"

namespace vovnet {

// kArchitectureLike is any architecture with the same number of stages.
template <int kArchitectureLike>
struct Launches {
  template <class ComputeType, class Product>
  static constexpr int bytes = Layout<ComputeType, Product>::shared_bytes(kArchitectureLike);
#define VOVNET_AGGREGATE(NUMBER, PRODUCT) \
  { "aggregate_kernel<" #NUMBER ", " #PRODUCT ">", kThreads, bytes<NUMBER, PRODUCT> }
#define VOVNET_PRODUCTS(NUMBER) \
  VOVNET_AGGREGATE(NUMBER, Forward), VOVNET_AGGREGATE(NUMBER, InputGradients), VOVNET_AGGREGATE(NUMBER, WeightGradient)
#define VOVNET_ELEMENTWISE(TYPE)                                      \
  {"relu_backward_kernel<" TYPE ", 8>", kReluThreads, kReluBytes},    \
      {"relu_backward_kernel<" TYPE ", 1>", kReluThreads, kReluBytes}, \
      {"sum_partials_kernel<" TYPE ">", kSumThreads, kSumBytes}
  static constexpr KernelLaunch kTable[] = {
      VOVNET_PRODUCTS(Float16),       VOVNET_PRODUCTS(BFloat16s),          VOVNET_PRODUCTS(Float32),
      VOVNET_PRODUCTS(TensorFloat32), VOVNET_ELEMENTWISE("__half"),        VOVNET_ELEMENTWISE("__nv_bfloat16"),
      VOVNET_ELEMENTWISE("float"),
  };
  static constexpr int kCount = static_cast<int>(sizeof(kTable) / sizeof(kTable[0]));
#undef VOVNET_AGGREGATE
#undef VOVNET_PRODUCTS
#undef VOVNET_ELEMENTWISE
};

extern "C" int vovnet_kernel_launches(int capability, const KernelLaunch** launches) {
  switch (stage_count(capability)) {
    case 1: *launches = Launches<75>::kTable; break;
    case 2: *launches = Launches<86>::kTable; break;
    default: *launches = Launches<80>::kTable;
  }
  return Launches<75>::kCount;
}

}  // namespace vovnet
