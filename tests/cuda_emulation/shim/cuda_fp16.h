// CUDA's float16 on the CPU: what the kernels use of it.
#pragma once
#include "cuda_runtime.h"

struct __half {
  uint16_t bits;
};
static_assert(sizeof(__half) == 2);

inline float __half2float(__half value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000) << 16;
  const uint32_t exponent = value.bits >> 10 & 31, mantissa = value.bits & 1023;
  if (exponent == 31) return emulation::bits_as<float>(sign | 0x7f800000 | mantissa << 13);
  if (exponent > 0) return emulation::bits_as<float>(sign | (exponent + 112) << 23 | mantissa << 13);
  const float small = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // 2^-24
  return sign ? -small : small;
}
inline __half __float2half_rn(float value) {
  const auto word = emulation::bits_as<uint32_t>(value);
  const auto sign = static_cast<uint16_t>(word >> 16 & 0x8000);
  const float size = fabsf(value);
  if (value != value) return {0x7fff};  // CUDA's NaN
  if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
  if (size < 6.103515625e-5f) {  // 2^-14: subnormal, a multiple of 2^-24
    return {static_cast<uint16_t>(sign | static_cast<uint16_t>(nearbyintf(size * 16777216.0f)))};
  }
  const uint32_t rounded = (word & 0x7fffffff) + 0xfff + (word >> 13 & 1);
  return {static_cast<uint16_t>(sign | ((rounded >> 13) - (112 << 10)))};
}
