// Elements and their accumulators: scalar conversions that round to nearest even. Host and device; no torch.
//
// Compiled once an instruction set, or for GPUs: AABLUR_ISA names which, so that no two share an inline function.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/axis.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

namespace aablur::AABLUR_ISA {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// The type that sums of T are taken in.
template <class T>
using accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class To, class From>
AABLUR_HOST_DEVICE inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

AABLUR_HOST_DEVICE inline float widen(float v) {
  return v;
}
AABLUR_HOST_DEVICE inline double widen(double v) {
  return v;
}
AABLUR_HOST_DEVICE inline float widen(bfloat16 v) {
  return bit_cast<float>(uint32_t(v.bits) << 16);
}
AABLUR_HOST_DEVICE inline float widen(float16 v) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(v.bits));
#else
  const uint32_t sign = uint32_t(v.bits & 0x8000) << 16, magnitude = v.bits & 0x7fff;
  if (magnitude >= 0x7c00) return bit_cast<float>(sign | 0x7f800000 | magnitude << 13);
  // Scaling by 2^112 moves the exponent bias from 15 to 127 and normalises subnormals.
  const float scaled = bit_cast<float>(magnitude << 13) * bit_cast<float>(uint32_t(239) << 23);
  return bit_cast<float>(sign | bit_cast<uint32_t>(scaled));
#endif
}

template <class T>
AABLUR_HOST_DEVICE inline T narrow(accumulator<T> v) {
  if constexpr (std::is_same_v<T, bfloat16>) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    uint16_t rounded;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded) : "f"(v));
    return {rounded};
#else
    const uint32_t bits = bit_cast<uint32_t>(v);
    if (v != v) return {uint16_t(bits >> 16 | 0x40)};
    return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
#endif
  } else if constexpr (std::is_same_v<T, float16>) {
#if defined(__CUDA_ARCH__)
    return {__half_as_ushort(__float2half_rn(v))};
#else
    const uint32_t bits = bit_cast<uint32_t>(v), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return {uint16_t(sign | 0x7e00)};
    if (magnitude >= 0x47800000) return {uint16_t(sign | 0x7c00)};  // 65536 and up
    if (magnitude < 0x38800000) {                                   // subnormal: round in units of 2^-24
      const float rounded = bit_cast<float>(magnitude) + 0.5f;
      return {uint16_t(sign | (bit_cast<uint32_t>(rounded) - bit_cast<uint32_t>(0.5f)))};
    }
    const uint32_t even = magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1);
    return {uint16_t(sign | even >> 13)};
#endif
  } else {
    return v;
  }
}

}  // namespace aablur::AABLUR_ISA
