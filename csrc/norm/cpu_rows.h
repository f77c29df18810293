// Rows of adjacent channels (channels last, and two dimensions): loops over a chunk of rows of one
// ghost batch. Arrays with a value a channel are readable to a full vector past the last channel.

#pragma once

#include "norm/cpu_common.h"

namespace largebatch::LARGEBATCH_ISA {

// How far ahead of the values at hand memory is asked for: over the end of a page, where the
// processor's own foresight ends.
constexpr int64_t kRowsAhead = 1024;

// Calls `four(first)` for blocks of four vectors of columns, then `one(first, lanes)`.
template <typename Acc, class Four, class One>
LARGEBATCH_INLINE void for_columns(int64_t channels, const Four& four, const One& one) {
  constexpr int kCount = Lanes<Acc>::kCount;
  int64_t c = 0;
  for (; c + 4 * kCount <= channels; c += 4 * kCount) four(c);
  for_lanes<Acc>(c, channels, one);
}

// sum[c] = sum of x - shift[c], square[c] = sum of its squares, in the order of the rows.
template <bool Squares, typename T>
LARGEBATCH_INLINE void rows_moments(
    const T* x,
    int64_t rows,
    int64_t channels,
    const Wide<T>* shift,
    Wide<T>* sum,
    Wide<T>* square) {
  using Acc = Wide<T>;
  constexpr int kCount = Lanes<Acc>::kCount;
  for_columns<Acc>(
      channels,
      [&](int64_t c) LARGEBATCH_ALWAYS_INLINE {
        Vector<Acc> s0{}, s1{}, s2{}, s3{}, q0{}, q1{}, q2{}, q3{};
        const Vector<Acc> o0 = load(shift + c), o1 = load(shift + c + kCount);
        const Vector<Acc> o2 = load(shift + c + 2 * kCount), o3 = load(shift + c + 3 * kCount);
        for (int64_t r = 0; r < rows; ++r) {
          const T* row = x + r * channels + c;
          for (int u = 0; u < 4; ++u) prefetch(row + u * kCount + kRowsAhead);
          const Vector<Acc> d0 = load(row) - o0, d1 = load(row + kCount) - o1;
          const Vector<Acc> d2 = load(row + 2 * kCount) - o2, d3 = load(row + 3 * kCount) - o3;
          s0 += d0;
          s1 += d1;
          s2 += d2;
          s3 += d3;
          if constexpr (Squares) {
            q0 += d0 * d0;
            q1 += d1 * d1;
            q2 += d2 * d2;
            q3 += d3 * d3;
          }
        }
        store(sum + c, s0);
        store(sum + c + kCount, s1);
        store(sum + c + 2 * kCount, s2);
        store(sum + c + 3 * kCount, s3);
        if constexpr (Squares) {
          store(square + c, q0);
          store(square + c + kCount, q1);
          store(square + c + 2 * kCount, q2);
          store(square + c + 3 * kCount, q3);
        }
      },
      [&](int64_t c, auto lanes) LARGEBATCH_ALWAYS_INLINE {
        Vector<Acc> s{}, q{};
        const Vector<Acc> o = load(shift + c);
        for (int64_t r = 0; r < rows; ++r) {
          const Vector<Acc> d = load_lanes(x + r * channels + c, lanes) - o;
          s += d;
          if constexpr (Squares) q += d * d;
        }
        store_lanes(sum + c, s, lanes, false);
        if constexpr (Squares) store_lanes(square + c, q, lanes, false);
      });
}

template <typename T>
LARGEBATCH_INLINE void rows_absolute(
    const T* x, int64_t rows, int64_t channels, const Wide<T>* mean, Wide<T>* sum) {
  using Acc = Wide<T>;
  constexpr int kCount = Lanes<Acc>::kCount;
  for_columns<Acc>(
      channels,
      [&](int64_t c) LARGEBATCH_ALWAYS_INLINE {
        Vector<Acc> s0{}, s1{}, s2{}, s3{};
        const Vector<Acc> o0 = load(mean + c), o1 = load(mean + c + kCount);
        const Vector<Acc> o2 = load(mean + c + 2 * kCount), o3 = load(mean + c + 3 * kCount);
        for (int64_t r = 0; r < rows; ++r) {
          const T* row = x + r * channels + c;
          for (int u = 0; u < 4; ++u) prefetch(row + u * kCount + kRowsAhead);
          s0 += absolute<Acc>(load(row) - o0);
          s1 += absolute<Acc>(load(row + kCount) - o1);
          s2 += absolute<Acc>(load(row + 2 * kCount) - o2);
          s3 += absolute<Acc>(load(row + 3 * kCount) - o3);
        }
        store(sum + c, s0);
        store(sum + c + kCount, s1);
        store(sum + c + 2 * kCount, s2);
        store(sum + c + 3 * kCount, s3);
      },
      [&](int64_t c, auto lanes) LARGEBATCH_ALWAYS_INLINE {
        Vector<Acc> s{};
        const Vector<Acc> o = load(mean + c);
        for (int64_t r = 0; r < rows; ++r) {
          s += absolute<Acc>(load_lanes(x + r * channels + c, lanes) - o);
        }
        store_lanes(sum + c, s, lanes, false);
      });
}

template <typename T>
LARGEBATCH_INLINE Vector<Wide<T>> load_some_or_all(const T* data, int count) {
  return count == Lanes<Wide<T>>::kCount ? load(data) : load_some(data, count);
}

// The k largest deviations of one vector of channels, their smallest and their mean; `heaps` has
// room for `top` values of each channel.
template <typename T>
LARGEBATCH_INLINE void rows_offer(
    const T* x,
    int64_t rows,
    int64_t channels,
    int count,
    const Wide<T>* mean,
    Wide<T>* heaps,
    int64_t top,
    Wide<T>* kth,
    Wide<T>* spread) {
  using Acc = Wide<T>;
  const Vector<Acc> o = load(mean);
  Vector<Acc> smallest{};
  for (int64_t r = 0; r < rows; ++r) {
    const Vector<Acc> size = absolute<Acc>(load_some_or_all(x + r * channels, count) - o);
    if (!any<Acc>(size > smallest)) continue;
    for (int lane = 0; lane < count; ++lane) {
      offer(heaps + lane * top, top, size[lane]);
      smallest[lane] = heaps[lane * top];
    }
  }
  for (int lane = 0; lane < count; ++lane) {
    Acc* const heap = heaps + lane * top;
    kth[lane] = heap[0];
    // A NaN compares as smaller than all: let it through.
    spread[lane] =
        mean[lane] == mean[lane] ? static_cast<Acc>(heap_mean(heap, top)) : mean[lane];
  }
}

template <typename T>
LARGEBATCH_INLINE void rows_count_top(
    const T* x,
    int64_t rows,
    int64_t channels,
    int count,
    const Wide<T>* mean,
    const Wide<T>* kth,
    TopCounts* counts) {
  using Acc = Wide<T>;
  const Vector<Acc> o = load(mean), smallest = load(kth);
  for (int64_t r = 0; r < rows; ++r) {
    const Vector<Acc> d = load_some_or_all(x + r * channels, count) - o;
    if (!any<Acc>(absolute<Acc>(d) >= smallest)) continue;
    for (int lane = 0; lane < count; ++lane) count_one(counts[lane], d[lane], smallest[lane]);
  }
}

template <typename T>
LARGEBATCH_INLINE void rows_normalize(
    const T* x,
    const T* residual,
    T* y,
    uint8_t* mask,
    int64_t rows,
    int64_t channels,
    int64_t mask_row,
    const Wide<T>* mean,
    const Wide<T>* scale,
    const Wide<T>* bias,
    bool stream) {
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t at = r * channels;
    normalize<true>(
        x + at, residual == nullptr ? nullptr : residual + at, y + at,
        mask == nullptr ? nullptr : mask + r * mask_row, mean, scale, bias, channels, kRowsAhead,
        stream);
  }
  if (stream) stream_end();
}

