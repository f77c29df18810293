// From an element type known at run time to the type that kernels are compiled for.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "common/element.h"

namespace largebatch {
namespace {

// Calls `body` with a value of the floating-point type.
template <class Body>
auto dispatch(Element element, const Body& body) {
  switch (element) {
    case Element::kFloat: return body(float());
    case Element::kDouble: return body(double());
    case Element::kHalf: return body(__half());
    default: return body(__nv_bfloat16());
  }
}

// The same of any type.
template <class Body>
auto dispatch_all(Element element, const Body& body) {
  switch (element) {
    case Element::kByte: return body(uint8_t());
    case Element::kChar: return body(int8_t());
    case Element::kShort: return body(int16_t());
    case Element::kInt: return body(int32_t());
    case Element::kLong: return body(int64_t());
    case Element::kBool: return body(bool());
    default: return dispatch(element, body);
  }
}

}  // namespace
}  // namespace largebatch
