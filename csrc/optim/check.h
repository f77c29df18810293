// Checks of arguments that both back ends share. Messages reach the user as RuntimeError.

#pragma once

#include "common/tensors.h"

namespace largebatch {

inline void check_sgd(
    const TensorList& params,
    const TensorList& grads,
    const TensorList& momentum_buffers,
    double momentum) {
  const bool has_buffers = momentum != 0.0;
  STD_TORCH_CHECK(
      grads.size() == params.size() &&
          momentum_buffers.size() == (has_buffers ? params.size() : 0),
      "largebatch::sgd_: ", params.size(), " parameters, ", grads.size(), " gradients and ",
      momentum_buffers.size(), " momentum buffers; there is a buffer a parameter if and only if ",
      "momentum is not zero");
  for (size_t index = 0; index < params.size(); ++index) {
    const ScalarType type = params[index].scalar_type();
    STD_TORCH_CHECK(
        is_supported(type) && grads[index].scalar_type() == type,
        "largebatch::sgd_: parameter ", index,
        " and its gradient must have one type of float32, float64, float16, bfloat16");
    STD_TORCH_CHECK(
        same_sizes(params[index], grads[index]),
        "largebatch::sgd_: parameter ", index, " and its gradient differ in shape");
    if (has_buffers) {
      STD_TORCH_CHECK(
          momentum_buffers[index].scalar_type() == accumulate_type(type) &&
              same_sizes(params[index], momentum_buffers[index]),
          "largebatch::sgd_: momentum buffer ", index,
          " must have its parameter's shape and be float64 for float64, else float32");
    }
  }
}

// The type of a norm over `tensors`, having checked that their types are supported.
inline ScalarType norm_type(const TensorList& tensors) {
  ScalarType result = ScalarType::Float;
  for (const Tensor& tensor : tensors) {
    const ScalarType type = tensor.scalar_type();
    STD_TORCH_CHECK(
        is_supported(type),
        "largebatch::global_norm: tensors must be float32, float64, float16 or bfloat16");
    if (type == ScalarType::Double) result = type;
  }
  return result;
}

inline void check_scalar(const std::optional<Tensor>& scalar, const char* name) {
  if (!scalar) return;
  const ScalarType type = scalar->scalar_type();
  STD_TORCH_CHECK(
      scalar->numel() == 1 && (type == ScalarType::Float || type == ScalarType::Double),
      "largebatch::sgd_: ", name, " must hold one float32 or float64");
}

}  // namespace largebatch
