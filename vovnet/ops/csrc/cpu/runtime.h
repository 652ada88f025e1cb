// The kernels for this processor, and the threads that they run on.
#pragma once

#include "kernels.h"

namespace vovnet::cpu {

// Returns the kernels of the best instruction set that the processor has and VOVNET_ISA (plain, avx2, avx512) allows;
// chosen once.
//
// Throws std::runtime_error for any other value of VOVNET_ISA.
const Kernels& kernels();

// Returns Torch's threads, as many as torch.get_num_threads().
Parallel parallel();

}  // namespace vovnet::cpu
