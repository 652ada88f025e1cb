#define VOVNET_ISA avx2
#include "isa.h"

// No code of this file may run while the library is loaded, on whatever processor: a constant.
constinit const vovnet::cpu::Kernels vovnet_cpu_kernels_avx2 = avx2::kernels_of("avx2");
