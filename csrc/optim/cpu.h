// What the CPU sources of the optimizer family share: typed chunks, and SGD's step on one.

#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include "common/chunks.h"
#include "common/dispatch.h"
#include "optim/lists.h"
#include "optim/math.h"

namespace largebatch {

// Sums have sixteen lanes, whatever the vector width: element i goes to lane i mod 16, and the lanes
// are added in one fixed order.
constexpr int kLanes = 16;

// The element types with the type that their kernels compute in, and with those of their moments.
#define LARGEBATCH_TYPES(Each) \
  Each(float, float) Each(double, double) Each(Half, float) Each(BFloat16, float)
#define LARGEBATCH_MOMENT_TYPES(Each)                                   \
  Each(float, float, float) Each(float, BFloat16, float)                \
  Each(Half, float, float) Each(Half, BFloat16, float)                  \
  Each(BFloat16, float, float) Each(BFloat16, BFloat16, float)          \
  Each(double, double, double)

// The number in a 0-d float32 or float64 tensor on the CPU.
double read_scalar(const Tensor& scalar);

// One tensor of a step, as flat arrays; null where absent.
struct HostRow {
  ScalarType type;
  ScalarType moment_type;
  void* param;
  const void* grad;
  void* first;
  void* second;
  void* master;
};

// The rows of lists that are flat.
std::vector<HostRow> host_rows(const StepLists& lists);

// What a pass over one chunk works on, typed: the full-precision values stand in `master`, which
// for a 16-bit parameter without a master is a copy of the chunk.
template <typename T, typename Moment>
struct Span {
  using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;
  T* param;
  const T* grad;
  Moment* first;
  Moment* second;
  Acc* master;
  int64_t length;
};

void widen(const Half* from, float* to, int64_t length);
void widen(const BFloat16* from, float* to, int64_t length);

template <typename T, typename Moment, class Body>
void with_span(const HostRow& row, const Chunk& chunk, const Body& body) {
  using Acc = typename Span<T, Moment>::Acc;
  Span<T, Moment> span = {
      static_cast<T*>(row.param) + chunk.begin,
      static_cast<const T*>(row.grad) + chunk.begin,
      row.first == nullptr ? nullptr : static_cast<Moment*>(row.first) + chunk.begin,
      row.second == nullptr ? nullptr : static_cast<Moment*>(row.second) + chunk.begin,
      row.master == nullptr ? nullptr : static_cast<Acc*>(row.master) + chunk.begin,
      chunk.length};
  if constexpr (std::is_same_v<T, Acc>) {
    if (span.master == nullptr) span.master = span.param;
    body(span);
  } else if (span.master == nullptr) {
    Acc copy[kChunkElements];
    widen(span.param, copy, chunk.length);
    span.master = copy;
    body(span);
  } else {
    body(span);
  }
}

// Calls `body` with a chunk's span.
template <class Body>
void with_types(const HostRow& row, const Chunk& chunk, const Body& body) {
  const bool low = row.moment_type == ScalarType::BFloat16;
  switch (row.type) {
    case ScalarType::Double: return with_span<double, double>(row, chunk, body);
    case ScalarType::Float:
      return low ? with_span<float, BFloat16>(row, chunk, body)
                 : with_span<float, float>(row, chunk, body);
    case ScalarType::Half:
      return low ? with_span<Half, BFloat16>(row, chunk, body)
                 : with_span<Half, float>(row, chunk, body);
    default:
      return low ? with_span<BFloat16, BFloat16>(row, chunk, body)
                 : with_span<BFloat16, float>(row, chunk, body);
  }
}

// One step of SGD on a chunk, one overload a combination of types; see sgd_element in math.h.
#define LARGEBATCH_DECLARE_MOMENTUM(T, Buffer, Acc)                                            \
  void sgd_momentum(                                                                           \
      T* param, const T* grad, Buffer* buffer, Acc* master, int64_t length, Acc factor,        \
      const SgdScalars<Acc>& scalars);
LARGEBATCH_MOMENT_TYPES(LARGEBATCH_DECLARE_MOMENTUM)
#undef LARGEBATCH_DECLARE_MOMENTUM

#define LARGEBATCH_DECLARE_PLAIN(T, Acc)                                                       \
  void sgd_plain(                                                                              \
      T* param, const T* grad, Acc* master, int64_t length, Acc factor,                        \
      const SgdScalars<Acc>& scalars);
LARGEBATCH_TYPES(LARGEBATCH_DECLARE_PLAIN)
#undef LARGEBATCH_DECLARE_PLAIN

template <typename T, typename Moment, typename Acc>
void sgd_chunk(const Span<T, Moment>& span, Acc factor, const SgdScalars<Acc>& scalars) {
  if (span.first != nullptr) {
    sgd_momentum(span.param, span.grad, span.first, span.master, span.length, factor, scalars);
  } else {
    sgd_plain(span.param, span.grad, span.master, span.length, factor, scalars);
  }
}

}  // namespace largebatch
