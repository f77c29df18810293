// The batch norm family over ghost batches: functions that ops.cpp registers, one set a back end.
//
// x is (N, C, ...), float32, float64, float16 or bfloat16, in any layout; contiguous and
// channels-last layouts are kept, others become contiguous. Statistics, weight and bias are float64
// for float64 input, else float32. The first `full` ghosts have `ghost_size` samples, and those that
// are left make one more.

#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace largebatch {

using torch::stable::Tensor;

// Returns y; the statistics (2 or 3, ghosts, C): mean, spread, and for top-k its k-th largest
// deviation; and the bits of the ReLU's mask, empty without one (see layout.h).
std::tuple<Tensor, Tensor, Tensor> ghost_norm_cpu(
    Tensor x,
    std::optional<Tensor> weight,
    std::optional<Tensor> bias,
    std::optional<Tensor> residual,
    int64_t policy,
    int64_t top,
    int64_t ghost_size,
    int64_t full,
    double eps,
    bool relu);

// Returns the gradients of x; of weight and bias for every ghost, (2, ghosts, C); and, where the
// residual has one that differs from `grad`, of the residual, else an empty tensor.
std::tuple<Tensor, Tensor, Tensor> ghost_norm_backward_cpu(
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
    bool residual);

std::tuple<Tensor, Tensor, Tensor> ghost_norm_cuda(
    Tensor x,
    std::optional<Tensor> weight,
    std::optional<Tensor> bias,
    std::optional<Tensor> residual,
    int64_t policy,
    int64_t top,
    int64_t ghost_size,
    int64_t full,
    double eps,
    bool relu);

std::tuple<Tensor, Tensor, Tensor> ghost_norm_backward_cuda(
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
    bool residual);

}  // namespace largebatch
