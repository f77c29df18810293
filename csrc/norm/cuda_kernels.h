// CUDA kernels of the batch norm family, included by cuda.cu alone.
//
// The unit of work is eight adjacent values of a row of the layout: one byte of the ReLU's mask, and
// one or two 16-byte accesses where rows are multiples of eight. Sums go from threads (Acc) over
// blocks to parts (double) in an order that the shape alone decides.

#pragma once

#include <cstdint>

#include "norm/cuda.h"
#include "norm/math.h"

namespace largebatch {

constexpr int kThreads = 256;
constexpr int kUnit = 8;

template <typename T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};

template <typename T>
struct alignas(16) Unit {
  T values[kUnit];
};

template <typename T, bool Vector, typename Acc>
__device__ __forceinline__ void load_unit(const T* data, int count, Acc (&values)[kUnit]) {
  if constexpr (Vector) {
    const Unit<T> unit = *reinterpret_cast<const Unit<T>*>(data);
#pragma unroll
    for (int e = 0; e < kUnit; ++e) values[e] = widen(unit.values[e]);
  } else {
#pragma unroll
    for (int e = 0; e < kUnit; ++e) values[e] = e < count ? Acc(widen(data[e])) : Acc(0);
  }
}

template <typename T, bool Vector, typename Acc>
__device__ __forceinline__ void store_unit(T* data, int count, const Acc (&values)[kUnit]) {
  if constexpr (Vector) {
    Unit<T> unit;
#pragma unroll
    for (int e = 0; e < kUnit; ++e) narrow(values[e], unit.values[e]);
    *reinterpret_cast<Unit<T>*>(data) = unit;
  } else {
#pragma unroll
    for (int e = 0; e < kUnit; ++e) {
      if (e < count) narrow(values[e], data[e]);
    }
  }
}

enum class Sums { kMoments, kAbsolute, kGradient };

// What one thread adds up for one channel.
template <typename Acc>
struct Local {
  Acc shift = 0, a = 0, b = 0, c = 0;
  int count = 0;

  template <Sums What>
  __device__ __forceinline__ void add(Acc x, Acc grad, Acc mean) {
    if constexpr (What == Sums::kMoments) {
      // About the thread's first value: float32 loses nothing to a mean far from zero.
      if (count == 0) shift = x;
      const Acc d = x - shift;
      a += d;
      b += d * d;
      ++count;
    } else if constexpr (What == Sums::kAbsolute) {
      const Acc d = x - mean;
      a += d < 0 ? -d : d;
    } else {
      const Acc d = x - mean;
      a += grad;
      b += grad * d;
      c += Acc(d > 0) - Acc(d < 0);
    }
  }

  // The sums as double; moments become those about `origin`, the same for all threads.
  template <Sums What>
  __device__ __forceinline__ void finish(double origin, double (&out)[3]) const {
    out[0] = a;
    out[1] = b;
    out[2] = c;
    if constexpr (What == Sums::kMoments) {
      const double n = count;
      out[0] = count == 0 ? 0.0 : n * (double(shift) - origin) + a;
      out[1] = count == 0 ? 0.0 : b - double(a) * a / n + out[0] * out[0] / n;
    }
  }
};

template <Sums What>
constexpr int kOutputs = What == Sums::kMoments ? 2 : What == Sums::kAbsolute ? 1 : 3;

// Where the first value of a channel in a ghost is.
__device__ __forceinline__ int64_t origin_of(const NormLayout& at, int64_t ghost, int64_t c) {
  const int64_t first = at.first(ghost);
  return at.planar ? (first * at.channels + c) * at.length : first * at.length * at.channels + c;
}

// How the rows of a ghost are cut for summing; a function of the shape alone.
struct Parts {
  int parts;     // along samples (planar) or rows
  int lanes;     // threads along channels (rows layout): a power of two
  int tiles;     // blocks along channels
};

