// The table of the kernels of one instruction set: included after LARGEBATCH_ISA is set.

#pragma once

#include "norm/cpu_planar.h"
#include "norm/cpu_rows.h"

namespace largebatch::LARGEBATCH_ISA {
namespace {

template <typename T, typename Acc>
void planar_moments_kernel(const PlanarAt& at, const T* x, Acc* mean, Acc* variance) {
  if (variance == nullptr) {
    planar_moments<false>(at, x, mean, variance);
  } else {
    planar_moments<true>(at, x, mean, variance);
  }
}

template <typename T, typename Acc>
void planar_absolute_kernel(const PlanarAt& at, const T* x, const Acc* mean, Acc* spread) {
  planar_absolute(at, x, mean, spread);
}

template <typename T, typename Acc>
void planar_offer_kernel(
    const PlanarAt& at, const T* x, const Acc* mean, Acc* heap, int64_t top, Acc* kth,
    Acc* spread) {
  planar_offer(at, x, mean, heap, top, kth, spread);
}

template <typename T, typename Acc>
void planar_normalize_kernel(
    const PlanarAt& at, const T* x, const T* residual, T* y, uint8_t* mask, const Acc* mean,
    const Acc* scale, const Acc* bias, bool stream) {
  planar_normalize(at, x, residual, y, mask, mean, scale, bias, stream);
}

template <typename T, typename Acc>
void planar_gradient_sums_kernel(
    bool signs, const PlanarAt& at, const T* grad, const T* x, const uint8_t* mask,
    const Acc* mean, GradientSums* sums) {
  if (signs) {
    planar_gradient_sums<true>(at, grad, x, mask, mean, sums);
  } else {
    planar_gradient_sums<false>(at, grad, x, mask, mean, sums);
  }
}

template <typename T, typename Acc>
void planar_count_top_kernel(
    const PlanarAt& at, const T* x, const Acc* mean, const Acc* kth, TopCounts* counts) {
  planar_count_top(at, x, mean, kth, counts);
}

template <typename T, typename Acc>
void planar_gradient_kernel(
    NormPolicy policy, const PlanarAt& at, const T* grad, const T* x, const uint8_t* mask, T* dx,
    T* dresidual, const GradientCoefficients<Acc>& by, bool stream) {
  switch (policy) {
    case NormPolicy::kL2:
      return planar_gradient<NormPolicy::kL2>(at, grad, x, mask, dx, dresidual, by, stream);
    case NormPolicy::kL1:
      return planar_gradient<NormPolicy::kL1>(at, grad, x, mask, dx, dresidual, by, stream);
    default:
      return planar_gradient<NormPolicy::kTopK>(at, grad, x, mask, dx, dresidual, by, stream);
  }
}

template <typename T, typename Acc>
void moments_kernel(
    const T* x, int64_t rows, int64_t channels, const Acc* shift, Acc* sum, Acc* square) {
  if (square == nullptr) {
    rows_moments<false>(x, rows, channels, shift, sum, square);
  } else {
    rows_moments<true>(x, rows, channels, shift, sum, square);
  }
}

template <typename T, typename Acc>
void absolute_kernel(const T* x, int64_t rows, int64_t channels, const Acc* mean, Acc* sum) {
  rows_absolute(x, rows, channels, mean, sum);
}

template <typename T, typename Acc>
void offer_kernel(
    const T* x, int64_t rows, int64_t channels, int count, const Acc* mean, Acc* heaps, int64_t top,
    Acc* kth, Acc* spread) {
  rows_offer(x, rows, channels, count, mean, heaps, top, kth, spread);
}

template <typename T, typename Acc>
void count_top_kernel(
    const T* x, int64_t rows, int64_t channels, int count, const Acc* mean, const Acc* kth,
    TopCounts* counts) {
  rows_count_top(x, rows, channels, count, mean, kth, counts);
}

template <typename T, typename Acc>
void normalize_kernel(
    const T* x, const T* residual, T* y, uint8_t* mask, int64_t rows, int64_t channels,
    int64_t mask_row, const Acc* mean, const Acc* scale, const Acc* bias, bool stream) {
  rows_normalize(x, residual, y, mask, rows, channels, mask_row, mean, scale, bias, stream);
}

template <typename T, typename Acc>
void gradient_sums_kernel(
    const T* grad, const T* x, const uint8_t* mask, int64_t rows, int64_t channels,
    int64_t mask_row, const Acc* mean, Acc* of_grad, Acc* of_product, Acc* of_sign) {
  if (of_sign == nullptr) {
    rows_gradient_sums<false>(
        grad, x, mask, rows, channels, mask_row, mean, of_grad, of_product, of_sign);
  } else {
    rows_gradient_sums<true>(
        grad, x, mask, rows, channels, mask_row, mean, of_grad, of_product, of_sign);
  }
}

template <typename T, typename Acc>
void gradient_kernel(
    NormPolicy policy, const T* grad, const T* x, const uint8_t* mask, T* dx, T* dresidual,
    int64_t rows, int64_t channels, int64_t mask_row, const GradientCoefficients<Acc>& by,
    bool stream) {
  switch (policy) {
    case NormPolicy::kL2:
      return rows_gradient<NormPolicy::kL2>(
          grad, x, mask, dx, dresidual, rows, channels, mask_row, by, stream);
    case NormPolicy::kL1:
      return rows_gradient<NormPolicy::kL1>(
          grad, x, mask, dx, dresidual, rows, channels, mask_row, by, stream);
    default:
      return rows_gradient<NormPolicy::kTopK>(
          grad, x, mask, dx, dresidual, rows, channels, mask_row, by, stream);
  }
}

template <typename T>
constexpr NormKernels<T> table() {
  using Acc = Wide<T>;
  return {
      planar_moments_kernel<T, Acc>,
      planar_absolute_kernel<T, Acc>,
      planar_offer_kernel<T, Acc>,
      planar_normalize_kernel<T, Acc>,
      planar_gradient_sums_kernel<T, Acc>,
      planar_count_top_kernel<T, Acc>,
      planar_gradient_kernel<T, Acc>,
      moments_kernel<T, Acc>,
      absolute_kernel<T, Acc>,
      offer_kernel<T, Acc>,
      count_top_kernel<T, Acc>,
      normalize_kernel<T, Acc>,
      gradient_sums_kernel<T, Acc>,
      gradient_kernel<T, Acc>};
}

constexpr NormKernelSet kKernels = {
    table<float>(), table<double>(), table<Half>(), table<BFloat16>()};

}  // namespace
}  // namespace largebatch::LARGEBATCH_ISA
