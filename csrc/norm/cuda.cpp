// CUDA back end of the batch norm family, host side: arguments checked, memory made, launched.

#ifdef LARGEBATCH_CUDA

#include "norm/cuda.h"

#include <torch/csrc/stable/accelerator.h>

#include <initializer_list>

#include "common/cuda_stream.h"
#include "norm/layout.h"
#include "norm/norm.h"

namespace largebatch {
namespace {

NormElement norm_element(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return NormElement::kFloat;
    case ScalarType::Double: return NormElement::kDouble;
    case ScalarType::Half: return NormElement::kHalf;
    default: return NormElement::kBFloat16;
  }
}

// Kernels read raw pointers: all of a call must be on one device. Indices of units are 32 bits.
void check_call(
    const Tensor& x,
    std::initializer_list<const Tensor*> others,
    std::initializer_list<const std::optional<Tensor>*> optionals,
    const NormLayout& at) {
  const auto check = [&](const Tensor& tensor) {
    STD_TORCH_CHECK(
        tensor.is_cuda() && tensor.get_device_index() == x.get_device_index(),
        "largebatch::ghost_norm: all tensors of a call must be on one CUDA device");
  };
  check(x);
  for (const Tensor* tensor : others) check(*tensor);
  for (const auto* tensor : optionals) {
    if (*tensor) check(**tensor);
  }
  STD_TORCH_CHECK(
      at.mask_rows() * at.mask_row() < (int64_t(1) << 31),
      "largebatch::ghost_norm: x has more values than a CUDA call takes, 2^34 in full rows");
}

const void* data_of(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr() : nullptr;
}

void check_launch(const char* error) {
  STD_TORCH_CHECK(
      error == nullptr, "largebatch::ghost_norm: ", error == nullptr ? "" : error);
}

}  // namespace

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
    bool relu) {
  const NormLayout at = norm_layout(x, weight, bias, policy, top, ghost_size, full);
  check_call(x, {}, {&weight, &bias, &residual}, at);
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  if (residual) residual = in_layout_of(*residual, x, "residual");
  Tensor y = torch::stable::empty_like(x);
  const ScalarType wide = accumulate_type(x.scalar_type());
  const auto norm = static_cast<NormPolicy>(policy);
  const Tensor statistics = torch::stable::new_empty(
      x, {norm == NormPolicy::kTopK ? 3 : 2, at.ghosts(), at.channels}, wide);
  const Tensor mask =
      torch::stable::new_empty(x, {relu ? at.mask_rows() * at.mask_row() : 0}, ScalarType::Byte);
  const Tensor partial = torch::stable::new_empty(x, {norm_partials(at)}, ScalarType::Double);
  const Tensor coefficients =
      torch::stable::new_empty(x, {kNormCoefficients, at.ghosts(), at.channels}, wide);
  const NormForward call{
      at, norm, top, eps, x.const_data_ptr(), data_of(residual), data_of(weight), data_of(bias),
      y.mutable_data_ptr(), statistics.mutable_data_ptr(),
      relu ? static_cast<uint8_t*>(mask.mutable_data_ptr()) : nullptr,
      static_cast<double*>(partial.mutable_data_ptr()), coefficients.mutable_data_ptr()};
  check_launch(launch_norm_forward(norm_element(x), call, current_cuda_stream(device)));
  return {y, statistics, mask};
}

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
    bool residual) {
  const NormLayout at = norm_layout(x, weight, std::nullopt, policy, top, ghost_size, full);
  check_call(x, {&grad, &statistics, &mask}, {&weight}, at);
  check_saved(x, statistics, mask, at, policy);
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  grad = in_layout_of(grad, x, "grad");
  Tensor dx = torch::stable::empty_like(x);
  const bool relu = mask.numel() > 0;
  const bool masked = residual && relu;
  Tensor dresidual =
      masked ? torch::stable::empty_like(x) : torch::stable::new_empty(x, {0}, x.scalar_type());
  const ScalarType wide = accumulate_type(x.scalar_type());
  const Tensor sums = torch::stable::new_empty(x, {2, at.ghosts(), at.channels}, wide);
  const Tensor partial = torch::stable::new_empty(x, {norm_partials(at)}, ScalarType::Double);
  const Tensor coefficients =
      torch::stable::new_empty(x, {kNormCoefficients, at.ghosts(), at.channels}, wide);
  const NormBackward call{
      at, static_cast<NormPolicy>(policy), top, eps, grad.const_data_ptr(), x.const_data_ptr(),
      data_of(weight), statistics.const_data_ptr(),
      relu ? static_cast<const uint8_t*>(mask.const_data_ptr()) : nullptr, dx.mutable_data_ptr(),
      masked ? dresidual.mutable_data_ptr() : nullptr, sums.mutable_data_ptr(),
      static_cast<double*>(partial.mutable_data_ptr()), coefficients.mutable_data_ptr()};
  check_launch(launch_norm_backward(norm_element(x), call, current_cuda_stream(device)));
  return {dx, sums, dresidual};
}

}  // namespace largebatch

#endif  // LARGEBATCH_CUDA