// partial[(output * parts + part) * ghosts * channels + ghost * channels + channel]
template <typename T, Sums What, bool Planar, bool Vector>
__global__ void __launch_bounds__(kThreads) sum_kernel(
    const NormLayout at,
    const Parts cut,
    const T* const x,
    const T* const grad,
    const uint8_t* const mask,
    const typename Accumulate<T>::type* const means,
    double* const partial) {
  using Acc = typename Accumulate<T>::type;
  constexpr int kSets = Planar ? 1 : kUnit;
  __shared__ double shared[kThreads];
  const int part = static_cast<int>(blockIdx.x % cut.parts);
  const int64_t block = blockIdx.x / cut.parts;
  const int64_t ghost = block / cut.tiles, tile = block % cut.tiles;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t all = at.ghosts() * at.channels, row_length = at.row_length();
  const auto units = static_cast<uint32_t>((row_length + kUnit - 1) / kUnit);
  const int64_t mask_row = at.mask_row();

  Local<Acc> local[kSets];
  Acc mean[kSets] = {};
  Acc values[kUnit], grads[kUnit] = {};
  const auto take = [&](int64_t row, uint32_t unit) {
    const int64_t at_value = row * row_length + int64_t(unit) * kUnit;
    const int count = static_cast<int>(min(int64_t(kUnit), row_length - int64_t(unit) * kUnit));
    load_unit<T, Vector>(x + at_value, count, values);
    if constexpr (What == Sums::kGradient) {
      load_unit<T, Vector>(grad + at_value, count, grads);
      if (mask != nullptr) {
        const int bits = mask[row * mask_row + unit];
#pragma unroll
        for (int e = 0; e < kUnit; ++e) grads[e] = (bits >> e & 1) ? grads[e] : Acc(0);
      }
    }
#pragma unroll
    for (int e = 0; e < kUnit; ++e) {
      const int set = Planar ? 0 : e;
      if (Vector || e < count) local[set].template add<What>(values[e], grads[e], mean[set]);
    }
  };

  if constexpr (Planar) {
    if (means != nullptr) mean[0] = means[ghost * at.channels + tile];
    const int64_t samples = at.size(ghost), per_part = (samples + cut.parts - 1) / cut.parts;
    const int64_t begin = part * per_part, end = min(samples, begin + per_part);
    const auto total = static_cast<uint32_t>(end > begin ? (end - begin) * units : 0);
    for (uint32_t i = thread; i < total; i += kThreads) {
      take((at.first(ghost) + begin + i / units) * at.channels + tile, i % units);
    }
    double out[3];
    const double origin = widen(x[origin_of(at, ghost, tile)]);
    local[0].template finish<What>(origin, out);
    for (int output = 0; output < kOutputs<What>; ++output) {
      shared[thread] = out[output];
      __syncthreads();
      for (int half = kThreads / 2; half > 0; half /= 2) {
        if (thread < half) shared[thread] += shared[thread + half];
        __syncthreads();
      }
      if (thread == 0) {
        partial[(int64_t(output) * cut.parts + part) * all + ghost * at.channels + tile] =
            shared[0];
      }
      __syncthreads();
    }
  } else {
    const int lane = thread % cut.lanes, line = thread / cut.lanes, lines = kThreads / cut.lanes;
    const int64_t unit = tile * cut.lanes + lane;
    const bool active = unit < units;
    const int64_t first_channel = unit * kUnit;
    if (active && means != nullptr) {
      for (int e = 0; e < kUnit; ++e) {
        if (first_channel + e < at.channels) {
          mean[e] = means[ghost * at.channels + first_channel + e];
        }
      }
    }
    const int64_t rows = at.values(ghost), per_part = (rows + cut.parts - 1) / cut.parts;
    const int64_t begin = part * per_part, end = min(rows, begin + per_part);
    if (active) {
      for (int64_t r = begin + line; r < end; r += lines) {
        take(at.first(ghost) * at.length + r, static_cast<uint32_t>(unit));
      }
    }
#pragma unroll
    for (int e = 0; e < kUnit; ++e) {
      const int64_t c = first_channel + e;
      const bool real = active && c < at.channels;
      double out[3];
      const double origin = real ? double(widen(x[origin_of(at, ghost, c)])) : 0.0;
      local[e].template finish<What>(origin, out);
      for (int output = 0; output < kOutputs<What>; ++output) {
        shared[thread] = out[output];
        __syncthreads();
        for (int half = lines / 2; half > 0; half /= 2) {
          if (line < half) shared[thread] += shared[thread + half * cut.lanes];
          __syncthreads();
        }
        if (line == 0 && real) {
          partial[(int64_t(output) * cut.parts + part) * all + ghost * at.channels + c] =
              shared[thread];
        }
        __syncthreads();
      }
    }
  }
}

