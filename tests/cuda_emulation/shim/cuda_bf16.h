// CUDA's bfloat16 on the CPU: what the kernels use of it.
#pragma once
#include "cuda_runtime.h"

struct __nv_bfloat16 {
  uint16_t bits;
};
static_assert(sizeof(__nv_bfloat16) == 2);

inline float __bfloat162float(__nv_bfloat16 value) {
  return emulation::bits_as<float>(uint32_t(value.bits) << 16);
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  if (value != value) return {0x7fff};  // CUDA's NaN
  const auto word = emulation::bits_as<uint32_t>(value);
  return {static_cast<uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16)};
}
