// What the host sides of the CUDA back end share.

#pragma once

#include <optional>

#include "common/tensors.h"
#include "optim/cuda.h"

namespace largebatch {

inline Element element_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Element::kFloat;
    case ScalarType::Double: return Element::kDouble;
    case ScalarType::Half: return Element::kHalf;
    default: return Element::kBFloat16;
  }
}

// Kernels read raw pointers: all of a call must be on one device.
inline void check_device(const TensorList& tensors, int32_t device) {
  for (const Tensor& tensor : tensors) {
    STD_TORCH_CHECK(
        tensor.is_cuda() && tensor.get_device_index() == device,
        "largebatch: all tensors of a call must be on one CUDA device");
  }
}

inline DeviceScalar device_scalar(const std::optional<Tensor>& scalar, int32_t device) {
  if (!scalar) return {nullptr, false};
  check_device({*scalar}, device);
  return {scalar->const_data_ptr(), scalar->scalar_type() == ScalarType::Double};
}

inline void check_launch(const char* error, const char* name) {
  STD_TORCH_CHECK(error == nullptr, name, ": ", error == nullptr ? "" : error);
}

}  // namespace largebatch
