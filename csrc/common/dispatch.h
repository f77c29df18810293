// From a tensor's type to the type that CPU kernels are compiled for.

#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

namespace largebatch {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;

// Calls `body` with a null pointer of the floating-point type.
template <class Body>
auto dispatch(ScalarType type, const Body& body) {
  switch (type) {
    case ScalarType::Float: return body(static_cast<float*>(nullptr));
    case ScalarType::Double: return body(static_cast<double*>(nullptr));
    case ScalarType::Half: return body(static_cast<Half*>(nullptr));
    default: return body(static_cast<BFloat16*>(nullptr));
  }
}

// The same of any type that the shards of a torus have.
template <class Body>
auto dispatch_all(ScalarType type, const Body& body) {
  switch (type) {
    case ScalarType::Byte: return body(static_cast<uint8_t*>(nullptr));
    case ScalarType::Char: return body(static_cast<int8_t*>(nullptr));
    case ScalarType::Short: return body(static_cast<int16_t*>(nullptr));
    case ScalarType::Int: return body(static_cast<int32_t*>(nullptr));
    case ScalarType::Long: return body(static_cast<int64_t*>(nullptr));
    case ScalarType::Bool: return body(static_cast<bool*>(nullptr));
    default: return dispatch(type, body);
  }
}

}  // namespace largebatch
