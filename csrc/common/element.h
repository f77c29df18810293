// The element types of kernels, named without torch's headers.

#pragma once

#include <cstdint>

namespace largebatch {

// Floating-point types first: most kernels take no other.
enum class Element : uint8_t {
  kFloat, kDouble, kHalf, kBFloat16, kByte, kChar, kShort, kInt, kLong, kBool
};

constexpr Element kFloatingElements[] = {
    Element::kFloat, Element::kDouble, Element::kHalf, Element::kBFloat16};

}  // namespace largebatch