// Sums for one column block: of grad, of grad x deviation, and of the deviations' signs.
template <bool Signs, int Vectors, typename T, typename Used>
LARGEBATCH_INLINE void column_gradient_sums(
    const T* grad,
    const T* x,
    const uint8_t* mask,
    int64_t rows,
    int64_t channels,
    int64_t mask_row,
    Used lanes,
    const Wide<T>* mean,
    Wide<T>* of_grad,
    Wide<T>* of_product,
    Wide<T>* of_sign) {
  using Acc = Wide<T>;
  constexpr int kCount = Lanes<Acc>::kCount;
  Vector<Acc> g_sum[Vectors] = {}, p_sum[Vectors] = {}, s_sum[Vectors] = {}, o[Vectors];
#pragma GCC unroll 4
  for (int u = 0; u < Vectors; ++u) o[u] = load(mean + u * kCount);
  for (int64_t r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int u = 0; u < Vectors; ++u) {
      const int64_t at = r * channels + u * kCount;
      prefetch(grad + at + kRowsAhead);
      prefetch(x + at + kRowsAhead);
      Vector<Acc> g = load_lanes(grad + at, lanes);
      if (mask != nullptr) {
        g = keep<Acc>(g, load_bits<Acc>(mask + r * mask_row + u * kCount / 8));
      }
      const Vector<Acc> d = load_lanes(x + at, lanes) - o[u];
      g_sum[u] += g;
      p_sum[u] += g * d;
      if constexpr (Signs) s_sum[u] += sign_of<Acc>(d);
    }
  }
