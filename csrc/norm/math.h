// The formulas of the batch norm family, once for the CPU and the CUDA kernels.
//
// Over the n values x of a channel in a ghost batch, with d = x - mean(x):
//
//   y = weight * d * r + bias,  r = 1 / sqrt(spread + eps), spread = mean(d^2)        (L2)
//                               r = 1 / (C * spread + eps), spread = mean|d|           (L1)
//                                                      spread = mean of the k largest |d| (top-k)
//
// C makes L1 an unbiased estimate of a normal distribution's deviation, sqrt(pi/2); top-k has the
// constant of the published code, which L-infinity (k = 1) shares. Hoffer, Banner, Golan, Soudry,
// "Norm matters", 2018, section 4.

#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"

namespace largebatch {

enum class NormPolicy : int64_t { kL2 = 0, kL1 = 1, kTopK = 2 };

LARGEBATCH_HOST_DEVICE double norm_constant(NormPolicy policy, int64_t count) {
  constexpr double kPi = 3.14159265358979323846;
  if (policy == NormPolicy::kL2) return 1.0;
  if (policy == NormPolicy::kL1) return sqrt(kPi / 2);
  const double n = static_cast<double>(count < 2 ? 2 : count);
  return 0.5 * (1 + sqrt(kPi * log(4.0))) / sqrt(2 * log(n));
}

LARGEBATCH_HOST_DEVICE double inverse_scale(
    NormPolicy policy, double spread, double constant, double eps) {
  return policy == NormPolicy::kL2 ? 1 / sqrt(spread + eps) : 1 / (constant * spread + eps);
}

// Sums over a channel of a ghost batch that its gradient needs. `sign` sums sign(d) over the
// values that carry the spread's gradient, each with its share (see share_of).
struct GradientSums {
  double grad;
  double grad_deviation;
  double sign;
};

// dx = grad * g + constant + spread * s(d), with s(d) = d (L2) or sign(d) * share (others).
template <typename Acc>
struct GradientTerms {
  Acc grad;
  Acc constant;
  Acc spread;
};

template <typename Acc>
LARGEBATCH_HOST_DEVICE GradientTerms<Acc> gradient_terms(
    NormPolicy policy,
    const GradientSums& sums,
    int64_t count,
    int64_t top,
    double r,
    double constant,
    double weight) {
  const double n = static_cast<double>(count);
  const double grad = weight * r;
  double spread, mean_of_spread = 0;
  if (policy == NormPolicy::kL2) {
    spread = -grad * r * r * sums.grad_deviation / n;
  } else {
    const double carriers = policy == NormPolicy::kL1 ? n : static_cast<double>(top);
    spread = -grad * r * constant * sums.grad_deviation / carriers;
    mean_of_spread = spread * sums.sign / n;
  }
  return {
      static_cast<Acc>(grad), static_cast<Acc>(-grad * sums.grad / n - mean_of_spread),
      static_cast<Acc>(spread)};
}

// Values as large as the k-th largest share what is left of k evenly among them.
LARGEBATCH_HOST_DEVICE double tie_share(int64_t top, double above, double equal) {
  return equal > 0 ? (static_cast<double>(top) - above) / equal : 0.0;
}

}  // namespace largebatch
