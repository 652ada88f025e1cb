// Convolutions of bfloat16 maps that multiply pairs of bfloat16 numbers. All other kernels are those of isa_avx512.cpp.
#define VOVNET_ISA avx512_bf16
#include "isa.h"

// constinit: no code of this file may run at load time, because the processor may not have its instructions.
constinit const vovnet::cpu::ConvKernels vovnet_cpu_bfloat16_convs[2] = {
    avx512_bf16::convs_of<uint16_t, uint16_t>(), avx512_bf16::convs_of<uint16_t, float>()};
