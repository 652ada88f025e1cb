// Which kernels serve this processor, and the threads that they run on.
#pragma once

#include "kernels.h"

namespace vovnet::cpu {

// Of the best instruction set that the processor has, or that VOVNET_ISA (plain, avx2, avx512) allows; found once.
//
// Throws std::runtime_error for another value of VOVNET_ISA.
const Kernels& kernels();

// Torch's threads, as many as torch.get_num_threads() says now; one in a child of fork(), which has none of them.
Parallel parallel();

}  // namespace vovnet::cpu
