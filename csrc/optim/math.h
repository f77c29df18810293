// The element-wise formulas of the optimizer family, once for the CPU and the CUDA kernels.

#pragma once

#ifdef __CUDACC__
#define LARGEBATCH_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define LARGEBATCH_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace largebatch {

// Hyperparameters of one SGD call, folded so that every variant is the same straight-line code.
template <typename Acc>
struct SgdScalars {
  Acc weight_decay;
  Acc step_scale;     // learning rate where it sits inside the buffer, else 1
  Acc buffer_scale;   // momentum x buffer_factor (momentum correction)
  Acc fresh_scale;    // 1 - dampening
  Acc look_step;      // Nesterov: 1, else 0
  Acc look_buffer;    // Nesterov: momentum, else 1
  Acc param_scale;    // learning rate where it sits outside the buffer, else 1
};

template <typename Acc>
SgdScalars<Acc> sgd_scalars(
    double lr,
    double momentum,
    double dampening,
    double weight_decay,
    bool nesterov,
    bool lr_inside_momentum,
    double buffer_factor) {
  return {
      static_cast<Acc>(weight_decay),
      static_cast<Acc>(lr_inside_momentum ? lr : 1.0),
      static_cast<Acc>(momentum * buffer_factor),
      static_cast<Acc>(1.0 - dampening),
      static_cast<Acc>(nesterov ? 1.0 : 0.0),
      static_cast<Acc>(nesterov ? momentum : 1.0),
      static_cast<Acc>(lr_inside_momentum ? 1.0 : lr)};
}

// g <- factor grad + weight_decay p;  s <- step_scale g
// b <- buffer_scale b + fresh_scale s;  p <- p - param_scale (look_step s + look_buffer b)
template <bool Momentum, typename Acc>
LARGEBATCH_HOST_DEVICE void sgd_element(
    Acc& param, Acc grad, Acc& buffer, Acc factor, const SgdScalars<Acc>& scalars) {
  const Acc decayed = factor * grad + scalars.weight_decay * param;
  const Acc step = scalars.step_scale * decayed;
  if (Momentum) {
    buffer = scalars.buffer_scale * buffer + scalars.fresh_scale * step;
    param -= scalars.param_scale * (scalars.look_step * step + scalars.look_buffer * buffer);
  } else {
    param -= scalars.param_scale * step;
  }
}

// A NaN norm gives a NaN factor, as torch.nn.utils.clip_grad_norm_ does.
LARGEBATCH_HOST_DEVICE double clip_factor_of(double norm, double max_norm) {
  const double factor = max_norm / (norm + 1e-6);
  return factor > 1.0 ? 1.0 : factor;
}

}  // namespace largebatch
