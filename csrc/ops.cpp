// All operators of largebatch: their schemas and which function serves which device.
//
// The reference of each (its specification, and the fallback for other devices) and its fake kernel
// are Python, in largebatch/_ops; a test holds the schemas here and there equal.

#include <torch/csrc/stable/library.h>

#include "linear/linear.h"
#include "norm/norm.h"
#include "optim/layerwise.h"
#include "optim/optim.h"
#include "optim/sgd.h"
#include "shards/shards.h"

STABLE_TORCH_LIBRARY(largebatch, library) {
  // optim: multi-tensor SGD with momentum, and the global norm that clipping needs.
  library.def(
      "sgd_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, "
      "Tensor(c!)[] masters, *, Tensor? grad_factor, Tensor? found_inf, float lr, float momentum, "
      "float dampening, float weight_decay, bool decoupled, bool nesterov, bool maximize, "
      "bool lr_inside_momentum, float buffer_factor) -> ()");
  library.def("global_norm(Tensor[] tensors) -> Tensor");
  library.def(
      "lars_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, "
      "Tensor(c!)[] masters, Tensor(d!) norms, Tensor settings, *, Tensor? lr_factor, "
      "Tensor? grad_factor, Tensor? found_inf, float momentum, float trust_coefficient, float eps, "
      "bool joint, bool lr_inside, bool ratio_inside, bool nesterov, bool maximize, "
      "bool clip_ratio, bool zero_is_raw, int stage) -> ()");
  library.def(
      "lamb_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] first_moments, "
      "Tensor(c!)[] second_moments, Tensor(d!)[] masters, Tensor(e!)[] steps, Tensor(f!) norms, "
      "Tensor settings, *, Tensor? lr_factor, Tensor? grad_factor, Tensor? found_inf, "
      "float beta1, float beta2, float eps, int bias_correction, bool grad_averaging, "
      "bool maximize, float min_ratio, float max_ratio, int stage) -> ()");
  library.def(
      "clip_factor(Tensor[] tensors, float max_norm, *, float eps, Tensor? scale) "
      "-> (Tensor, Tensor)");

  // norm: batch norm over ghost batches, by L2, L1 and top-k (L-infinity) deviations.
  library.def(
      "ghost_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, int policy, int top, "
      "int ghost_size, int full, float eps, bool relu) -> (Tensor, Tensor, Tensor)");
  library.def(
      "ghost_norm_backward(Tensor grad, Tensor x, Tensor? weight, Tensor statistics, Tensor mask, "
      "int policy, int top, int ghost_size, int full, float eps, bool residual) "
      "-> (Tensor, Tensor, Tensor)");
  // Their steps, for a ghost batch that lies on several ranks.
  library.def("norm_moments(Tensor x, Tensor? center) -> Tensor");
  library.def(
      "norm_apply(Tensor x, Tensor coefficients, Tensor? residual, bool relu) "
      "-> (Tensor, Tensor)");
  library.def(
      "norm_gradient_sums(Tensor grad, Tensor x, Tensor mask, Tensor statistics, int policy) "
      "-> Tensor");
  library.def(
      "norm_gradient(Tensor grad, Tensor x, Tensor mask, Tensor coefficients, int policy, "
      "bool residual) -> (Tensor, Tensor)");

  // linear: the product with a part of a Hadamard matrix.
  library.def("hadamard(Tensor x, int outputs) -> Tensor");

  // shards: what the ranks of one axis of a torus sent, added, divided and cast.
  library.def(
      "sum_shards(Tensor[] shards, Tensor(a!) out, *, int divisor, bool squares) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(largebatch, CPU, library) {
  library.impl("sgd_", TORCH_BOX(&largebatch::sgd<largebatch::sgd_step_cpu>));
  library.impl("global_norm", TORCH_BOX(&largebatch::global_norm_cpu));
  library.impl("clip_factor", TORCH_BOX(&largebatch::clip_factor_cpu));
  library.impl("lars_", TORCH_BOX(&largebatch::lars<largebatch::lars_step_cpu>));
  library.impl("lamb_", TORCH_BOX(&largebatch::lamb<largebatch::lamb_step_cpu>));
  library.impl("ghost_norm", TORCH_BOX(&largebatch::ghost_norm<largebatch::ghost_norm_cpu>));
  library.impl(
      "ghost_norm_backward",
      TORCH_BOX(&largebatch::ghost_norm_backward<largebatch::ghost_norm_backward_cpu>));
  library.impl("norm_moments", TORCH_BOX(&largebatch::norm_moments<largebatch::norm_moments_cpu>));
  library.impl("norm_apply", TORCH_BOX(&largebatch::norm_apply<largebatch::norm_apply_cpu>));
  library.impl(
      "norm_gradient_sums",
      TORCH_BOX(&largebatch::norm_gradient_sums<largebatch::norm_gradient_sums_cpu>));
  library.impl(
      "norm_gradient",
      TORCH_BOX(&largebatch::norm_gradient<largebatch::norm_gradient_cpu>));
  library.impl("hadamard", TORCH_BOX(&largebatch::hadamard_cpu));
  library.impl("sum_shards", TORCH_BOX(&largebatch::sum_shards_cpu));
}

#ifdef LARGEBATCH_CUDA
STABLE_TORCH_LIBRARY_IMPL(largebatch, CUDA, library) {
  library.impl("sgd_", TORCH_BOX(&largebatch::sgd<largebatch::sgd_step_cuda>));
  library.impl("global_norm", TORCH_BOX(&largebatch::global_norm_cuda));
  library.impl("clip_factor", TORCH_BOX(&largebatch::clip_factor_cuda));
  library.impl("lars_", TORCH_BOX(&largebatch::lars<largebatch::lars_step_cuda>));
  library.impl("lamb_", TORCH_BOX(&largebatch::lamb<largebatch::lamb_step_cuda>));
  library.impl("ghost_norm", TORCH_BOX(&largebatch::ghost_norm<largebatch::ghost_norm_cuda>));
  library.impl(
      "ghost_norm_backward",
      TORCH_BOX(&largebatch::ghost_norm_backward<largebatch::ghost_norm_backward_cuda>));
  library.impl("norm_moments", TORCH_BOX(&largebatch::norm_moments<largebatch::norm_moments_cuda>));
  library.impl("norm_apply", TORCH_BOX(&largebatch::norm_apply<largebatch::norm_apply_cuda>));
  library.impl(
      "norm_gradient_sums",
      TORCH_BOX(&largebatch::norm_gradient_sums<largebatch::norm_gradient_sums_cuda>));
  library.impl(
      "norm_gradient",
      TORCH_BOX(&largebatch::norm_gradient<largebatch::norm_gradient_cuda>));
  library.impl("hadamard", TORCH_BOX(&largebatch::hadamard_cuda));
  library.impl("sum_shards", TORCH_BOX(&largebatch::sum_shards_cuda));
}
#endif

// An empty module, so that `import largebatch._C` loads the operators. Where Python's headers are
// not installed it is left out; _ops loads the file through torch and does not need it.
#if __has_include(<Python.h>)
#include <Python.h>

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C(void) {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C", "Compiled operators of largebatch.", -1,
      nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
#endif
