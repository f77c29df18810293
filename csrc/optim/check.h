// Checks of arguments that both back ends share; lists of a step are checked in lists.h. Messages
// reach the user as RuntimeError.

#pragma once

#include <optional>

#include "common/memory.h"

namespace largebatch {

// The type of a norm over `tensors`, having checked that their types are supported.
inline ScalarType norm_type(const TensorList& tensors) {
  STD_TORCH_CHECK(!tensors.empty(), "largebatch::global_norm: there must be a tensor at least");
  ScalarType result = ScalarType::Float;
  for (const Tensor& tensor : tensors) {
    const ScalarType type = tensor.scalar_type();
    STD_TORCH_CHECK(
        is_supported(type),
        "largebatch::global_norm: tensors must be float32, float64, float16 or bfloat16");
    if (type == ScalarType::Double) result = type;
    check_stored("largebatch::global_norm", tensor);
  }
  return result;
}

inline void check_scalar(const std::optional<Tensor>& scalar, const char* name) {
  if (!scalar) return;
  const ScalarType type = scalar->scalar_type();
  STD_TORCH_CHECK(
      scalar->numel() == 1 && (type == ScalarType::Float || type == ScalarType::Double),
      "largebatch: ", name, " must hold one float32 or float64");
  check_stored("largebatch", scalar);
}

// Scalars of a step are read while its lists are written.
inline void check_scalar(
    const std::optional<Tensor>& scalar, const char* name, Footprint& footprint) {
  check_scalar(scalar, name);
  footprint.reads(scalar);
}

}  // namespace largebatch
