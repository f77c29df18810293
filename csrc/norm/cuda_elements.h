// CUDA kernels that write every element, and those that prepare their coefficients.

#pragma once

#include "norm/cuda_sums.h"

namespace largebatch {

// One thread a channel of a ghost: mean, scale, bias.
template <typename Acc>
__global__ void __launch_bounds__(kThreads) coefficient_kernel(
    const NormLayout at,
    const NormPolicy policy,
    const double eps,
    const Acc* const statistics,
    const Acc* const weight,
    const Acc* const bias,
    Acc* const coefficients) {
  const int64_t all = at.ghosts() * at.channels;
  const int64_t index = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= all) return;
  const int64_t c = index % at.channels, n = at.values(index / at.channels);
  const double r =
      inverse_scale(policy, statistics[all + index], norm_constant(policy, n), eps);
  coefficients[index] = statistics[index];
  coefficients[all + index] = static_cast<Acc>(weight == nullptr ? r : r * weight[c]);
  coefficients[2 * all + index] = bias == nullptr ? Acc(0) : bias[c];
}

// The eight values, or fewer, that a thread works on in the element-wise kernels.
struct Spot {
  int64_t value, channel;  // of the first value; `channel` counts ghosts too
  int count;

  __device__ __forceinline__ Spot(const NormLayout& at, uint32_t row, uint32_t byte) {
    const auto inner = static_cast<uint32_t>(at.planar ? at.channels : at.length);
    const int64_t ghost = at.ghost_of(row / inner), row_length = at.row_length();
    value = row * row_length + int64_t(byte) * kUnit;
    channel = ghost * at.channels + (at.planar ? row % inner : int64_t(byte) * kUnit);
    const int64_t left = row_length - int64_t(byte) * kUnit;
    count = static_cast<int>(left < kUnit ? (left > 0 ? left : 0) : kUnit);
  }
};

template <bool Planar, typename Acc>
__device__ __forceinline__ void load_coefficients(
    const Acc* data, int count, Acc (&values)[kUnit]) {
#pragma unroll
  for (int e = 0; e < kUnit; ++e) {
    values[e] = Planar ? data[0] : (e < count ? data[e] : Acc(0));
  }
}

template <typename T, bool Planar, bool Vector>
__global__ void __launch_bounds__(kThreads) normalize_kernel(
    const NormLayout at,
    const T* const x,
    const T* const residual,
    const typename Accumulate<T>::type* const coefficients,
    T* const y,
    uint8_t* const mask) {
  using Acc = typename Accumulate<T>::type;
  const int64_t all = at.ghosts() * at.channels;
  const auto mask_row = static_cast<uint32_t>(at.mask_row());
  const auto total = static_cast<uint32_t>(at.mask_rows() * mask_row);
  for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < total; i += gridDim.x * kThreads) {
    const Spot spot(at, i / mask_row, i % mask_row);
    if (spot.count == 0) {
      if (mask != nullptr) mask[i] = 0;
      continue;
    }
    Acc values[kUnit], mean[kUnit], scale[kUnit], bias[kUnit];
    load_unit<T, Vector>(x + spot.value, spot.count, values);
    load_coefficients<Planar>(coefficients + spot.channel, spot.count, mean);
    load_coefficients<Planar>(coefficients + all + spot.channel, spot.count, scale);
    load_coefficients<Planar>(coefficients + 2 * all + spot.channel, spot.count, bias);
#pragma unroll
    for (int e = 0; e < kUnit; ++e) values[e] = (values[e] - mean[e]) * scale[e] + bias[e];
    if (residual != nullptr) {
      Acc more[kUnit];
      load_unit<T, Vector>(residual + spot.value, spot.count, more);
#pragma unroll
      for (int e = 0; e < kUnit; ++e) values[e] += more[e];
    }
    if (mask != nullptr) {
      int bits = 0;
#pragma unroll
      for (int e = 0; e < kUnit; ++e) {
        const bool pass = !(values[e] <= 0);  // a NaN passes, as in torch
        bits |= int(pass && e < spot.count) << e;
        values[e] = pass ? values[e] : Acc(0);
      }
      mask[i] = static_cast<uint8_t>(bits);
    }
    store_unit<T, Vector>(y + spot.value, spot.count, values);
  }
}

