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
    TensorList params,
    TensorList grads,
    TensorList momentum_buffers,
    TensorList masters,
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
  STD_TORCH_CHECK(
      momentum_buffers.size() == (momentum != 0.0 ? params.size() : 0), "largebatch::sgd_: ",
      params.size(), " parameters and ", momentum_buffers.size(),
      " momentum buffers; there is a buffer a parameter if and only if momentum is not zero");
  StepLists lists = {params, grads, momentum_buffers, {}, masters, {}};
  check_lists("largebatch::sgd_", lists);
  check_scalar(grad_factor, "grad_factor");
  check_scalar(found_inf, "found_inf");
  Step(
      std::move(lists), {grad_factor, found_inf},
      {lr, momentum, dampening, weight_decay, decoupled, nesterov, maximize, lr_inside_momentum,
       buffer_factor});
}

}  // namespace largebatch