#pragma GCC unroll 4
  for (int u = 0; u < Vectors; ++u) {
    store_lanes(of_grad + u * kCount, g_sum[u], lanes, false);
    store_lanes(of_product + u * kCount, p_sum[u], lanes, false);
    if constexpr (Signs) store_lanes(of_sign + u * kCount, s_sum[u], lanes, false);
  }
}

template <bool Signs, typename T>
LARGEBATCH_INLINE void rows_gradient_sums(
    const T* grad,
    const T* x,
    const uint8_t* mask,
    int64_t rows,
    int64_t channels,
    int64_t mask_row,
    const Wide<T>* mean,
    Wide<T>* of_grad,
    Wide<T>* of_product,
    Wide<T>* of_sign) {
  using Acc = Wide<T>;
  for_columns<Acc>(
      channels,
      [&](int64_t c) LARGEBATCH_ALWAYS_INLINE {
        column_gradient_sums<Signs, 4>(
            grad + c, x + c, mask == nullptr ? nullptr : mask + c / 8, rows, channels, mask_row,
            All{}, mean + c, of_grad + c, of_product + c, of_sign + c);
      },
      [&](int64_t c, auto lanes) LARGEBATCH_ALWAYS_INLINE {
        column_gradient_sums<Signs, 1>(
            grad + c, x + c, mask == nullptr ? nullptr : mask + c / 8, rows, channels, mask_row,
            lanes, mean + c, of_grad + c, of_product + c, of_sign + c);
      });
}

template <NormPolicy Policy, typename T>
LARGEBATCH_INLINE void rows_gradient(
    const T* grad,
    const T* x,
    const uint8_t* mask,
    T* dx,
    T* dresidual,
    int64_t rows,
    int64_t channels,
    int64_t mask_row,
    const GradientCoefficients<Wide<T>>& by,
    bool stream) {
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t at = r * channels;
    gradient<true, Policy>(
        grad + at, x + at, mask == nullptr ? nullptr : mask + r * mask_row, dx + at,
        dresidual == nullptr ? nullptr : dresidual + at, by, channels, kRowsAhead, stream);
  }
  if (stream) stream_end();
}

}  // namespace largebatch::LARGEBATCH_ISA
