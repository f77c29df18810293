// What the host sides of the CUDA back end share: types, devices and errors of a call.

#pragma once

#include "common/cuda_device.h"
#include "common/element.h"
#include "common/tensors.h"

namespace largebatch {

inline Element element_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return Element::kFloat;
    case ScalarType::Double: return Element::kDouble;
    case ScalarType::Half: return Element::kHalf;
    case ScalarType::BFloat16: return Element::kBFloat16;
    case ScalarType::Byte: return Element::kByte;
    case ScalarType::Char: return Element::kChar;
    case ScalarType::Short: return Element::kShort;
    case ScalarType::Int: return Element::kInt;
    case ScalarType::Long: return Element::kLong;
    default: return Element::kBool;
  }
}

// Kernels read raw pointers: all of a call must be on one device.
inline void check_device(const TensorList& tensors, int32_t device) {
  for (const Tensor& tensor : tensors) {
    STD_TORCH_CHECK(
        is_on_cuda(tensor) && tensor.get_device_index() == device,
        "largebatch: all tensors of a call must be on one CUDA device");
  }
}

inline void check_launch(const char* error, const char* name) {
  STD_TORCH_CHECK(error == nullptr, name, ": ", error == nullptr ? "" : error);
}

}  // namespace largebatch
