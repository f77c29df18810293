// What the back ends of the batch norm family work on: arguments checked and in one layout, results
// allocated. norm.h fills these in.

#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

#include "norm/layout.h"

namespace largebatch {

using torch::stable::Tensor;

struct GhostNorm {
  NormLayout at;
  NormPolicy policy;
  int64_t top;
  double eps;
  Tensor x;
  std::optional<Tensor> weight, bias, residual;
  Tensor y;
  Tensor statistics;  // (2 or 3, ghosts, channels): mean, spread, k-th largest deviation (top-k)
  Tensor mask;        // bits of the ReLU, empty without one
};

struct GhostNormBackward {
  NormLayout at;
  NormPolicy policy;
  int64_t top;
  double eps;
  Tensor grad, x;
  std::optional<Tensor> weight;
  Tensor statistics, mask;
  Tensor dx;
  Tensor sums;       // (2, ghosts, channels): gradients of weight and bias
  Tensor dresidual;  // empty unless there is a mask and a residual
};

// The steps of both, for a ghost batch that lies on several ranks: what is added up between them is
// the caller's. `at` has one ghost.
struct NormMoments {
  NormLayout at;
  Tensor x;
  std::optional<Tensor> center;
  Tensor statistics;  // (2, channels): mean and variance; or `center` and mean |x - center|
};

struct NormApply {
  NormLayout at;
  Tensor x, coefficients;  // (3, channels): mean, scale, bias
  std::optional<Tensor> residual;
  Tensor y, mask;
};

struct NormGradientSums {
  NormLayout at;
  NormPolicy policy;
  Tensor grad, x, mask, statistics;
  Tensor sums;  // (gradient_sums(policy), channels)
};

struct NormGradient {
  NormLayout at;
  NormPolicy policy;
  Tensor grad, x, mask, coefficients;  // (6, channels): mean, grad, constant, spread, kth, share
  Tensor dx, dresidual;
};

// Rows of NormGradientSums: of g, of g d, and for L1 of sign(d); for top-k, how many deviations lie
// above the k-th largest and at it, and the sums of their signs.
constexpr int64_t gradient_sums(NormPolicy policy) {
  return policy == NormPolicy::kL2 ? 2 : policy == NormPolicy::kL1 ? 3 : 6;
}

void ghost_norm_cpu(const GhostNorm& call);
void ghost_norm_backward_cpu(const GhostNormBackward& call);
void norm_moments_cpu(const NormMoments& call);
void norm_apply_cpu(const NormApply& call);
void norm_gradient_sums_cpu(const NormGradientSums& call);
void norm_gradient_cpu(const NormGradient& call);

void ghost_norm_cuda(const GhostNorm& call);
void ghost_norm_backward_cuda(const GhostNormBackward& call);
void norm_moments_cuda(const NormMoments& call);
void norm_apply_cuda(const NormApply& call);
void norm_gradient_sums_cuda(const NormGradientSums& call);
void norm_gradient_cuda(const NormGradient& call);

}  // namespace largebatch
