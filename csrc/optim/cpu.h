// What the CPU sources of the optimizer family share: loops over one chunk, and small helpers.

#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

#include "common/tensors.h"
#include "optim/math.h"

namespace largebatch {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Sums have sixteen lanes, whatever the vector width: element i goes to lane i mod 16, and the lanes
// are added in one fixed order.
constexpr int kLanes = 16;

// Calls `body` with a null pointer of the element type.
template <class Body>
void dispatch(ScalarType type, const Body& body) {
  switch (type) {
    case ScalarType::Float: return body(static_cast<float*>(nullptr));
    case ScalarType::Double: return body(static_cast<double*>(nullptr));
    case ScalarType::Half: return body(static_cast<Half*>(nullptr));
    default: return body(static_cast<BFloat16*>(nullptr));
  }
}

// The number in a 0-d float32 or float64 tensor on the CPU.
double read_scalar(const Tensor& scalar);

// One step of SGD on a chunk, one overload an element type; see sgd_element in math.h.
#define LARGEBATCH_DECLARE_SGD(T, Acc)                                                       \
  void sgd_momentum(                                                                         \
      T* param, const T* grad, Acc* buffer, int64_t length, Acc factor,                      \
      const SgdScalars<Acc>& scalars);                                                       \
  void sgd_plain(                                                                            \
      T* param, const T* grad, int64_t length, Acc factor, const SgdScalars<Acc>& scalars);  \
  double square_sum(const T* values, int64_t length);

LARGEBATCH_DECLARE_SGD(float, float)
LARGEBATCH_DECLARE_SGD(double, double)
LARGEBATCH_DECLARE_SGD(Half, float)
LARGEBATCH_DECLARE_SGD(BFloat16, float)
#undef LARGEBATCH_DECLARE_SGD

}  // namespace largebatch
