// The operators of the batch norm family: arguments as PyTorch gives them, checked and put in
// order, once for both back ends.
//
// x is (N, C, ...), float32, float64, float16 or bfloat16, in any layout; contiguous and
// channels-last layouts are kept, others become contiguous. Statistics, weight and bias are float64
// for float64 input, else float32. The first `full` ghosts have `ghost_size` samples, and those that
// are left make one more.
//
// Files of this folder, from the top:
//
//   norm.h           the operators         layout_checks.h  their arguments, checked
//   calls.h          what a back end gets  layout.h, math.h where values lie; the formulas
//
//   cpu.cpp          what is done with a section of a call  cpu_sections.h  how calls are cut
//   cpu_kernels.h    the kernels' table; cpu_table.h fills it, cpu_base.cpp, cpu_avx2.cpp and
//                    cpu_avx512.cpp each for its instructions
//   cpu_planar.h, cpu_rows.h  the kernels by layout         cpu_common.h    what these share
//
//   cuda.cpp         devices, scratch memory                cuda.h          the launchers' calls
//   cuda_forward.cu, cuda_backward.cu  sums, then values, in a launch each
//     cuda_units.h     a unit of work, its place and mask   cuda_cut.h      heuristics
//     cuda_sums.h      sums over channels                   cuda_finish.h   from sums to coefficients
//     cuda_spread.h    the mean, then what needs it         cuda_top.h      top-k
//     cuda_elements.h  the kernels that write               cuda_turns.h    blocks that wait
//     cuda_launch_sums.h
//   cuda_slab.cu     a ghost read once, in one launch: cuda_slab.h, cuda_slab_cut.h (when, and how
//                    cut), cuda_slab_launch.h

#pragma once

#include <tuple>

#include "norm/calls.h"
#include "norm/layout_checks.h"

namespace largebatch {

// Returns y, the statistics and the bits of the ReLU's mask.
template <void (*Step)(const GhostNorm&)>
std::tuple<Tensor, Tensor, Tensor> ghost_norm(
    Tensor x,
    std::optional<Tensor> weight,
    std::optional<Tensor> bias,
    std::optional<Tensor> residual,
    int64_t policy,
    int64_t top,
    int64_t ghost_size,
    int64_t full,
    double eps,
    bool relu) {
  check_policy(policy, top);
  const NormLayout at = norm_layout(x, ghost_size, full);
  check_parameters(x, {&weight, &bias});
  if (residual) residual = in_layout_of(*residual, x, "residual");
  const GhostNorm call{
      at,     static_cast<NormPolicy>(policy),
      top,    eps,
      x,      weight,
      bias,   residual,
      torch::stable::empty_like(x),
      new_wide(x, {policy == 2 ? 3 : 2, at.ghosts(), at.channels}),
      new_mask(x, at, relu)};
  Step(call);
  return {call.y, call.statistics, call.mask};
}

// Returns the gradients of x; of weight and bias for every ghost; and, where the residual has one
// that differs from `grad`, of the residual, else an empty tensor.
template <void (*Step)(const GhostNormBackward&)>
std::tuple<Tensor, Tensor, Tensor> ghost_norm_backward(
    Tensor grad,
    Tensor x,
    std::optional<Tensor> weight,
    Tensor statistics,
    Tensor mask,
    int64_t policy,
    int64_t top,
    int64_t ghost_size,
    int64_t full,
    double eps,
    bool residual) {
  check_policy(policy, top);
  const NormLayout at = norm_layout(x, ghost_size, full);
  check_parameters(x, {&weight});
  check_table(x, statistics, {policy == 2 ? 3 : 2, at.ghosts()}, "statistics");
  check_mask(mask, at);
  const GhostNormBackward call{
      at,         static_cast<NormPolicy>(policy),
      top,        eps,
      in_layout_of(grad, x, "grad"),
      x,          weight,
      statistics, mask,
      torch::stable::empty_like(x),
      new_wide(x, {2, at.ghosts(), at.channels}),
      new_residual_gradient(x, residual && mask.numel() > 0)};
  Step(call);
  return {call.dx, call.sums, call.dresidual};
}

// Returns (2, C): the mean and the biased variance of each channel, or `center` and the mean
// absolute deviation from it.
template <void (*Step)(const NormMoments&)>
Tensor norm_moments(Tensor x, std::optional<Tensor> center) {
  const NormLayout at = norm_layout(x, x.size(0), 1);
  check_parameters(x, {&center});
  const NormMoments call{at, x, center, new_wide(x, {2, at.channels})};
  Step(call);
  return call.statistics;
}

// Returns (x - mean) * scale + bias (+ residual) (through a ReLU), and the bits of its mask.
template <void (*Step)(const NormApply&)>
std::tuple<Tensor, Tensor> norm_apply(
    Tensor x, Tensor coefficients, std::optional<Tensor> residual, bool relu) {
  const NormLayout at = norm_layout(x, x.size(0), 1);
  check_table(x, coefficients, {3}, "coefficients");
  if (residual) residual = in_layout_of(*residual, x, "residual");
  const NormApply call{
      at, x, coefficients, residual, torch::stable::empty_like(x), new_mask(x, at, relu)};
  Step(call);
  return {call.y, call.mask};
}

// Returns the sums over a channel that its gradient needs; see calls.h.
template <void (*Step)(const NormGradientSums&)>
Tensor norm_gradient_sums(Tensor grad, Tensor x, Tensor mask, Tensor statistics, int64_t policy) {
  check_policy(policy, 1);
  const auto norm = static_cast<NormPolicy>(policy);
  const NormLayout at = norm_layout(x, x.size(0), 1);
  check_table(x, statistics, {policy == 2 ? 3 : 2}, "statistics");
  check_mask(mask, at);
  const NormGradientSums call{
      at,   norm,       in_layout_of(grad, x, "grad"),
      x,    mask,       statistics,
      new_wide(x, {gradient_sums(norm), at.channels})};
  Step(call);
  return call.sums;
}

// Returns grad * g + constant + spread * s(d), see math.h, and the gradient of the residual where
// it is not `grad` itself, else an empty tensor.
template <void (*Step)(const NormGradient&)>
std::tuple<Tensor, Tensor> norm_gradient(
    Tensor grad, Tensor x, Tensor mask, Tensor coefficients, int64_t policy, bool residual) {
  check_policy(policy, 1);
  const NormLayout at = norm_layout(x, x.size(0), 1);
  check_table(x, coefficients, {6}, "coefficients");
  check_mask(mask, at);
  const NormGradient call{
      at,   static_cast<NormPolicy>(policy),
      in_layout_of(grad, x, "grad"),
      x,    mask,
      coefficients,
      torch::stable::empty_like(x),
      new_residual_gradient(x, residual && mask.numel() > 0)};
  Step(call);
  return {call.dx, call.dresidual};
}

}  // namespace largebatch
