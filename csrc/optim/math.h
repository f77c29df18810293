// The element-wise formulas of the optimizer family, once for the CPU and the CUDA kernels.

#pragma once

#include "common/host_device.h"

namespace largebatch {

// Hyperparameters of one SGD call, folded so that every variant is the same straight-line code.
template <typename Acc>
struct SgdScalars {
  Acc weight_decay;
  Acc step_scale;     // learning rate where it sits inside the buffer, else 1
  Acc buffer_scale;   // momentum x buffer_factor (momentum correction)
  Acc fresh_scale;    // 1 - dampening
  Acc look_ahead;     // momentum, for Nesterov's step
  Acc param_scale;    // learning rate where it sits outside the buffer, else 1
  Acc shrink;         // decoupled weight decay: learning rate x weight decay, else 0
  bool nesterov;
};

// The same as the operator is given them.
struct SgdOptions {
  double lr;
  double momentum;
  double dampening;
  double weight_decay;
  bool decoupled;
  bool nesterov;
  bool maximize;
  bool lr_inside_momentum;
  double buffer_factor;
};

template <typename Acc>
LARGEBATCH_HOST_DEVICE SgdScalars<Acc> sgd_scalars(const SgdOptions& options) {
  const double lr = options.lr;
  return {
      static_cast<Acc>(options.decoupled ? 0.0 : options.weight_decay),
      static_cast<Acc>(options.lr_inside_momentum ? lr : 1.0),
      static_cast<Acc>(options.momentum * options.buffer_factor),
      static_cast<Acc>(1.0 - options.dampening),
      static_cast<Acc>(options.momentum),
      static_cast<Acc>(options.lr_inside_momentum ? 1.0 : lr),
      static_cast<Acc>(options.decoupled ? lr * options.weight_decay : 0.0),
      options.nesterov};
}

// The same scalars in the type that a tensor is computed in.
template <typename Acc>
LARGEBATCH_HOST_DEVICE SgdScalars<Acc> rounded(const SgdScalars<double>& scalars) {
  return {
      static_cast<Acc>(scalars.weight_decay), static_cast<Acc>(scalars.step_scale),
      static_cast<Acc>(scalars.buffer_scale), static_cast<Acc>(scalars.fresh_scale),
      static_cast<Acc>(scalars.look_ahead),   static_cast<Acc>(scalars.param_scale),
      static_cast<Acc>(scalars.shrink),       scalars.nesterov};
}

// g <- factor grad + weight_decay p;  s <- step_scale g
// b <- buffer_scale b + fresh_scale s;  p <- p - shrink p - param_scale (b, or s + look_ahead b)
template <bool Momentum, typename Acc>
LARGEBATCH_HOST_DEVICE void sgd_element(
    Acc& param, Acc grad, Acc& buffer, Acc factor, const SgdScalars<Acc>& scalars) {
  const Acc decayed = factor * grad + scalars.weight_decay * param;
  const Acc step = scalars.step_scale * decayed;
  param -= scalars.shrink * param;
  if (Momentum) {
    buffer = scalars.buffer_scale * buffer + scalars.fresh_scale * step;
    // A choice, not a product with zero: that would make NaN of an infinite gradient.
    const Acc ahead = step + scalars.look_ahead * buffer;
    param -= scalars.param_scale * (scalars.nesterov ? ahead : buffer);
  } else {
    param -= scalars.param_scale * step;
  }
}

// A NaN norm gives a NaN factor, as torch.nn.utils.clip_grad_norm_ does.
LARGEBATCH_HOST_DEVICE double clip_factor_of(double norm, double max_norm, double eps) {
  const double factor = max_norm / (norm + eps);
  return factor > 1.0 ? 1.0 : factor;
}

// What of a layer-wise call differs from tensor to tensor.
struct LayerSetting {
  double lr;
  double weight_decay;
  bool adapts;
};

// Settings of one LARS call (You, Gitman, Ginsburg 2017, algorithm 1, and its variants).
struct LarsOptions {
  double momentum;
  double trust_coefficient;
  double eps;
  bool joint;         // denominator |g + wd w|, else |g| + wd |w|
  bool lr_inside;     // the rate multiplies what enters the buffer, else what leaves it
  bool ratio_inside;  // so does the trust ratio
  bool nesterov;
  bool maximize;
  bool clip_ratio;    // min(ratio / lr, 1)
  bool zero_is_raw;   // a zero norm leaves the gradient alone, else it decays with ratio 1
};

// |w| and |g| (or |g + wd w| where joint), as the ratio needs them.
LARGEBATCH_HOST_DEVICE bool lars_adapts(const LayerSetting& setting, double weight, double grad) {
  return setting.adapts && weight > 0.0 && grad > 0.0;
}

LARGEBATCH_HOST_DEVICE double lars_ratio(
    const LarsOptions& options, const LayerSetting& setting, double weight, double grad) {
  if (!lars_adapts(setting, weight, grad)) return 1.0;
  const double decay = options.joint ? 0.0 : setting.weight_decay * weight;
  const double ratio = options.trust_coefficient * weight / (grad + decay + options.eps);
  if (!options.clip_ratio) return ratio;
  return ratio < setting.lr ? ratio / setting.lr : 1.0;
}

// LARS is SGD with a rate of its own for every tensor.
template <typename Acc>
LARGEBATCH_HOST_DEVICE SgdScalars<Acc> lars_scalars(
    const LarsOptions& options, const LayerSetting& setting, double ratio, bool adapted) {
  const bool raw = options.zero_is_raw && setting.adapts && !adapted;
  const double lr = setting.lr;
  return {
      static_cast<Acc>(raw ? 0.0 : setting.weight_decay),
      static_cast<Acc>((options.lr_inside ? lr : 1.0) * (options.ratio_inside ? ratio : 1.0)),
      static_cast<Acc>(options.momentum),
      static_cast<Acc>(1.0),
      static_cast<Acc>(options.momentum),
      static_cast<Acc>((options.lr_inside ? 1.0 : lr) * (options.ratio_inside ? 1.0 : ratio)),
      static_cast<Acc>(0.0),
      options.nesterov};
}

// Where LAMB's bias correction goes: into the moments (You et al. 2020, algorithm 2), into the rate
// after the ratio was taken (DeepSpeed), or nowhere (the authors' ResNet-50 code).
enum class BiasCorrection { kNone, kMoments, kRate };

struct LambOptions {
  double beta1;
  double beta2;
  double eps;
  BiasCorrection bias_correction;
  bool grad_averaging;  // the gradient enters the first moment times 1 - beta1, else times 1
  bool maximize;
  double min_ratio;
  double max_ratio;
};

// What LAMB's element formulas need of one tensor at its step number `step` (from 1).
template <typename Acc>
struct LambScalars {
  Acc beta1;
  Acc fresh1;
  Acc beta2;
  Acc fresh2;
  Acc scale1;  // of the first moment: 1 / (1 - beta1^t) or 1
  Acc scale2;  // of the second moment's root: 1 / sqrt(1 - beta2^t) or 1
  Acc eps;
  Acc weight_decay;
};

struct LambCorrection {
  double first;   // 1 - beta1^t
  double second;  // 1 - beta2^t
};

template <typename Acc>
LARGEBATCH_HOST_DEVICE LambScalars<Acc> lamb_scalars(
    const LambOptions& options,
    const LayerSetting& setting,
    const LambCorrection& correction,
    double second_root) {
  const bool moments = options.bias_correction == BiasCorrection::kMoments;
  return {
      static_cast<Acc>(options.beta1),
      static_cast<Acc>(options.grad_averaging ? 1.0 - options.beta1 : 1.0),
      static_cast<Acc>(options.beta2),
      static_cast<Acc>(1.0 - options.beta2),
      static_cast<Acc>(moments ? 1.0 / correction.first : 1.0),
      static_cast<Acc>(moments ? 1.0 / second_root : 1.0),
      static_cast<Acc>(options.eps),
      static_cast<Acc>(setting.weight_decay)};
}

template <typename Acc>
LARGEBATCH_HOST_DEVICE LambScalars<Acc> rounded(const LambScalars<double>& scalars) {
  return {
      static_cast<Acc>(scalars.beta1),  static_cast<Acc>(scalars.fresh1),
      static_cast<Acc>(scalars.beta2),  static_cast<Acc>(scalars.fresh2),
      static_cast<Acc>(scalars.scale1), static_cast<Acc>(scalars.scale2),
      static_cast<Acc>(scalars.eps),    static_cast<Acc>(scalars.weight_decay)};
}

// m <- beta1 m + fresh1 g;  v <- beta2 v + fresh2 g^2
template <typename Acc>
LARGEBATCH_HOST_DEVICE void lamb_moments(
    Acc grad, Acc& first, Acc& second, const LambScalars<Acc>& scalars) {
  first = scalars.beta1 * first + scalars.fresh1 * grad;
  second = scalars.beta2 * second + scalars.fresh2 * (grad * grad);
}

// u = scale1 m / (scale2 sqrt(v) + eps) + weight_decay w, given the root of v
template <typename Acc>
LARGEBATCH_HOST_DEVICE Acc lamb_update(
    Acc param, Acc first, Acc second_root, const LambScalars<Acc>& scalars) {
  return scalars.scale1 * first / (scalars.scale2 * second_root + scalars.eps) +
      scalars.weight_decay * param;
}

LARGEBATCH_HOST_DEVICE double lamb_ratio(
    const LambOptions& options, const LayerSetting& setting, double weight, double update) {
  if (!(setting.adapts && weight > 0.0 && update > 0.0)) return 1.0;
  const double ratio = weight / update;
  if (ratio < options.min_ratio) return options.min_ratio;
  return ratio > options.max_ratio ? options.max_ratio : ratio;
}

// The rate that multiplies ratio x u.
LARGEBATCH_HOST_DEVICE double lamb_rate(
    const LambOptions& options,
    const LayerSetting& setting,
    const LambCorrection& correction,
    double second_root) {
  return options.bias_correction == BiasCorrection::kRate
      ? setting.lr * second_root / correction.first
      : setting.lr;
}

}  // namespace largebatch
