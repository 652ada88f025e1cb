#define VOVNET_ISA avx512
#include "isa.h"

// No code of this file may run while the library is loaded, on whatever processor: a constant.
constinit const vovnet::cpu::Kernels vovnet_cpu_kernels_avx512 = avx512::kernels_of("avx512");
