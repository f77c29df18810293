// CUDA kernels of top-k: the k-th largest deviation, and what lies above and at it.

#pragma once

#include "norm/cuda_sums.h"

namespace largebatch {

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

// Adds `value` over the block, for thread 0, which alone touches shared[0] at the end: a next call
// may follow at once.
__device__ __forceinline__ double sum_over_block(double* shared, double value) {
  const int thread = static_cast<int>(threadIdx.x);
  shared[thread] = value;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (thread < half) shared[thread] += shared[thread + half];
    __syncthreads();
  }
  return thread == 0 ? shared[0] : 0.0;
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
    return fabs(Acc(widen(x[place_of(at, ghost, c, i)])) - mean);  // clears the sign of -0 too
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

}  // namespace largebatch
