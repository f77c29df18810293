// Loops over one stretch of values that both CPU layouts are made of.

#pragma once

#include <cstdint>

#include "norm/cpu_kernels.h"

#include "common/lanes.h"

namespace largebatch::LARGEBATCH_ISA {

// Coefficients of a stretch: one for all of it, or one an element (readable to a full vector).
template <bool PerElement, typename Acc>
LARGEBATCH_INLINE Vector<Acc> coefficient(const Acc* values, int64_t at) {
  if constexpr (PerElement) {
    return load(values + at);
  } else {
    return splat(*values);
  }
}

// How many lanes of a vector are in use: all, known to the compiler, or fewer, at a stretch's end.
struct All {};

template <typename T>
LARGEBATCH_INLINE Vector<Wide<T>> load_lanes(const T* data, All, Wide<T> = 0) {
  return load(data);
}

template <typename T>
LARGEBATCH_INLINE Vector<Wide<T>> load_lanes(const T* data, int count, Wide<T> rest = 0) {
  return load_some(data, count, rest);
}

template <typename T>
LARGEBATCH_INLINE void store_lanes(T* data, const Vector<Wide<T>>& values, All, bool stream) {
  store(data, values, stream);
}

template <typename T>
LARGEBATCH_INLINE void store_lanes(T* data, const Vector<Wide<T>>& values, int count, bool) {
  store_some(data, values, count);
}

template <typename Acc>
LARGEBATCH_INLINE int number_of(All) {
  return Lanes<Acc>::kCount;
}

template <typename Acc>
LARGEBATCH_INLINE int number_of(int count) {
  return count;
}

// Calls `step(at, lanes)` for the vectors of a stretch.
template <typename Acc, class Step>
LARGEBATCH_INLINE void for_lanes(int64_t begin, int64_t length, const Step& step) {
  int64_t i = begin;
  for (; i + Lanes<Acc>::kCount <= length; i += Lanes<Acc>::kCount) step(i, All{});
  if (i < length) step(i, static_cast<int>(length - i));
}

// y = (x - mean) * scale + bias, + residual, through the ReLU, whose mask is kept as bits. NaN
// passes, as in torch. The values `ahead` of those at hand are fetched meanwhile.
template <bool PerElement, typename T>
LARGEBATCH_INLINE void normalize(
    const T* x,
    const T* residual,
    T* y,
    uint8_t* mask,
    const Wide<T>* mean,
    const Wide<T>* scale,
    const Wide<T>* bias,
    int64_t length,
    int64_t ahead,
    bool stream) {
  using Acc = Wide<T>;
  for_lanes<Acc>(0, length, [&](int64_t i, auto lanes) LARGEBATCH_ALWAYS_INLINE {
    prefetch(x + i + ahead);
    Vector<Acc> v = (load_lanes(x + i, lanes) - coefficient<PerElement>(mean, i)) *
            coefficient<PerElement>(scale, i) +
        coefficient<PerElement>(bias, i);
    if (residual != nullptr) v += load_lanes(residual + i, lanes);
    if (mask != nullptr) {
      const Mask<Acc> pass = ~(v <= 0);
      store_bits<Acc>(mask + i / 8, pass);
      v = keep<Acc>(v, pass);
    }
    store_lanes(y + i, v, lanes, stream);
  });
}

// What an element carries of the spread's gradient.
template <NormPolicy Policy, typename Acc>
LARGEBATCH_INLINE Vector<Acc> carried(
    const Vector<Acc>& deviation, const Vector<Acc>& kth, const Vector<Acc>& share) {
  if constexpr (Policy == NormPolicy::kL2) {
    return deviation;
  } else if constexpr (Policy == NormPolicy::kL1) {
    return sign_of<Acc>(deviation);
  } else {
    const Vector<Acc> size = absolute<Acc>(deviation);
    const Vector<Acc> part = size > kth ? splat(Acc(1)) : (size == kth ? share : Vector<Acc>{});
    return sign_of<Acc>(deviation) * part;
  }
}

template <bool PerElement, NormPolicy Policy, typename T>
LARGEBATCH_INLINE void gradient(
    const T* grad,
    const T* x,
    const uint8_t* mask,
    T* dx,
    T* dresidual,
    const GradientCoefficients<Wide<T>>& by,
    int64_t length,
    int64_t ahead,
    bool stream) {
  using Acc = Wide<T>;
  for_lanes<Acc>(0, length, [&](int64_t i, auto lanes) LARGEBATCH_ALWAYS_INLINE {
    prefetch(x + i + ahead);
    prefetch(grad + i + ahead);
    Vector<Acc> g = load_lanes(grad + i, lanes);
    if (mask != nullptr) g = keep<Acc>(g, load_bits<Acc>(mask + i / 8));
    const Vector<Acc> d = load_lanes(x + i, lanes) - coefficient<PerElement>(by.mean, i);
    Vector<Acc> kth{}, share{};
    if constexpr (Policy == NormPolicy::kTopK) {
      kth = coefficient<PerElement>(by.kth, i);
      share = coefficient<PerElement>(by.share, i);
    }
    const Vector<Acc> result = coefficient<PerElement>(by.grad, i) * g +
        (coefficient<PerElement>(by.constant, i) +
         coefficient<PerElement>(by.spread, i) * carried<Policy, Acc>(d, kth, share));
    store_lanes(dx + i, result, lanes, stream);
    if (dresidual != nullptr) store_lanes(dresidual + i, g, lanes, stream);
  });
}

// The k largest of a stream of values that are at least 0: a heap with the smallest at its root.
template <typename Acc>
LARGEBATCH_INLINE void sift(Acc* heap, int64_t top, Acc value) {
  int64_t at = 0;
  while (true) {
    int64_t child = 2 * at + 1;
    if (child >= top) break;
    if (child + 1 < top && heap[child + 1] < heap[child]) ++child;
    if (!(heap[child] < value)) break;
    heap[at] = heap[child];
    at = child;
  }
  heap[at] = value;
}

template <typename Acc>
LARGEBATCH_INLINE void offer(Acc* heap, int64_t top, Acc value) {
  if (value > heap[0]) sift(heap, top, value);
}

// Adds in the order of size, so that the order of insertion leaves no trace; empties the heap.
template <typename Acc>
LARGEBATCH_INLINE double heap_mean(Acc* heap, int64_t top) {
  double sum = 0;
  for (int64_t left = top; left > 0; --left) {
    sum += static_cast<double>(heap[0]);
    sift(heap, left - 1, heap[left - 1]);
  }
  return sum / static_cast<double>(top);
}

template <typename Acc>
LARGEBATCH_INLINE void count_one(TopCounts& counts, Acc deviation, Acc kth) {
  const Acc size = deviation < 0 ? -deviation : deviation;
  const double sign = deviation > 0 ? 1 : (deviation < 0 ? -1 : 0);
  if (size > kth) {
    counts.above += 1;
    counts.above_sign += sign;
  } else if (size == kth) {
    counts.equal += 1;
    counts.equal_sign += sign;
  }
}

}  // namespace largebatch::LARGEBATCH_ISA
