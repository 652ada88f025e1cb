#define VOVNET_ISA avx2
#include "isa.h"

extern const vovnet::cpu::Kernels vovnet_cpu_kernels_avx2;
const vovnet::cpu::Kernels vovnet_cpu_kernels_avx2 = avx2::kernels_of("avx2");
