// Products of pairs of bfloat16 numbers, for maps of bfloat16; all else is as for AVX-512 without them.
#define VOVNET_ISA avx512_bf16
#include "isa.h"

// No code of this file may run while the library is loaded, on whatever processor: a constant.
constinit const vovnet::cpu::ConvKernels vovnet_cpu_bfloat16_convs[2] = {
    avx512_bf16::convs_of<uint16_t, uint16_t>(), avx512_bf16::convs_of<uint16_t, float>()};
