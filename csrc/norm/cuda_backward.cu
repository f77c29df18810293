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

template <NormPolicy Policy, typename T, typename Acc>
void gradients_by(
    const NormLayout& at,
    const T* grad,
    const T* x,
    const uint8_t* mask,
    const Acc* means,
    const Acc* coefficients,
    T* dx,
    T* dresidual,
    cudaStream_t stream) {
  const Access by = access_of<T>(at, {grad, x, dx, dresidual, means, coefficients});
  const Cut cut = cut_elements(at, by, false);
  choose_access<T>(by, [&](auto constant) {
    launch(
        gradient_kernel<T, Policy, decltype(constant)::value>, grid_of(at, cut, stream), at, cut,
        grad, x, mask, means, coefficients, dx, dresidual);
  });
}

template <typename T, typename Acc, typename... Arguments>
void gradients(NormPolicy policy, Arguments... arguments) {
  switch (policy) {
    case NormPolicy::kL2: return gradients_by<NormPolicy::kL2, T, Acc>(arguments...);
    case NormPolicy::kL1: return gradients_by<NormPolicy::kL1, T, Acc>(arguments...);
    default: return gradients_by<NormPolicy::kTopK, T, Acc>(arguments...);
  }
}

template <typename T>
const char* backward(const NormBackward& call, cudaStream_t stream) {
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
  gradients<T, Acc>(
      call.policy, at, grad, x, call.mask, statistics, static_cast<const Acc*>(coefficients),
      static_cast<T*>(call.dx), static_cast<T*>(call.dresidual), stream);
  return launch_error();
}

}  // namespace

const char* launch_norm_backward(NormElement element, const NormBackward& call, void* stream) {
  if (launch_slab_backward(element, call, stream)) return launch_error();
  return dispatch(element, [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    return backward<T>(call, static_cast<cudaStream_t>(stream));
  });
}

const char* launch_norm_gradient_sums(
    NormElement element,
    const NormLayout& at,
    NormPolicy policy,
    const void* grad,
    const void* x,
    const uint8_t* mask,
    const void* statistics,
    double* partial,
    void* sums,
    void* stream) {
  return dispatch(element, [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    using Acc = typename Accumulate<T>::type;
    const Finish<Acc> finish{
        policy, 1, 0.0, nullptr, nullptr, static_cast<const Acc*>(statistics), nullptr, nullptr,
        static_cast<Acc*>(sums)};
    gradient_sums<T, Acc>(
        at, static_cast<const T*>(grad), static_cast<const T*>(x), mask, partial, finish,
        static_cast<cudaStream_t>(stream));
    return launch_error();
  });
}

const char* launch_norm_gradient(
    NormElement element,
    const NormLayout& at,
    NormPolicy policy,
    const void* grad,
    const void* x,
    const uint8_t* mask,
    const void* coefficients,
    void* dx,
    void* dresidual,
    void* stream) {
  return dispatch(element, [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    using Acc = typename Accumulate<T>::type;
    const auto* const means = static_cast<const Acc*>(coefficients);
    gradients<T, Acc>(
        policy, at, static_cast<const T*>(grad), static_cast<const T*>(x), mask, means,
        means + at.channels, static_cast<T*>(dx), static_cast<T*>(dresidual),
        static_cast<cudaStream_t>(stream));
    return launch_error();
  });
}

}  // namespace largebatch
