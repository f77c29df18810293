// The optimizer family: functions that ops.cpp registers, one set a back end.
//
// Lists hold floating-point tensors (float32, float64, float16, bfloat16, mixed at will) of one
// device; momentum buffers are float64 for float64 parameters and float32 for all others. The
// layouts of a parameter, its gradient and its buffer may differ and may have gaps.

#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

namespace largebatch {

using torch::stable::Tensor;
using TensorList = std::vector<Tensor>;

// One step of SGD on every parameter; see math.h for the formula. `grad_factor` (clip factor,
// unscaling) multiplies every gradient; a non-zero `found_inf` makes the call change nothing.
void sgd_cpu(
    TensorList params,
    TensorList grads,
    TensorList momentum_buffers,
    std::optional<Tensor> grad_factor,
    std::optional<Tensor> found_inf,
    double lr,
    double momentum,
    double dampening,
    double weight_decay,
    bool nesterov,
    bool maximize,
    bool lr_inside_momentum,
    double buffer_factor);

void sgd_cuda(
    TensorList params,
    TensorList grads,
    TensorList momentum_buffers,
    std::optional<Tensor> grad_factor,
    std::optional<Tensor> found_inf,
    double lr,
    double momentum,
    double dampening,
    double weight_decay,
    bool nesterov,
    bool maximize,
    bool lr_inside_momentum,
    double buffer_factor);

// The Euclidean norm of all elements together: 0-d, float64 if any tensor is, else float32.
Tensor global_norm_cpu(TensorList tensors);
Tensor global_norm_cuda(TensorList tensors);

// That norm, and min(1, max_norm / (norm + 1e-6)) beside it.
std::tuple<Tensor, Tensor> clip_factor_cpu(TensorList tensors, double max_norm);
std::tuple<Tensor, Tensor> clip_factor_cuda(TensorList tensors, double max_norm);

}  // namespace largebatch
