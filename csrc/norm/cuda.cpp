// CUDA back end of the batch norm family, host side: devices checked, scratch memory made, launched.

#ifdef LARGEBATCH_CUDA

#include "norm/cuda.h"

#include <algorithm>
#include <initializer_list>

#include "common/cuda_host.h"
#include "norm/calls.h"
#include "norm/layout_checks.h"

namespace largebatch {
namespace {

const void* data_of(const std::optional<Tensor>& tensor) {
  return tensor && tensor->numel() > 0 ? tensor->const_data_ptr() : nullptr;
}

const uint8_t* bits_of(const Tensor& mask) { return static_cast<const uint8_t*>(data_of(mask)); }

void* result_of(const Tensor& tensor) {
  return tensor.numel() > 0 ? tensor.mutable_data_ptr() : nullptr;
}

// Kernels read raw pointers: all of a call must be on one device. Indices of units are 32 bits.
void check_call(
    const Tensor& x,
    std::initializer_list<const std::optional<Tensor>> others,
    const NormLayout& at) {
  for (const auto& other : others) {
    STD_TORCH_CHECK(
        is_on_cuda(x) &&
            (!other || (is_on_cuda(*other) && other->get_device_index() == x.get_device_index())),
        "largebatch::ghost_norm: all tensors of a call must be on one CUDA device");
  }
  STD_TORCH_CHECK(
      at.mask_rows() * at.mask_row() < (int64_t(1) << 31) &&
          at.row_length() < (int64_t(1) << 31),
      "largebatch::ghost_norm: x has more values than a CUDA call takes, 2^34 in full rows, or 2^31 "
      "in one");
}

// Its kernels count the values of a channel of a ghost in 32 bits.
void check_top(NormPolicy policy, const NormLayout& at) {
  const int64_t largest = std::max(at.values(0), at.values(at.ghosts() - 1));
  STD_TORCH_CHECK(
      policy != NormPolicy::kTopK || largest < (int64_t(1) << 32),
      "largebatch::ghost_norm: a channel of a ghost has ", largest,
      " values; top-k takes less than 2^32 on CUDA");
}

Tensor new_partial(const Tensor& x, const NormLayout& at) {
  return torch::stable::new_empty(x, {norm_partials(at)}, ScalarType::Double);
}

Tensor new_coefficients(const Tensor& x, const NormLayout& at) {
  return new_wide(x, {kNormCoefficients, at.ghosts(), at.channels});
}

double* sums_in(const Tensor& partial) { return static_cast<double*>(partial.mutable_data_ptr()); }

// Calls `launch(stream)` on the device of `x`.
template <class Launch>
void on_device_of(const Tensor& x, const Launch& launch) {
  const int32_t device = x.get_device_index();
  const DeviceGuard guard(device);
  check_launch(launch(current_cuda_stream(device)), "largebatch::ghost_norm");
}

}  // namespace

void ghost_norm_cuda(const GhostNorm& call) {
  check_top(call.policy, call.at);
  check_call(call.x, {call.weight, call.bias, call.residual}, call.at);
  const Tensor partial = new_partial(call.x, call.at);
  const Tensor coefficients = new_coefficients(call.x, call.at);
  const NormForwardCall forward{
      element_of(call.x.scalar_type()), call.at, call.policy, call.top, call.eps, data_of(call.x),
      data_of(call.residual), data_of(call.weight), data_of(call.bias), result_of(call.y),
      result_of(call.statistics), static_cast<uint8_t*>(result_of(call.mask)), sums_in(partial),
      coefficients.mutable_data_ptr()};
  on_device_of(call.x, [&](void* stream) { return launch_norm_forward(forward, stream); });
}

void ghost_norm_backward_cuda(const GhostNormBackward& call) {
  check_call(call.x, {call.grad, call.weight, call.statistics, call.mask}, call.at);
  check_top(call.policy, call.at);
  const Tensor partial = new_partial(call.x, call.at);
  const Tensor coefficients = new_coefficients(call.x, call.at);
  const NormBackwardCall backward{
      element_of(call.x.scalar_type()), call.at, call.policy, call.top, call.eps,
      data_of(call.grad), data_of(call.x), data_of(call.weight), data_of(call.statistics),
      bits_of(call.mask), result_of(call.dx), result_of(call.dresidual), result_of(call.sums),
      sums_in(partial), coefficients.mutable_data_ptr()};
  on_device_of(call.x, [&](void* stream) { return launch_norm_backward(backward, stream); });
}

void norm_moments_cuda(const NormMoments& call) {
  check_call(call.x, {call.center}, call.at);
  const Tensor partial = new_partial(call.x, call.at);
  const NormMomentsCall moments{
      element_of(call.x.scalar_type()), call.at, data_of(call.x), data_of(call.center),
      sums_in(partial), result_of(call.statistics)};
  on_device_of(call.x, [&](void* stream) { return launch_norm_moments(moments, stream); });
}

void norm_apply_cuda(const NormApply& call) {
  check_call(call.x, {call.coefficients, call.residual}, call.at);
  const NormApplyCall apply{
      element_of(call.x.scalar_type()), call.at, data_of(call.x), data_of(call.residual),
      data_of(call.coefficients), result_of(call.y), static_cast<uint8_t*>(result_of(call.mask))};
  on_device_of(call.x, [&](void* stream) { return launch_norm_apply(apply, stream); });
}

void norm_gradient_sums_cuda(const NormGradientSums& call) {
  check_call(call.x, {call.grad, call.mask, call.statistics}, call.at);
  check_top(call.policy, call.at);
  const Tensor partial = new_partial(call.x, call.at);
  const NormGradientSumsCall sums{
      element_of(call.x.scalar_type()), call.at, call.policy, data_of(call.grad), data_of(call.x),
      bits_of(call.mask), data_of(call.statistics), sums_in(partial), result_of(call.sums)};
  on_device_of(call.x, [&](void* stream) { return launch_norm_gradient_sums(sums, stream); });
}

void norm_gradient_cuda(const NormGradient& call) {
  check_call(call.x, {call.grad, call.mask, call.coefficients}, call.at);
  const NormGradientCall gradient{
      element_of(call.x.scalar_type()), call.at, call.policy, data_of(call.grad), data_of(call.x),
      bits_of(call.mask), data_of(call.coefficients), result_of(call.dx),
      result_of(call.dresidual)};
  on_device_of(call.x, [&](void* stream) { return launch_norm_gradient(gradient, stream); });
}

}  // namespace largebatch

#endif  // LARGEBATCH_CUDA
