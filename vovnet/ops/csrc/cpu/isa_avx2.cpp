#define VOVNET_ISA avx2
#include "isa.h"

// constinit: no code of this file may run at load time, because the processor may not have its instructions.
constinit const vovnet::cpu::Kernels vovnet_cpu_kernels_avx2 = avx2::kernels_of("avx2");
