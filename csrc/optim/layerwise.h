// The operators lars_ and lamb_: arguments as PyTorch gives them, checked and put in order, once
// for both back ends.

#pragma once

#include <utility>

#include "optim/check.h"
#include "optim/optim.h"

namespace largebatch {

void check_layerwise(
    const char* name, const StepLists& lists, int moments, const LayerwiseScalars& scalars);

using LarsStep = void (*)(StepLists, const LayerwiseScalars&, const LarsOptions&);
using LambStep = void (*)(StepLists, const LayerwiseScalars&, const LambOptions&);

template <LarsStep Step>
void lars(
    TensorList& params,
    TensorList& grads,
    TensorList& momentum_buffers,
    TensorList& masters,
    Tensor norms,
    Tensor settings,
    std::optional<Tensor> lr_factor,
    std::optional<Tensor> grad_factor,
    std::optional<Tensor> found_inf,
    double momentum,
    double trust_coefficient,
    double eps,
    bool joint,
    bool lr_inside,
    bool ratio_inside,
    bool nesterov,
    bool maximize,
    bool clip_ratio,
    bool zero_is_raw,
    int64_t stage) {
  StepLists lists = {
      std::move(params), std::move(grads), std::move(momentum_buffers), {}, std::move(masters), {}};
  const LayerwiseScalars scalars = {norms,       settings,  lr_factor,
                                    grad_factor, found_inf, static_cast<Stage>(stage)};
  check_layerwise("largebatch::lars_", lists, momentum != 0.0 ? 1 : 0, scalars);
  Step(
      std::move(lists), scalars,
      {momentum, trust_coefficient, eps, joint, lr_inside, ratio_inside, nesterov, maximize,
       clip_ratio, zero_is_raw});
}

template <LambStep Step>
void lamb(
    TensorList& params,
    TensorList& grads,
    TensorList& first_moments,
    TensorList& second_moments,
    TensorList& masters,
    TensorList& steps,
    Tensor norms,
    Tensor settings,
    std::optional<Tensor> lr_factor,
    std::optional<Tensor> grad_factor,
    std::optional<Tensor> found_inf,
    double beta1,
    double beta2,
    double eps,
    int64_t bias_correction,
    bool grad_averaging,
    bool maximize,
    double min_ratio,
    double max_ratio,
    int64_t stage) {
  StepLists lists = {std::move(params),         std::move(grads),   std::move(first_moments),
                     std::move(second_moments), std::move(masters), std::move(steps)};
  const LayerwiseScalars scalars = {norms,       settings,  lr_factor,
                                    grad_factor, found_inf, static_cast<Stage>(stage)};
  STD_TORCH_CHECK(
      bias_correction >= 0 && bias_correction <= 2,
      "largebatch::lamb_: bias_correction must be 0 (none), 1 (moments) or 2 (rate)");
  STD_TORCH_CHECK(
      min_ratio <= max_ratio, "largebatch::lamb_: min_ratio ", min_ratio,
      " must be no more than max_ratio ", max_ratio);
  check_layerwise("largebatch::lamb_", lists, 2, scalars);
  Step(
      std::move(lists), scalars,
      {beta1, beta2, eps, static_cast<BiasCorrection>(bias_correction), grad_averaging, maximize,
       min_ratio, max_ratio});
}

}  // namespace largebatch