__device__ __forceinline__ double sum_of_parts(
    const double* partial, int parts, int output, int64_t all, int64_t index) {
  double sum = 0;
  for (int part = 0; part < parts; ++part) {
    sum += partial[(int64_t(output) * parts + part) * all + index];
  }
  return sum;
}

// One thread a channel of a ghost: mean and variance from moments, or `means` and the spread of L1.
template <typename T, Sums What>
__global__ void __launch_bounds__(kThreads) finish_kernel(
    const NormLayout at,
    const int parts,
    const T* const x,
    const typename Accumulate<T>::type* const means,
    const double* const partial,
    typename Accumulate<T>::type* const statistics) {
  using Acc = typename Accumulate<T>::type;
  const int64_t all = at.ghosts() * at.channels;
  const int64_t index = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= all) return;
  const int64_t ghost = index / at.channels;
  const double n = static_cast<double>(at.values(ghost));
  const double offset = sum_of_parts(partial, parts, 0, all, index) / n;
  if constexpr (What == Sums::kMoments) {
    const double origin = widen(x[origin_of(at, ghost, index % at.channels)]);
    const double variance = sum_of_parts(partial, parts, 1, all, index) / n - offset * offset;
    statistics[index] = static_cast<Acc>(origin + offset);
    statistics[all + index] = static_cast<Acc>(variance < 0 ? 0.0 : variance);
  } else {
    statistics[index] = means[index];
    statistics[all + index] = static_cast<Acc>(offset);
  }
}

// One thread a channel: what its gradient needs, from the parts and the counts of top-k.
template <typename Acc>
__global__ void __launch_bounds__(kThreads) finish_gradient_sums_kernel(
    const NormLayout at,
    const NormPolicy policy,
    const int parts,
    const double* const partial,
    const double* const counts,
    Acc* const sums) {
  const int64_t all = at.ghosts() * at.channels;
  const int64_t index = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= all) return;
  sums[index] = static_cast<Acc>(sum_of_parts(partial, parts, 0, all, index));
  sums[all + index] = static_cast<Acc>(sum_of_parts(partial, parts, 1, all, index));
  if (policy == NormPolicy::kL1) {
    sums[2 * all + index] = static_cast<Acc>(sum_of_parts(partial, parts, 2, all, index));
  } else if (policy == NormPolicy::kTopK) {
    for (int row = 0; row < 4; ++row) {
      sums[(2 + row) * all + index] = static_cast<Acc>(counts[row * all + index]);
    }
  }
}

__device__ __forceinline__ unsigned int bits_of(float value) { return __float_as_uint(value); }
__device__ __forceinline__ unsigned long long bits_of(double value) {
  return static_cast<unsigned long long>(__double_as_longlong(value));
}
__device__ __forceinline__ float value_of(unsigned int bits) { return __uint_as_float(bits); }
__device__ __forceinline__ double value_of(unsigned long long bits) {
  return __longlong_as_double(static_cast<long long>(bits));
}

// Where value i of a channel of a ghost is.
__device__ __forceinline__ int64_t place_of(
    const NormLayout& at, int64_t ghost, int64_t c, uint32_t i) {
  if (!at.planar) return (at.first(ghost) * at.length + i) * at.channels + c;
  const auto length = static_cast<uint32_t>(at.length);
  return ((at.first(ghost) + i / length) * at.channels + c) * at.length + i % length;
}

// Adds `value` over the block; the sum is in shared[0] for all threads.
__device__ __forceinline__ double sum_over_block(double* shared, double value) {
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();
  shared[thread] = value;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (thread < half) shared[thread] += shared[thread + half];
    __syncthreads();
  }
  return shared[0];
}

