// A few adjacent channels of one ghost batch whose values of a sample lie together (contiguous
// layout): statistics and normalisation while the values are in the core's cache.
//
// A sample's values are few and the next one's far away, which the processor does not foresee: the
// loops ask for them.

#pragma once

#include "norm/cpu_common.h"

namespace largebatch::LARGEBATCH_ISA {

// From a sample to the one to ask for: the next, and at the last itself.
LARGEBATCH_INLINE int64_t ahead_of(const PlanarAt& at, int64_t sample) {
  return sample + 1 < at.samples ? at.stride : 0;
}

template <typename T>
LARGEBATCH_INLINE Wide<T> mean_of_row(const T* x, int64_t length) {
  using Acc = Wide<T>;
  const Acc first = static_cast<Acc>(x[0]);
  Vector<Acc> sum{};
  for_lanes<Acc>(0, length, [&](int64_t i, auto lanes) LARGEBATCH_ALWAYS_INLINE {
    sum += load_lanes(x + i, lanes, first) - first;
  });
  return first + static_cast<Acc>(lane_sum<Acc>(sum) / static_cast<double>(length));
}

template <bool Squares, typename T>
LARGEBATCH_INLINE void add_moments(
    const T* x, int64_t length, int64_t ahead, Wide<T> shift, double& sum, double& square) {
  using Acc = Wide<T>;
  constexpr int kCount = Lanes<Acc>::kCount;
  Vector<Acc> sums[2] = {}, squares[2] = {};
  int64_t i = 0;
  for (; i + 2 * kCount <= length; i += 2 * kCount) {
    prefetch(x + i + ahead);
    prefetch(x + i + kCount + ahead);
    const Vector<Acc> first = load(x + i) - shift;
    const Vector<Acc> second = load(x + i + kCount) - shift;
    sums[0] += first;
    sums[1] += second;
    if constexpr (Squares) {
      squares[0] += first * first;
      squares[1] += second * second;
    }
  }
  for_lanes<Acc>(i, length, [&](int64_t at, auto lanes) LARGEBATCH_ALWAYS_INLINE {
    const Vector<Acc> d = load_lanes(x + at, lanes, shift) - shift;
    sums[0] += d;
    if constexpr (Squares) squares[0] += d * d;
  });
  sum += lane_sum<Acc>(sums[0] + sums[1]);
  if constexpr (Squares) square += lane_sum<Acc>(squares[0] + squares[1]);
}

template <typename T>
LARGEBATCH_INLINE double absolute_sum(const T* x, int64_t length, Wide<T> mean) {
  using Acc = Wide<T>;
  constexpr int kCount = Lanes<Acc>::kCount;
  Vector<Acc> sums[2] = {};
  int64_t i = 0;
  for (; i + 2 * kCount <= length; i += 2 * kCount) {
    sums[0] += absolute<Acc>(load(x + i) - mean);
    sums[1] += absolute<Acc>(load(x + i + kCount) - mean);
  }
  for_lanes<Acc>(i, length, [&](int64_t at, auto lanes) LARGEBATCH_ALWAYS_INLINE {
    sums[0] += absolute<Acc>(load_lanes(x + at, lanes, mean) - mean);
  });
  return lane_sum<Acc>(sums[0] + sums[1]);
}

// Most vectors hold nothing that is among the k largest so far: only then single values are read.
template <typename T>
LARGEBATCH_INLINE void offer_row(
    const T* x, int64_t length, Wide<T> mean, Wide<T>* heap, int64_t top) {
  using Acc = Wide<T>;
  for_lanes<Acc>(0, length, [&](int64_t i, auto lanes) LARGEBATCH_ALWAYS_INLINE {
    const Vector<Acc> size = absolute<Acc>(load_lanes(x + i, lanes, mean) - mean);
    if (!any<Acc>(size > heap[0])) return;
    for (int lane = 0; lane < number_of<Acc>(lanes); ++lane) offer(heap, top, size[lane]);
  });
}

template <bool Squares, typename T>
LARGEBATCH_INLINE void planar_moments(
    const PlanarAt& at, const T* x, Wide<T>* mean, Wide<T>* variance) {
  using Acc = Wide<T>;
  const double n = static_cast<double>(at.samples * at.length);
  double sums[kPlanarChannels] = {}, squares[kPlanarChannels] = {};
  Acc shift[kPlanarChannels];
  // Squares about the mean of the first sample: at worst the cancellation is that of a shift by
  // 1 / samples of the values, however far from zero they lie.
  for (int c = 0; c < at.channels; ++c) shift[c] = mean_of_row(x + c * at.length, at.length);
  for (int64_t s = 0; s < at.samples; ++s) {
    for (int c = 0; c < at.channels; ++c) {
      const T* const row = x + s * at.stride + c * at.length;
      add_moments<Squares>(row, at.length, ahead_of(at, s), shift[c], sums[c], squares[c]);
    }
  }
  for (int c = 0; c < at.channels; ++c) {
    const double offset = sums[c] / n;
    mean[c] = static_cast<Acc>(static_cast<double>(shift[c]) + offset);
    if constexpr (Squares) {
      const double difference = squares[c] / n - offset * offset;
      variance[c] = static_cast<Acc>(difference < 0 ? 0 : difference);
    }
  }
}

template <typename T>
LARGEBATCH_INLINE void planar_absolute(
    const PlanarAt& at, const T* x, const Wide<T>* mean, Wide<T>* spread) {
  double sums[kPlanarChannels] = {};
  for (int64_t s = 0; s < at.samples; ++s) {
    for (int c = 0; c < at.channels; ++c) {
      sums[c] += absolute_sum(x + s * at.stride + c * at.length, at.length, mean[c]);
    }
  }
  const double n = static_cast<double>(at.samples * at.length);
  for (int c = 0; c < at.channels; ++c) spread[c] = static_cast<Wide<T>>(sums[c] / n);
}

// `heap` has room for `top` values.
template <typename T>
LARGEBATCH_INLINE void planar_offer(
    const PlanarAt& at,
    const T* x,
    const Wide<T>* mean,
    Wide<T>* heap,
    int64_t top,
    Wide<T>* kth,
    Wide<T>* spread) {
  for (int c = 0; c < at.channels; ++c) {
    for (int64_t i = 0; i < top; ++i) heap[i] = 0;
    for (int64_t s = 0; s < at.samples; ++s) {
      offer_row(x + s * at.stride + c * at.length, at.length, mean[c], heap, top);
    }
    kth[c] = heap[0];
    // A NaN compares as smaller than all: let it through.
    spread[c] = mean[c] == mean[c] ? static_cast<Wide<T>>(heap_mean(heap, top)) : mean[c];
  }
}

template <typename T>
LARGEBATCH_INLINE void planar_normalize(
    const PlanarAt& at,
    const T* x,
    const T* residual,
    T* y,
    uint8_t* mask,
    const Wide<T>* mean,
    const Wide<T>* scale,
    const Wide<T>* bias,
    bool stream) {
  for (int64_t s = 0; s < at.samples; ++s) {
    for (int c = 0; c < at.channels; ++c) {
      const int64_t begin = s * at.stride + c * at.length;
      normalize<false>(
          x + begin, residual == nullptr ? nullptr : residual + begin, y + begin,
          mask == nullptr ? nullptr : mask + s * at.mask_stride + c * at.mask_row, mean + c,
          scale + c, bias + c, at.length, ahead_of(at, s), stream);
    }
  }
  if (stream) stream_end();
}

template <bool Signs, typename T>
LARGEBATCH_INLINE void add_gradient_sums(
    const T* grad,
    const T* x,
    const uint8_t* mask,
    int64_t length,
    int64_t ahead,
    Wide<T> mean,
    GradientSums& sums) {
  using Acc = Wide<T>;
  Vector<Acc> of_grad{}, of_product{}, of_sign{};
  for_lanes<Acc>(0, length, [&](int64_t i, auto lanes) LARGEBATCH_ALWAYS_INLINE {
    prefetch(grad + i + ahead);
    prefetch(x + i + ahead);
    Vector<Acc> g = load_lanes(grad + i, lanes);
    if (mask != nullptr) g = keep<Acc>(g, load_bits<Acc>(mask + i / 8));
    const Vector<Acc> d = load_lanes(x + i, lanes, mean) - mean;
    of_grad += g;
    of_product += g * d;
    if constexpr (Signs) of_sign += sign_of<Acc>(d);
  });
  sums.grad += lane_sum<Acc>(of_grad);
  sums.grad_deviation += lane_sum<Acc>(of_product);
  if constexpr (Signs) sums.sign += lane_sum<Acc>(of_sign);
}

template <typename T>
LARGEBATCH_INLINE void count_top(
    const T* x, int64_t length, Wide<T> mean, Wide<T> kth, TopCounts& counts) {
  using Acc = Wide<T>;
  for_lanes<Acc>(0, length, [&](int64_t i, auto lanes) LARGEBATCH_ALWAYS_INLINE {
    const Vector<Acc> d = load_lanes(x + i, lanes, mean) - mean;
    if (!any<Acc>(absolute<Acc>(d) >= kth)) return;
    for (int lane = 0; lane < number_of<Acc>(lanes); ++lane) count_one(counts, d[lane], kth);
  });
}

template <bool Signs, typename T>
LARGEBATCH_INLINE void planar_gradient_sums(
    const PlanarAt& at,
    const T* grad,
    const T* x,
    const uint8_t* mask,
    const Wide<T>* mean,
    GradientSums* sums) {
  for (int c = 0; c < at.channels; ++c) sums[c] = {0, 0, 0};
  for (int64_t s = 0; s < at.samples; ++s) {
    for (int c = 0; c < at.channels; ++c) {
      const int64_t begin = s * at.stride + c * at.length;
      const uint8_t* const bits =
          mask == nullptr ? nullptr : mask + s * at.mask_stride + c * at.mask_row;
      add_gradient_sums<Signs>(
          grad + begin, x + begin, bits, at.length, ahead_of(at, s), mean[c], sums[c]);
    }
  }
}

template <typename T>
LARGEBATCH_INLINE void planar_count_top(
    const PlanarAt& at, const T* x, const Wide<T>* mean, const Wide<T>* kth, TopCounts* counts) {
  for (int c = 0; c < at.channels; ++c) {
    counts[c] = TopCounts{};
    for (int64_t s = 0; s < at.samples; ++s) {
      count_top(x + s * at.stride + c * at.length, at.length, mean[c], kth[c], counts[c]);
    }
  }
}

template <NormPolicy Policy, typename T>
LARGEBATCH_INLINE void planar_gradient(
    const PlanarAt& at,
    const T* grad,
    const T* x,
    const uint8_t* mask,
    T* dx,
    T* dresidual,
    const GradientCoefficients<Wide<T>>& by,
    bool stream) {
  for (int64_t s = 0; s < at.samples; ++s) {
    for (int c = 0; c < at.channels; ++c) {
      const int64_t begin = s * at.stride + c * at.length;
      gradient<false, Policy>(
          grad + begin, x + begin,
          mask == nullptr ? nullptr : mask + s * at.mask_stride + c * at.mask_row, dx + begin,
          dresidual == nullptr ? nullptr : dresidual + begin,
          {by.mean + c, by.grad + c, by.constant + c, by.spread + c, by.kth + c, by.share + c},
          at.length, ahead_of(at, s), stream);
    }
  }
  if (stream) stream_end();
}

}  // namespace largebatch::LARGEBATCH_ISA
