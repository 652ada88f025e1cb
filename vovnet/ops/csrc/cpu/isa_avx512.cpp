#define VOVNET_ISA avx512
#include "isa.h"

extern const vovnet::cpu::Kernels vovnet_cpu_kernels_avx512;
const vovnet::cpu::Kernels vovnet_cpu_kernels_avx512 = avx512::kernels_of("avx512");