// One block a channel of a ghost: the k-th largest deviation by its bits, eight at a time from the
// top (the bits of positive floating-point numbers are in the order of the numbers), then the mean.
template <typename T>
__global__ void __launch_bounds__(kThreads) top_kernel(
    const NormLayout at,
    const int64_t top,
    const T* const x,
    typename Accumulate<T>::type* const statistics) {
  using Acc = typename Accumulate<T>::type;
  using Bits = decltype(bits_of(Acc(0)));
  __shared__ double shared[kThreads];
  __shared__ unsigned int histogram[256];
  __shared__ unsigned int chosen, left;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t all = at.ghosts() * at.channels, index = blockIdx.x;
  const int64_t ghost = index / at.channels, c = index % at.channels;
  const auto n = static_cast<uint32_t>(at.values(ghost));
  const auto k = static_cast<unsigned int>(min(top, int64_t(n)));
  const Acc mean = statistics[index];
  const auto size_of = [&](uint32_t i) {
    const Acc d = Acc(widen(x[place_of(at, ghost, c, i)])) - mean;
    return d < 0 ? -d : d;
  };
  Bits prefix = 0, known = 0;
  if (thread == 0) left = k;
  for (int shift = int(sizeof(Bits)) * 8 - 8; shift >= 0; shift -= 8) {
    for (int digit = thread; digit < 256; digit += kThreads) histogram[digit] = 0;
    __syncthreads();
    for (uint32_t i = thread; i < n; i += kThreads) {
      const Bits bits = bits_of(size_of(i));
      if ((bits & known) == prefix) atomicAdd(&histogram[(bits >> shift) & 255], 1u);
    }
    __syncthreads();
    if (thread == 0) {
      unsigned int digit = 255;
      while (digit > 0 && histogram[digit] < left) left -= histogram[digit--];
      chosen = digit;
    }
    __syncthreads();
    prefix |= Bits(chosen) << shift;
    known |= Bits(255) << shift;
  }
  const Acc kth = value_of(prefix);
  double above = 0;
  for (uint32_t i = thread; i < n; i += kThreads) {
    const Acc size = size_of(i);
    if (bits_of(size) > prefix) above += size;
  }
  above = sum_over_block(shared, above);
  if (thread == 0) {
    statistics[all + index] =
        static_cast<Acc>((above + double(left) * kth) / static_cast<double>(k));
    statistics[2 * all + index] = kth;
  }
}

// One thread a channel of a ghost: mean, scale, bias.
template <typename Acc>
__global__ void __launch_bounds__(kThreads) coefficient_kernel(
    const NormLayout at,
    const NormPolicy policy,
    const double eps,
    const Acc* const statistics,
    const Acc* const weight,
    const Acc* const bias,
    Acc* const coefficients) {
  const int64_t all = at.ghosts() * at.channels;
  const int64_t index = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= all) return;
  const int64_t c = index % at.channels, n = at.values(index / at.channels);
  const double r =
      inverse_scale(policy, statistics[all + index], norm_constant(policy, n), eps);
  coefficients[index] = statistics[index];
  coefficients[all + index] = static_cast<Acc>(weight == nullptr ? r : r * weight[c]);
  coefficients[2 * all + index] = bias == nullptr ? Acc(0) : bias[c];
}

// The eight values, or fewer, that a thread works on in the element-wise kernels.
struct Spot {
  int64_t value, channel;  // of the first value; `channel` counts ghosts too
  int count;

  __device__ __forceinline__ Spot(const NormLayout& at, uint32_t row, uint32_t byte) {
    const auto inner = static_cast<uint32_t>(at.planar ? at.channels : at.length);
    const int64_t ghost = at.ghost_of(row / inner), row_length = at.row_length();
    value = row * row_length + int64_t(byte) * kUnit;
    channel = ghost * at.channels + (at.planar ? row % inner : int64_t(byte) * kUnit);
    const int64_t left = row_length - int64_t(byte) * kUnit;
    count = static_cast<int>(left < kUnit ? (left > 0 ? left : 0) : kUnit);
  }
};

template <bool Planar, typename Acc>
__device__ __forceinline__ void load_coefficients(
    const Acc* data, int count, Acc (&values)[kUnit]) {
#pragma unroll
  for (int e = 0; e < kUnit; ++e) {
    values[e] = Planar ? data[0] : (e < count ? data[e] : Acc(0));
  }
}

