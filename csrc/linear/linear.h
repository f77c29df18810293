// The Hadamard transform: functions that ops.cpp registers, one a back end, and what they share.
//
// In Sylvester's matrix H[i, j] = (-1)^popcount(i & j), rows below a power of two p repeat along the
// columns with period p, and the matrix is symmetric. So with p the smaller of both sizes' next
// powers of two, x is added up to p values, transformed, and the outputs are read with period p.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/memory.h"

namespace largebatch {

// x (..., features), any supported type; returns (..., outputs) of the same type, contiguous.
Tensor hadamard_cpu(Tensor x, int64_t outputs);
Tensor hadamard_cuda(Tensor x, int64_t outputs);

// What one call works on.
struct HadamardShape {
  int64_t rows, features, outputs, length;  // length: of the transform, a power of two
};

// Features or outputs that a call takes at most: sums of two and powers of two above stay in range.
constexpr int64_t kMostFeatures = int64_t(1) << 48;

inline int64_t next_power_of_two(int64_t value) {
  int64_t power = 1;
  while (power < value) power *= 2;
  return power;
}

inline HadamardShape hadamard_shape(const Tensor& x, int64_t outputs) {
  STD_TORCH_CHECK(
      is_supported(x.scalar_type()),
      "largebatch::hadamard: x must be float32, float64, float16 or bfloat16");
  const int64_t features = x.dim() > 0 ? x.size(x.dim() - 1) : 0;
  STD_TORCH_CHECK(
      features > 0 && outputs > 0, "largebatch::hadamard: x has ", features, " features and ",
      outputs, " outputs are asked for; there must be at least one of each");
  STD_TORCH_CHECK(
      features <= kMostFeatures && outputs <= kMostFeatures, "largebatch::hadamard: ", features,
      " features and ", outputs, " outputs; no more than 2^48 of each");
  check_stored("largebatch::hadamard", x);
  return {
      x.numel() / features, features, outputs,
      std::min(next_power_of_two(features), next_power_of_two(outputs))};
}

inline Tensor hadamard_result(const Tensor& x, int64_t outputs) {
  const auto sizes = x.sizes();
  std::vector<int64_t> result(sizes.begin(), sizes.end());
  result.back() = outputs;
  return torch::stable::new_empty(x, result, x.scalar_type());
}

}  // namespace largebatch
