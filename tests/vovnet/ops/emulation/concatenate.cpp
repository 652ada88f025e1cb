// What torch.cat does to memory: reads each input once and writes the concatenation, for the comparison in test_traffic.
#include "launch.cuh"

namespace vovnet {

constexpr int kVectorsOfBlock = 4096;

// out (pixels, sum columns) = the panels side by side, 16 bytes at once.
void concatenate_kernel(Panels<const void> x, Half* out, int64_t pixels, int columns) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kVectorsOfBlock;
  for (int64_t i = first + threadIdx.x; i < first + kVectorsOfBlock; i += kThreads) {
    const int64_t element = i * 8;
    if (element >= pixels * columns) return;
    const Column place = find_column(x, static_cast<int>(element % columns));
    const Half* row = static_cast<const Half*>(x.data[place.panel]) + element / columns * x.stride[place.panel];
    store(reinterpret_cast<Bits16*>(out + element), load(reinterpret_cast<const Bits16*>(row + place.offset)));
  }
}

}  // namespace vovnet

extern "C" void emulated_concatenate(const void** x, const int* channels, int count, void* out, int64_t pixels) {
  vovnet::Panels<const void> panels{};
  int columns = 0;
  for (int i = 0; i < count; ++i) {
    vovnet::append(panels, x[i], channels[i], int64_t{channels[i]});
    columns += channels[i];
  }
  const auto blocks = static_cast<unsigned>(vovnet::divide_up(pixels * columns / 8, vovnet::kVectorsOfBlock));
  vovnet::launch(vovnet::concatenate_kernel, blocks, vovnet::kThreads, 0, nullptr, panels,
                 static_cast<vovnet::Half*>(out), pixels, columns);
}
