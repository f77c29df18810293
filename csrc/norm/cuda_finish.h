// From the sums of a channel of a ghost to its statistics, and to the coefficients of the kernels
// that write: done by the block that finishes the channel last.

#pragma once

#include "norm/cuda_units.h"

namespace largebatch {

// What is summed over a channel of a ghost; d = x - mean.
enum class Sums {
  kMoments,       // x and x^2 about an origin
  kExtremes,      // these, and the largest and the smallest x, for top-1
  kAbsolute,      // |d|
  kGradient,      // g, g d
  kGradientSign,  // these, and sign(d), for L1
  kGradientTop,   // g, g d, how many |d| are above the k-th largest and at it, and their sign(d)
};

__host__ __device__ constexpr int outputs_of(Sums what) {
  switch (what) {
    case Sums::kMoments: return 2;
    case Sums::kExtremes: return 4;
    case Sums::kAbsolute: return 1;
    case Sums::kGradient: return 2;
    case Sums::kGradientSign: return 3;
    default: return 6;
  }
}
__host__ __device__ constexpr bool are_moments(Sums what) {
  return what == Sums::kMoments || what == Sums::kExtremes;
}
__host__ __device__ constexpr bool are_gradient(Sums what) { return what >= Sums::kGradient; }

template <Sums What>
__device__ __forceinline__ double merge(int output, double one, double other) {
  if (What == Sums::kExtremes && output == 2) return fmax(one, other);
  if (What == Sums::kExtremes && output == 3) return fmin(one, other);
  return one + other;
}
template <Sums What>
__device__ __forceinline__ double neutral(int output) {
  if (What == Sums::kExtremes && output == 2) return -HUGE_VAL;
  if (What == Sums::kExtremes && output == 3) return HUGE_VAL;
  return 0.0;
}

// What sums are taken about: a value near the others, but never infinite, for inf - inf is a NaN.
template <typename Acc>
__device__ __forceinline__ Acc shift_by(Acc value) {
  return value - value == 0 ? value : Acc(0);
}

// Where the first value of a channel in a ghost is.
__device__ __forceinline__ int64_t origin_of(const NormLayout& at, int64_t ghost, int64_t c) {
  const int64_t first = at.first(ghost);
  return at.planar ? (first * at.channels + c) * at.length : first * at.length * at.channels + c;
}

// Tables are Acc (rows, ghosts, channels).
template <typename Acc>
struct Finish {
  NormPolicy policy;
  int64_t top;
  double eps;
  const Acc* weight;  // null for ones, as bias for zeros
  const Acc* bias;
  const Acc* known;   // statistics that are there before the sums: mean, spread, k-th largest
  Acc* statistics;    // of the forward
  Acc* coefficients;  // null if nobody wants them
  Acc* sums;          // of the backward: for weight and bias, or, without coefficients, as they are
};

// The mean and the biased variance of a channel from its moments.
template <typename T, typename Acc>
__device__ __forceinline__ void moments_of(
    const NormLayout& at,
    const T* x,
    int64_t ghost,
    int64_t c,
    const double* total,
    Acc& mean,
    Acc& variance) {
  const double n = static_cast<double>(at.values(ghost)), offset = total[0] / n;
  const double about_mean = total[1] / n - offset * offset;
  mean = static_cast<Acc>(shift_by(widen(x[origin_of(at, ghost, c)])) + offset);
  variance = static_cast<Acc>(about_mean < 0 ? 0.0 : about_mean);
}

// y = (x - mean) * scale + bias.
template <typename Acc>
struct ForwardTerms {
  Acc mean, scale, bias;
};

template <typename Acc>
__device__ __forceinline__ ForwardTerms<Acc> forward_terms(
    const NormLayout& at,
    const Finish<Acc>& finish,
    int64_t ghost,
    int64_t c,
    Acc mean,
    Acc spread) {
  const double r = inverse_scale(
      finish.policy, spread, norm_constant(finish.policy, at.values(ghost)), finish.eps);
  return {
      mean, static_cast<Acc>(finish.weight == nullptr ? r : r * finish.weight[c]),
      finish.bias == nullptr ? Acc(0) : finish.bias[c]};
}

template <typename Acc>
__device__ __forceinline__ void finish_forward(
    const NormLayout& at,
    const Finish<Acc>& finish,
    int64_t ghost,
    int64_t c,
    Acc mean,
    Acc spread) {
  if (finish.coefficients == nullptr) return;
  const int64_t all = at.ghosts() * at.channels, index = ghost * at.channels + c;
  const auto terms = forward_terms(at, finish, ghost, c, mean, spread);
  finish.coefficients[index] = terms.mean;
  finish.coefficients[all + index] = terms.scale;
  finish.coefficients[2 * all + index] = terms.bias;
}

// The terms of the gradient, the share of ties in top-k, and the sums for weight and bias.
template <typename Acc>
struct BackwardTerms {
  GradientTerms<Acc> of;
  Acc share, weight, bias;
};

template <Sums What, typename Acc>
__device__ __forceinline__ BackwardTerms<Acc> backward_terms(
    const NormLayout& at,
    const Finish<Acc>& finish,
    int64_t ghost,
    int64_t c,
    const double (&total)[outputs_of(What)]) {
  const int64_t n = at.values(ghost), k = finish.top < n ? finish.top : n;
  const double constant = norm_constant(finish.policy, n);
  const Acc spread = finish.known[(at.ghosts() + ghost) * at.channels + c];
  const double r = inverse_scale(finish.policy, spread, constant, finish.eps);
  GradientSums of{total[0], total[1], 0.0};
  Acc share = 0;
  if constexpr (What == Sums::kGradientSign) of.sign = total[2];
  if constexpr (What == Sums::kGradientTop) {
    share = static_cast<Acc>(tie_share(k, total[2], total[3]));
    of.sign = total[4] + double(share) * total[5];
  }
  const double weight = finish.weight == nullptr ? 1.0 : double(finish.weight[c]);
  return {
      gradient_terms<Acc>(finish.policy, of, n, k, r, constant, weight), share,
      static_cast<Acc>(of.grad_deviation * r), static_cast<Acc>(of.grad)};
}

template <Sums What, typename Acc>
__device__ __forceinline__ void finish_backward(
    const NormLayout& at,
    const Finish<Acc>& finish,
    int64_t ghost,
    int64_t c,
    const double (&total)[outputs_of(What)]) {
  const int64_t all = at.ghosts() * at.channels, index = ghost * at.channels + c;
  if (finish.coefficients == nullptr) {
    for (int row = 0; row < outputs_of(What); ++row) {
      finish.sums[row * all + index] = static_cast<Acc>(total[row]);
    }
    return;
  }
  const auto terms = backward_terms<What>(at, finish, ghost, c, total);
  finish.coefficients[index] = terms.of.grad;
  finish.coefficients[all + index] = terms.of.constant;
  finish.coefficients[2 * all + index] = terms.of.spread;
  if constexpr (What == Sums::kGradientTop) {
    finish.coefficients[3 * all + index] = finish.known[2 * all + index];
    finish.coefficients[4 * all + index] = terms.share;
  }
  finish.sums[index] = terms.weight;
  finish.sums[all + index] = terms.bias;
}

// One thread a channel.
template <Sums What, typename T, typename Acc>
__device__ __forceinline__ void finish_channel(
    const NormLayout& at,
    const Finish<Acc>& finish,
    const T* x,
    int64_t ghost,
    int64_t c,
    const double (&total)[outputs_of(What)]) {
  if constexpr (are_gradient(What)) {
    finish_backward<What>(at, finish, ghost, c, total);
    return;
  } else {
    const int64_t all = at.ghosts() * at.channels, index = ghost * at.channels + c;
    Acc mean, spread;
    if constexpr (What == Sums::kAbsolute) {
      mean = finish.known[index];
      spread = static_cast<Acc>(total[0] / static_cast<double>(at.values(ghost)));
    } else {
      moments_of(at, x, ghost, c, total, mean, spread);
    }
    if constexpr (What == Sums::kExtremes) {
      // Rounding keeps order, so the largest |x - mean| is that of the largest or smallest x.
      const Acc above = static_cast<Acc>(total[2]) - mean;
      const Acc below = mean - static_cast<Acc>(total[3]);
      spread = above >= below ? above : below;
      if (above != above || below != below) spread = above + below;
      finish.statistics[2 * all + index] = spread;
    }
    finish.statistics[index] = mean;
    finish.statistics[all + index] = spread;
    finish_forward(at, finish, ghost, c, mean, spread);
  }
}

// Whether all of a tile's `parts` blocks have come here, this one last: the others' results may
// then be read. To be called by all threads of a block; `count` is 0 before a launch.
__device__ __forceinline__ bool is_last(unsigned int* count, int parts) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(count, 1u) == static_cast<unsigned int>(parts - 1);
  __syncthreads();
  __threadfence();
  return last;
}

}  // namespace largebatch
