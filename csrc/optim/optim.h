// The optimizer family: functions that ops.cpp registers, one set a back end.
//
// Lists hold floating-point tensors (float32, float64, float16, bfloat16, mixed at will) of one
// device; state is float64 for float64 parameters, and float32 or (not masters) bfloat16 for all
// others. The layouts of a parameter, its gradient and its state may differ and may have gaps.

#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "optim/lists.h"
#include "optim/math.h"

namespace largebatch {

// What of a call may lie on the device: `grad_factor` (clip factor, unscaling) multiplies every
// gradient; a non-zero `found_inf` makes the call change nothing.
struct StepScalars {
  std::optional<Tensor> grad_factor;
  std::optional<Tensor> found_inf;
};

// One step of SGD on every parameter; see math.h for the formula.
void sgd_step_cpu(StepLists lists, const StepScalars& scalars, const SgdOptions& options);
void sgd_step_cuda(StepLists lists, const StepScalars& scalars, const SgdOptions& options);

// The Euclidean norm of all elements together: 0-d, float64 if any tensor is, else float32.
Tensor global_norm_cpu(TensorList tensors);
Tensor global_norm_cuda(TensorList tensors);

// That norm times `scale` (1 if absent), and scale x min(1, max_norm / (norm + eps)) beside it.
std::tuple<Tensor, Tensor> clip_factor_cpu(
    TensorList tensors, double max_norm, double eps, std::optional<Tensor> scale);
std::tuple<Tensor, Tensor> clip_factor_cuda(
    TensorList tensors, double max_norm, double eps, std::optional<Tensor> scale);

// Which passes of a layer-wise step a call makes: all; the sums of squares alone, so that ranks can
// add theirs; or the update from sums given.
enum class Stage : int64_t { kAll = 0, kSums = 1, kUpdate = 2 };

// One step of LARS or LAMB on every tensor; see math.h. `settings` (N x 3, float64, on the CPU)
// holds rate, weight decay and whether the tensor adapts; `lr_factor` multiplies the rates.
// `norms` (N x 3, float64) receives sum of w^2, sum of the other norm's squares, and the ratio.
struct LayerwiseScalars {
  Tensor norms;
  Tensor settings;
  std::optional<Tensor> lr_factor;
  std::optional<Tensor> grad_factor;
  std::optional<Tensor> found_inf;
  Stage stage;
};

void lars_step_cpu(StepLists lists, const LayerwiseScalars& scalars, const LarsOptions&);
void lars_step_cuda(StepLists lists, const LayerwiseScalars& scalars, const LarsOptions&);
void lamb_step_cpu(StepLists lists, const LayerwiseScalars& scalars, const LambOptions&);
void lamb_step_cuda(StepLists lists, const LayerwiseScalars& scalars, const LambOptions&);

}  // namespace largebatch
