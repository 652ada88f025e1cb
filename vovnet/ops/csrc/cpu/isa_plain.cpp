#define VOVNET_ISA plain
#include "isa.h"

// constinit: no code of this file may run at load time, because the processor may not have its instructions.
constinit const vovnet::cpu::Kernels vovnet_cpu_kernels_plain = plain::kernels_of("plain");
