// The operator sgd_: arguments as PyTorch gives them, checked and put in order, once for both back
// ends.

#pragma once

#include <utility>

#include "optim/check.h"
#include "optim/optim.h"

namespace largebatch {

using SgdStep = void (*)(StepLists, const StepScalars&, const SgdOptions&);

template <SgdStep Step>
void sgd(
    TensorList& params,
    TensorList& grads,
    TensorList& momentum_buffers,
    TensorList& masters,
    std::optional<Tensor> grad_factor,
    std::optional<Tensor> found_inf,
    double lr,
    double momentum,
    double dampening,
    double weight_decay,
    bool decoupled,
    bool nesterov,
    bool maximize,
    bool lr_inside_momentum,
    double buffer_factor) {
  constexpr const char* kName = "largebatch::sgd_";
  StepLists lists = {
      std::move(params), std::move(grads), std::move(momentum_buffers), {}, std::move(masters), {}};
  Footprint footprint(kName);
  check_lists(kName, lists, momentum != 0.0 ? 1 : 0, footprint);
  check_scalar(grad_factor, "grad_factor", footprint);
  check_scalar(found_inf, "found_inf", footprint);
  footprint.check();
  Step(
      std::move(lists), {grad_factor, found_inf},
      {lr, momentum, dampening, weight_decay, decoupled, nesterov, maximize, lr_inside_momentum,
       buffer_factor});
}

}  // namespace largebatch
