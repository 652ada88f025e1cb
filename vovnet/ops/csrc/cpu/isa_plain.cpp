#define VOVNET_ISA plain
#include "isa.h"

extern const vovnet::cpu::Kernels vovnet_cpu_kernels_plain;
const vovnet::cpu::Kernels vovnet_cpu_kernels_plain = plain::kernels_of("plain");