template <typename T, bool Planar, bool Vector>
__global__ void __launch_bounds__(kThreads) normalize_kernel(
    const NormLayout at,
    const T* const x,
    const T* const residual,
    const typename Accumulate<T>::type* const coefficients,
    T* const y,
    uint8_t* const mask) {
  using Acc = typename Accumulate<T>::type;
  const int64_t all = at.ghosts() * at.channels;
  const auto mask_row = static_cast<uint32_t>(at.mask_row());
  const auto total = static_cast<uint32_t>(at.mask_rows() * mask_row);
  for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < total; i += gridDim.x * kThreads) {
    const Spot spot(at, i / mask_row, i % mask_row);
    if (spot.count == 0) {
      if (mask != nullptr) mask[i] = 0;
      continue;
    }
    Acc values[kUnit], mean[kUnit], scale[kUnit], bias[kUnit];
    load_unit<T, Vector>(x + spot.value, spot.count, values);
    load_coefficients<Planar>(coefficients + spot.channel, spot.count, mean);
    load_coefficients<Planar>(coefficients + all + spot.channel, spot.count, scale);
    load_coefficients<Planar>(coefficients + 2 * all + spot.channel, spot.count, bias);
#pragma unroll
    for (int e = 0; e < kUnit; ++e) values[e] = (values[e] - mean[e]) * scale[e] + bias[e];
    if (residual != nullptr) {
      Acc more[kUnit];
      load_unit<T, Vector>(residual + spot.value, spot.count, more);
#pragma unroll
      for (int e = 0; e < kUnit; ++e) values[e] += more[e];
    }
    if (mask != nullptr) {
      int bits = 0;
#pragma unroll
      for (int e = 0; e < kUnit; ++e) {
        const bool pass = !(values[e] <= 0);  // a NaN passes, as in torch
        bits |= int(pass && e < spot.count) << e;
        values[e] = pass ? values[e] : Acc(0);
      }
      mask[i] = static_cast<uint8_t>(bits);
    }
    store_unit<T, Vector>(y + spot.value, spot.count, values);
  }
}

// One block a channel of a ghost: how many deviations lie above the k-th largest and at it, and the
// sums of their signs, (4, ghosts, channels).
template <typename T>
__global__ void __launch_bounds__(kThreads) count_top_kernel(
    const NormLayout at,
    const T* const x,
    const typename Accumulate<T>::type* const statistics,
    double* const counts) {
  using Acc = typename Accumulate<T>::type;
  __shared__ double shared[kThreads];
  const int64_t all = at.ghosts() * at.channels, index = blockIdx.x;
  const int64_t ghost = index / at.channels, c = index % at.channels;
  const auto n = static_cast<uint32_t>(at.values(ghost));
  const Acc mean = statistics[index], kth = statistics[2 * all + index];
  double above = 0, equal = 0, above_sign = 0, equal_sign = 0;
  for (uint32_t i = threadIdx.x; i < n; i += kThreads) {
    const Acc d = Acc(widen(x[place_of(at, ghost, c, i)])) - mean;
    const Acc size = d < 0 ? -d : d;
    const double sign = double(d > 0) - double(d < 0);
    above += size > kth;
    above_sign += size > kth ? sign : 0.0;
    equal += size == kth;
    equal_sign += size == kth ? sign : 0.0;
  }
  above = sum_over_block(shared, above);
  equal = sum_over_block(shared, equal);
  above_sign = sum_over_block(shared, above_sign);
  equal_sign = sum_over_block(shared, equal_sign);
  if (threadIdx.x == 0) {
    counts[index] = above;
    counts[all + index] = equal;
    counts[2 * all + index] = above_sign;
    counts[3 * all + index] = equal_sign;
  }
}