// One thread a channel of a ghost: the terms of the gradient, and the sums for weight and bias.
template <typename Acc>
__global__ void __launch_bounds__(kThreads) gradient_term_kernel(
    const NormLayout at,
    const NormPolicy policy,
    const int64_t top,
    const double eps,
    const int parts,
    const double* const partial,
    const double* const counts,
    const Acc* const statistics,
    const Acc* const weight,
    Acc* const coefficients,
    Acc* const sums) {
  const int64_t all = at.ghosts() * at.channels;
  const int64_t index = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= all) return;
  const int64_t n = at.values(index / at.channels);
  const double constant = norm_constant(policy, n);
  const double r = inverse_scale(policy, statistics[all + index], constant, eps);
  GradientSums of{
      sum_of_parts(partial, parts, 0, all, index), sum_of_parts(partial, parts, 1, all, index),
      sum_of_parts(partial, parts, 2, all, index)};
  const int64_t k = top < n ? top : n;
  Acc share = 0;
  if (policy == NormPolicy::kTopK) {
    share = static_cast<Acc>(tie_share(k, counts[index], counts[all + index]));
    of.sign = counts[2 * all + index] + double(share) * counts[3 * all + index];
  }
  const double w = weight == nullptr ? 1.0 : double(weight[index % at.channels]);
  const auto terms = gradient_terms<Acc>(policy, of, n, k, r, constant, w);
  coefficients[index] = terms.grad;
  coefficients[all + index] = terms.constant;
  coefficients[2 * all + index] = terms.spread;
  if (policy == NormPolicy::kTopK) {
    coefficients[3 * all + index] = statistics[2 * all + index];
    coefficients[4 * all + index] = share;
  }
  sums[index] = static_cast<Acc>(of.grad_deviation * r);
  sums[all + index] = static_cast<Acc>(of.grad);
}

template <typename T, NormPolicy Policy, bool Planar, bool Vector>
__global__ void __launch_bounds__(kThreads) gradient_kernel(
    const NormLayout at,
    const T* const grad,
    const T* const x,
    const uint8_t* const mask,
    const typename Accumulate<T>::type* const means,
    const typename Accumulate<T>::type* const coefficients,
    T* const dx,
    T* const dresidual) {
  using Acc = typename Accumulate<T>::type;
  const int64_t all = at.ghosts() * at.channels;
  const auto mask_row = static_cast<uint32_t>(at.mask_row());
  const auto total = static_cast<uint32_t>(at.mask_rows() * mask_row);
  for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < total; i += gridDim.x * kThreads) {
    const Spot spot(at, i / mask_row, i % mask_row);
    if (spot.count == 0) continue;
    Acc g[kUnit], d[kUnit], mean[kUnit], of_grad[kUnit], constant[kUnit], spread[kUnit];
    load_unit<T, Vector>(grad + spot.value, spot.count, g);
    load_unit<T, Vector>(x + spot.value, spot.count, d);
    load_coefficients<Planar>(means + spot.channel, spot.count, mean);
    load_coefficients<Planar>(coefficients + spot.channel, spot.count, of_grad);
    load_coefficients<Planar>(coefficients + all + spot.channel, spot.count, constant);
    load_coefficients<Planar>(coefficients + 2 * all + spot.channel, spot.count, spread);
    Acc kth[kUnit] = {}, share[kUnit] = {};
    if constexpr (Policy == NormPolicy::kTopK) {
      load_coefficients<Planar>(coefficients + 3 * all + spot.channel, spot.count, kth);
      load_coefficients<Planar>(coefficients + 4 * all + spot.channel, spot.count, share);
    }
    const int bits = mask == nullptr ? 255 : mask[i];
#pragma unroll
    for (int e = 0; e < kUnit; ++e) {
      g[e] = (bits >> e & 1) ? g[e] : Acc(0);
      d[e] -= mean[e];
      if constexpr (Policy != NormPolicy::kL2) {
        const Acc size = d[e] < 0 ? -d[e] : d[e];
        Acc part = 1;
        if constexpr (Policy == NormPolicy::kTopK) {
          part = size > kth[e] ? Acc(1) : (size == kth[e] ? share[e] : Acc(0));
        }
        d[e] = (Acc(d[e] > 0) - Acc(d[e] < 0)) * part;
      }
      d[e] = of_grad[e] * g[e] + (constant[e] + spread[e] * d[e]);
    }
    store_unit<T, Vector>(dx + spot.value, spot.count, d);
    if (dresidual != nullptr) store_unit<T, Vector>(dresidual + spot.value, spot.count, g);
  }
}

}  // namespace largebatch
