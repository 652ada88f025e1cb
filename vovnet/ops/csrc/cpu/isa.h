// The kernels of one instruction set. Each isa_*.cpp defines VOVNET_ISA, the name of its namespace, and includes this.
#pragma once

#include "igemm.h"
#include "kernels.h"
#include "pool.h"
#include "roi_align.h"
#include "winograd.h"

namespace VOVNET_ISA {

template <typename S>
int64_t packed_size(const Weight& weight) {
  switch (weight.method) {
    case Method::kWinograd2:
      return winograd_packed_size<Winograd<2>, S>(weight);
    case Method::kWinograd4:
      return winograd_packed_size<Winograd<4>, S>(weight);
    case Method::kWinogradStrided:
      return winograd_packed_size<Winograd<3, 2>, S>(weight);
    default:
      return igemm_packed_size<S>(weight);
  }
}

template <typename S>
void pack(const Weight& weight, void* packed, const Parallel& parallel) {
  switch (weight.method) {
    case Method::kWinograd2:
      return pack_winograd<Winograd<2>, S>(weight, packed, parallel);
    case Method::kWinograd4:
      return pack_winograd<Winograd<4>, S>(weight, packed, parallel);
    case Method::kWinogradStrided:
      return pack_winograd<Winograd<3, 2>, S>(weight, packed, parallel);
    default:
      return pack_igemm<S>(weight, packed, parallel);
  }
}

template <typename S>
int64_t scratch_size(const Conv& conv, int threads) {
  switch (conv.method) {
    case Method::kWinograd2:
      return winograd_scratch<Winograd<2>, S>(conv, threads);
    case Method::kWinograd4:
      return winograd_scratch<Winograd<4>, S>(conv, threads);
    case Method::kWinogradStrided:
      return winograd_scratch<Winograd<3, 2>, S>(conv, threads);
    default:
      return igemm_scratch<S>(conv, threads);
  }
}

template <typename M, typename S>
void conv(const Conv& args, void* scratch, const Parallel& parallel) {
  switch (args.method) {
    case Method::kWinograd2:
      return winograd_conv<Winograd<2>, M, S>(args, scratch, parallel);
    case Method::kWinograd4:
      return winograd_conv<Winograd<4>, M, S>(args, scratch, parallel);
    case Method::kWinogradStrided:
      return winograd_conv<Winograd<3, 2>, M, S>(args, scratch, parallel);
    default:
      return igemm_conv<M, S>(args, scratch, parallel);
  }
}

// Convolutions of maps of type M that multiply numbers of type S.
template <typename M, typename S>
constexpr vovnet::cpu::ConvKernels convs_of() {
  return {packed_size<S>, pack<S>, scratch_size<S>, conv<M, S>};
}

constexpr vovnet::cpu::Kernels kernels_of(const char* name) {
  return {name,
          {convs_of<float, float>(), convs_of<uint16_t, float>(), convs_of<uint16_t, float>()},
          {{average<float>, max_rows<float>}, {average<uint16_t>, max_rows<uint16_t>}}};
}

}  // namespace VOVNET_ISA