// One thread a channel of a ghost: the terms of the gradient, and the sums for weight and bias.
template <typename Acc>
__global__ void __launch_bounds__(kThreads) gradient_term_kernel(
    const NormLayout at,
    const NormPolicy policy,
    const int64_t top,
    const double eps,
    const int parts,
    const double* const partial,
    const double* const counts,
    const Acc* const statistics,
    const Acc* const weight,
    Acc* const coefficients,
    Acc* const sums) {
  const int64_t all = at.ghosts() * at.channels;
  const int64_t index = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= all) return;
  const int64_t n = at.values(index / at.channels);
  const double constant = norm_constant(policy, n);
  const double r = inverse_scale(policy, statistics[all + index], constant, eps);
  GradientSums of{
      sum_of_parts(partial, parts, 0, all, index), sum_of_parts(partial, parts, 1, all, index),
      sum_of_parts(partial, parts, 2, all, index)};
  const int64_t k = top < n ? top : n;
  Acc share = 0;
  if (policy == NormPolicy::kTopK) {
    share = static_cast<Acc>(tie_share(k, counts[index], counts[all + index]));
    of.sign = counts[2 * all + index] + double(share) * counts[3 * all + index];
  }
  const double w = weight == nullptr ? 1.0 : double(weight[index % at.channels]);
  const auto terms = gradient_terms<Acc>(policy, of, n, k, r, constant, w);
  coefficients[index] = terms.grad;
  coefficients[all + index] = terms.constant;
  coefficients[2 * all + index] = terms.spread;
  if (policy == NormPolicy::kTopK) {
    coefficients[3 * all + index] = statistics[2 * all + index];
    coefficients[4 * all + index] = share;
  }
  sums[index] = static_cast<Acc>(of.grad_deviation * r);
  sums[all + index] = static_cast<Acc>(of.grad);
}

template <typename T, NormPolicy Policy, bool Planar, bool Vector>
__global__ void __launch_bounds__(kThreads) gradient_kernel(
    const NormLayout at,
    const T* const grad,
    const T* const x,
    const uint8_t* const mask,
    const typename Accumulate<T>::type* const means,
    const typename Accumulate<T>::type* const coefficients,
    T* const dx,
    T* const dresidual) {
  using Acc = typename Accumulate<T>::type;
  const int64_t all = at.ghosts() * at.channels;
  const auto mask_row = static_cast<uint32_t>(at.mask_row());
  const auto total = static_cast<uint32_t>(at.mask_rows() * mask_row);
  for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < total; i += gridDim.x * kThreads) {
    const Spot spot(at, i / mask_row, i % mask_row);
    if (spot.count == 0) continue;
    Acc g[kUnit], d[kUnit], mean[kUnit], of_grad[kUnit], constant[kUnit], spread[kUnit];
    load_unit<T, Vector>(grad + spot.value, spot.count, g);
    load_unit<T, Vector>(x + spot.value, spot.count, d);
    load_coefficients<Planar>(means + spot.channel, spot.count, mean);
    load_coefficients<Planar>(coefficients + spot.channel, spot.count, of_grad);
    load_coefficients<Planar>(coefficients + all + spot.channel, spot.count, constant);
    load_coefficients<Planar>(coefficients + 2 * all + spot.channel, spot.count, spread);
    Acc kth[kUnit] = {}, share[kUnit] = {};
    if constexpr (Policy == NormPolicy::kTopK) {
      load_coefficients<Planar>(coefficients + 3 * all + spot.channel, spot.count, kth);
      load_coefficients<Planar>(coefficients + 4 * all + spot.channel, spot.count, share);
    }
    const int bits = mask == nullptr ? 255 : mask[i];
#pragma unroll
    for (int e = 0; e < kUnit; ++e) {
      g[e] = (bits >> e & 1) ? g[e] : Acc(0);
      d[e] -= mean[e];
      if constexpr (Policy != NormPolicy::kL2) {
        const Acc size = d[e] < 0 ? -d[e] : d[e];
        Acc part = 1;
        if constexpr (Policy == NormPolicy::kTopK) {
          part = size > kth[e] ? Acc(1) : (size == kth[e] ? share[e] : Acc(0));
        }
        d[e] = (Acc(d[e] > 0) - Acc(d[e] < 0)) * part;
      }
      d[e] = of_grad[e] * g[e] + (constant[e] + spread[e] * d[e]);
    }
    store_unit<T, Vector>(dx + spot.value, spot.count, d);
    if (dresidual != nullptr) store_unit<T, Vector>(dresidual + spot.value, spot.count, g);
  }
}

}  // namespace largebatch
