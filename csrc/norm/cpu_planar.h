// A few adjacent channels of one ghost batch whose values of a sample lie together (contiguous
// layout): statistics and normalisation while the values are in the core's cache.

#pragma once

#include "norm/cpu_common.h"

namespace largebatch::LARGEBATCH_ISA {

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
    const T* x, int64_t length, Wide<T> shift, double& sum, double& square) {
  using Acc = Wide<T>;
  constexpr int kCount = Lanes<Acc>::kCount;
  Vector<Acc> sums[2] = {}, squares[2] = {};
  int64_t i = 0;
  for (; i + 2 * kCount <= length; i += 2 * kCount) {
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

template <typename T>
LARGEBATCH_INLINE void planar_forward(const PlanarForward<T>& block) {
  using Acc = Wide<T>;
  const int channels = block.channels;
  const int64_t length = block.length;
  const double n = static_cast<double>(block.samples * length);
  const double constant = norm_constant(block.policy, block.samples * length);
  double sums[kPlanarChannels] = {}, squares[kPlanarChannels] = {};
  Acc shift[kPlanarChannels], scale[kPlanarChannels], bias[kPlanarChannels];
  // Squares about the mean of the first sample: at worst the cancellation is that of a shift by
  // 1 / samples of the values, however far from zero they lie.
  for (int c = 0; c < channels; ++c) shift[c] = mean_of_row(block.x + c * length, length);
  for (int64_t s = 0; s < block.samples; ++s) {
    for (int c = 0; c < channels; ++c) {
      const T* row = block.x + s * block.stride + c * length;
      if (block.policy == NormPolicy::kL2) {
        add_moments<true>(row, length, shift[c], sums[c], squares[c]);
      } else {
        add_moments<false>(row, length, shift[c], sums[c], squares[c]);
      }
    }
  }
  for (int c = 0; c < channels; ++c) {
    const double offset = sums[c] / n;
    block.mean[c] = static_cast<Acc>(static_cast<double>(shift[c]) + offset);
    const double variance = squares[c] / n - offset * offset;
    block.spread[c] = static_cast<Acc>(variance < 0 ? 0 : variance);
    sums[c] = 0;
  }
  if (block.policy == NormPolicy::kL1) {
    for (int64_t s = 0; s < block.samples; ++s) {
      for (int c = 0; c < channels; ++c) {
        sums[c] += absolute_sum(block.x + s * block.stride + c * length, length, block.mean[c]);
      }
    }
    for (int c = 0; c < channels; ++c) block.spread[c] = static_cast<Acc>(sums[c] / n);
  } else if (block.policy == NormPolicy::kTopK) {
    for (int c = 0; c < channels; ++c) {
      for (int64_t i = 0; i < block.top; ++i) block.heap[i] = 0;
      for (int64_t s = 0; s < block.samples; ++s) {
        offer_row(
            block.x + s * block.stride + c * length, length, block.mean[c], block.heap, block.top);
      }
      block.kth[c] = block.heap[0];
      // A NaN compares as smaller than all: let it through.
      block.spread[c] = block.mean[c] == block.mean[c]
          ? static_cast<Acc>(heap_mean(block.heap, block.top))
          : block.mean[c];
    }
  }
  for (int c = 0; c < channels; ++c) {
    const double r =
        inverse_scale(block.policy, static_cast<double>(block.spread[c]), constant, block.eps);
    scale[c] = static_cast<Acc>(
        r * (block.weight == nullptr ? 1.0 : static_cast<double>(block.weight[c])));
    bias[c] = block.bias == nullptr ? Acc(0) : block.bias[c];
  }
  for (int64_t s = 0; s < block.samples; ++s) {
    for (int c = 0; c < channels; ++c) {
      const int64_t at = s * block.stride + c * length;
      normalize<false>(
          block.x + at, block.residual == nullptr ? nullptr : block.residual + at, block.y + at,
          block.mask == nullptr ? nullptr
                                : block.mask + s * block.mask_stride + c * block.mask_row,
          &block.mean[c], &scale[c], &bias[c], length, block.stream);
    }
  }
  if (block.stream) stream_end();
}

template <bool Signs, typename T>
LARGEBATCH_INLINE void add_gradient_sums(
    const T* grad,
    const T* x,
    const uint8_t* mask,
    int64_t length,
    Wide<T> mean,
    GradientSums& sums) {
  using Acc = Wide<T>;
  Vector<Acc> of_grad{}, of_product{}, of_sign{};
  for_lanes<Acc>(0, length, [&](int64_t i, auto lanes) LARGEBATCH_ALWAYS_INLINE {
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

template <NormPolicy Policy, typename T>
LARGEBATCH_INLINE void planar_backward(const PlanarBackward<T>& block) {
  using Acc = Wide<T>;
  constexpr bool kSigns = Policy == NormPolicy::kL1;
  const int channels = block.channels;
  const int64_t length = block.length, n = block.samples * length;
  const double constant = norm_constant(Policy, n);
  GradientSums sums[kPlanarChannels] = {};
  Acc share[kPlanarChannels] = {};
  GradientTerms<Acc> terms[kPlanarChannels];
  for (int64_t s = 0; s < block.samples; ++s) {
    for (int c = 0; c < channels; ++c) {
      const int64_t at = s * block.stride + c * length;
      const uint8_t* mask = block.mask == nullptr
          ? nullptr
          : block.mask + s * block.mask_stride + c * block.mask_row;
      add_gradient_sums<kSigns>(
          block.grad + at, block.x + at, mask, length, block.mean[c], sums[c]);
    }
  }
  for (int c = 0; c < channels; ++c) {
    if constexpr (Policy == NormPolicy::kTopK) {
      TopCounts counts;
      for (int64_t s = 0; s < block.samples; ++s) {
        count_top(
            block.x + s * block.stride + c * length, length, block.mean[c], block.kth[c], counts);
      }
      share[c] = static_cast<Acc>(tie_share(block.top, counts.above, counts.equal));
      sums[c].sign = counts.above_sign + static_cast<double>(share[c]) * counts.equal_sign;
    }
    const double r =
        inverse_scale(Policy, static_cast<double>(block.spread[c]), constant, block.eps);
    const double weight =
        block.weight == nullptr ? 1.0 : static_cast<double>(block.weight[c]);
    terms[c] = gradient_terms<Acc>(Policy, sums[c], n, block.top, r, constant, weight);
    block.dweight[c] = static_cast<Acc>(sums[c].grad_deviation * r);
    block.dbias[c] = static_cast<Acc>(sums[c].grad);
  }
  for (int64_t s = 0; s < block.samples; ++s) {
    for (int c = 0; c < channels; ++c) {
      const int64_t at = s * block.stride + c * length;
      gradient<false, Policy>(
          block.grad + at, block.x + at,
          block.mask == nullptr ? nullptr
                                : block.mask + s * block.mask_stride + c * block.mask_row,
          block.dx + at, block.dresidual == nullptr ? nullptr : block.dresidual + at,
          {&block.mean[c], &terms[c].grad, &terms[c].constant, &terms[c].spread, &block.kth[c],
           &share[c]},
          length, block.stream);
    }
  }
  if (block.stream) stream_end();
}

}  // namespace largebatch::LARGEBATCH_ISA
