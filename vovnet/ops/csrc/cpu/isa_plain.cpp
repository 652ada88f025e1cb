#define VOVNET_ISA plain
#include "isa.h"

// No code of this file may run while the library is loaded, on whatever processor: a constant.
constinit const vovnet::cpu::Kernels vovnet_cpu_kernels_plain = plain::kernels_of("plain");
