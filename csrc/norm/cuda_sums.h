// CUDA kernels that add up over the channels of ghost batches; included by cuda.cu alone, as all
// cuda_*.h are.
//
// The unit of work is eight adjacent values of a row of the layout: one byte of the ReLU's mask, and
// one or two 16-byte accesses where rows are multiples of eight. Sums go from threads (Acc) over
// blocks to parts (double) in an order that the shape alone decides.

#pragma once

#include <cstdint>

#include "common/widen.cuh"
#include "norm/cuda.h"
#include "norm/math.h"

namespace largebatch {

constexpr int kThreads = 256;
constexpr int kUnit = 8;

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

// What sums are taken about: a value near the others, but never infinite, for inf - inf is a NaN.
template <typename Acc>
__device__ __forceinline__ Acc shift_by(Acc value) {
  return value - value == 0 ? value : Acc(0);
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
      if (count == 0) shift = shift_by(x);
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
    const double origin = shift_by(widen(x[origin_of(at, ghost, tile)]));
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
      const double origin = real ? double(shift_by(widen(x[origin_of(at, ghost, c)]))) : 0.0;
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
    const double origin = shift_by(widen(x[origin_of(at, ghost, index % at.channels)]));
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

}  // namespace largebatch
