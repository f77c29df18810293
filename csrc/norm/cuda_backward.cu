// Launches of the CUDA kernels of the batch norm family's backward: sums, then the gradient.

#include "norm/cuda_elements.h"
#include "norm/cuda_launch_sums.h"
#include "norm/cuda_slab_launch.h"

namespace largebatch {
namespace {

template <typename T, typename Acc>
void gradient_sums(
    const NormLayout& at,
    const T* grad,
    const T* x,
    const uint8_t* mask,
    double* partial,
    const Finish<Acc>& finish,
    cudaStream_t stream) {
  switch (finish.policy) {
    case NormPolicy::kL2:
      return launch_sums<Sums::kGradient, T>(at, x, grad, mask, partial, finish, stream);
    case NormPolicy::kL1:
      return launch_sums<Sums::kGradientSign, T>(at, x, grad, mask, partial, finish, stream);
    default:
      return launch_sums<Sums::kGradientTop, T>(at, x, grad, mask, partial, finish, stream);
  }
}

template <NormPolicy Policy, typename T>
void gradients_by(const NormLayout& at, const Gradients<T>& of, cudaStream_t stream) {
  const Access by =
      access_of<T>(at, {of.grad, of.x, of.dx, of.dresidual, of.means, of.coefficients});
  const Cut cut = cut_elements(at, by, false);
  choose_access<T>(by, [&](auto constant) {
    launch(
        gradient_kernel<T, Policy, decltype(constant)::value>, grid_of(at, cut, stream), at, cut,
        of);
  });
}

template <typename T>
void gradients(
    NormPolicy policy, const NormLayout& at, const Gradients<T>& of, cudaStream_t stream) {
  switch (policy) {
    case NormPolicy::kL2: return gradients_by<NormPolicy::kL2>(at, of, stream);
    case NormPolicy::kL1: return gradients_by<NormPolicy::kL1>(at, of, stream);
    default: return gradients_by<NormPolicy::kTopK>(at, of, stream);
  }
}

template <typename T>
const char* backward(const NormBackwardCall& call, cudaStream_t stream) {
  using Acc = typename Accumulate<T>::type;
  const NormLayout& at = call.at;
  const auto* const x = static_cast<const T*>(call.x);
  const auto* const grad = static_cast<const T*>(call.grad);
  const auto* const statistics = static_cast<const Acc*>(call.statistics);
  auto* const coefficients = static_cast<Acc*>(call.coefficients);
  const Finish<Acc> finish{
      call.policy, call.top, call.eps, static_cast<const Acc*>(call.weight), nullptr, statistics,
      nullptr, coefficients, static_cast<Acc*>(call.sums)};
  gradient_sums<T, Acc>(at, grad, x, call.mask, call.partial, finish, stream);
  gradients<T>(
      call.policy, at,
      {grad, x, call.mask, statistics, coefficients, static_cast<T*>(call.dx),
       static_cast<T*>(call.dresidual)},
      stream);
  return launch_error();
}

}  // namespace

const char* launch_norm_backward(const NormBackwardCall& call, void* stream) {
  if (launch_slab_backward(call, stream)) return launch_error();
  return dispatch(call.element, [&](auto typed) {
    return backward<decltype(typed)>(call, static_cast<cudaStream_t>(stream));
  });
}

const char* launch_norm_gradient_sums(const NormGradientSumsCall& call, void* stream) {
  return dispatch(call.element, [&](auto typed) {
    using T = decltype(typed);
    using Acc = typename Accumulate<T>::type;
    const Finish<Acc> finish{
        call.policy, 1, 0.0, nullptr, nullptr, static_cast<const Acc*>(call.statistics), nullptr,
        nullptr, static_cast<Acc*>(call.sums)};
    gradient_sums<T, Acc>(
        call.at, static_cast<const T*>(call.grad), static_cast<const T*>(call.x), call.mask,
        call.partial, finish, static_cast<cudaStream_t>(stream));
    return launch_error();
  });
}

const char* launch_norm_gradient(const NormGradientCall& call, void* stream) {
  return dispatch(call.element, [&](auto typed) {
    using T = decltype(typed);
    using Acc = typename Accumulate<T>::type;
    const auto* const means = static_cast<const Acc*>(call.coefficients);
    gradients<T>(
        call.policy, call.at,
        {static_cast<const T*>(call.grad), static_cast<const T*>(call.x), call.mask, means,
         means + call.at.channels, static_cast<T*>(call.dx), static_cast<T*>(call.dresidual)},
        static_cast<cudaStream_t>(stream));
    return launch_error();
  });
}

}  // namespace largebatch
