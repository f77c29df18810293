// The operators lars_ and lamb_: arguments as PyTorch gives them, checked and put in order, once
// for both back ends.

#pragma once

#include <utility>

#include "optim/check.h"
#include "optim/optim.h"

namespace largebatch {

void check_layerwise(
    const char* name, const StepLists& lists, const LayerwiseScalars& scalars);

using LarsStep = void (*)(StepLists, const LayerwiseScalars&, const LarsOptions&);
using LambStep = void (*)(StepLists, const LayerwiseScalars&, const LambOptions&);

template <LarsStep Step>
void lars(
    TensorList params,
    TensorList grads,
    TensorList momentum_buffers,
    TensorList masters,
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
  StepLists lists = {params, grads, momentum_buffers, {}, masters, {}};
  const LayerwiseScalars scalars = {norms,       settings,  lr_factor,
                                    grad_factor, found_inf, static_cast<Stage>(stage)};
  check_layerwise("largebatch::lars_", lists, scalars);
  Step(
      std::move(lists), scalars,
      {momentum, trust_coefficient, eps, joint, lr_inside, ratio_inside, nesterov, maximize,
       clip_ratio, zero_is_raw});
}

template <LambStep Step>
void lamb(
    TensorList params,
    TensorList grads,
    TensorList first_moments,
    TensorList second_moments,
    TensorList masters,
    TensorList steps,
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
  StepLists lists = {params, grads, first_moments, second_moments, masters, steps};
  const LayerwiseScalars scalars = {norms,       settings,  lr_factor,
                                    grad_factor, found_inf, static_cast<Stage>(stage)};
  check_layerwise("largebatch::lamb_", lists, scalars);
  Step(
      std::move(lists), scalars,
      {beta1, beta2, eps, static_cast<BiasCorrection>(bias_correction), grad_averaging, maximize,
       min_ratio, max_ratio});
}

}  // namespace largebatch
