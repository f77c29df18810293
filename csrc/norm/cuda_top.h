// Top-k for k of at least 2: the k-th largest deviation, and the mean of the k largest, once the
// mean is there. For k = 1 the sums know it (Sums::kExtremes).

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

// One warp: the digit of the number that `left` numbers are not below, from a histogram of digits;
// `left` becomes its place among those with the same digit.
__device__ __forceinline__ void choose_digit(
    const unsigned int (&histogram)[256], unsigned int* left, unsigned int* digit) {
  const int lane = static_cast<int>(threadIdx.x) % 32, highest = 255 - 8 * lane;
  const unsigned int wanted = *left;
  unsigned int own = 0;
  for (int j = 0; j < 8; ++j) own += histogram[highest - j];
  unsigned int sum = own;  // of this lane and those before it, whose digits are higher
  for (int step = 1; step < 32; step *= 2) {
    const unsigned int before = __shfl_up_sync(0xffffffffu, sum, step);
    if (lane >= step) sum += before;
  }
  if (sum - own >= wanted || sum < wanted) return;
  unsigned int rest = wanted - (sum - own);
  int one = highest;
  while (histogram[one] < rest) rest -= histogram[one--];
  *left = rest;
  *digit = static_cast<unsigned int>(one);
}

// Channels of a block.
template <bool Planar>
constexpr int kTopChannels = Planar ? 1 : kUnit;

// By one block, channels first, first + 1, ... of a ghost: the k-th largest deviation by its bits,
// eight at a time from the top (the bits of positive floating-point numbers are in the order of the
// numbers), then the mean.
template <typename T, bool Planar, Access By>
__device__ __forceinline__ void find_top(
    const NormLayout& at,
    const T* x,
    const Finish<typename Accumulate<T>::type>& finish,
    int64_t ghost,
    int64_t first,
    SumMemory& shared) {
  using Acc = typename Accumulate<T>::type;
  using Bits = decltype(bits_of(Acc(0)));
  constexpr int kChannels = kTopChannels<Planar>;
  __shared__ unsigned int histogram[kChannels][256];
  __shared__ unsigned int chosen[kChannels], left[kChannels];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t all = at.ghosts() * at.channels;
  const auto n = static_cast<uint32_t>(at.values(ghost));
  const auto k = static_cast<unsigned int>(min(finish.top, int64_t(n)));
  const int count = static_cast<int>(min(int64_t(kChannels), at.channels - first));
  Acc mean[kChannels];
#pragma unroll
  for (int e = 0; e < kChannels; ++e) {
    mean[e] = e < count ? finish.statistics[ghost * at.channels + first + e] : Acc(0);
  }
  const auto length = static_cast<uint32_t>(at.length);
  const int64_t data = origin_of(at, ghost, first);
  // Calls `body(e, size)` with each deviation of channel `first` + e that is this thread's.
  const auto for_each = [&](const auto& body) {
    constexpr uint32_t kBatch = Planar ? 8 : By == Access::kValues ? 1 : 4;
    for (uint32_t i = thread; i < n; i += kBatch * kThreads) {
      Unit<T> in[kBatch];
#pragma unroll
      for (uint32_t b = 0; b < kBatch; ++b) {
        const uint32_t one = i + b * kThreads;
        if (one >= n || one < i) continue;
        if constexpr (Planar) {
          in[b].values[0] = x[data + (one / length) * (at.channels * at.length) + one % length];
        } else {
          in[b] = load_unit<By>(x, index_of<By>(data + one * at.channels), count);
        }
      }
#pragma unroll
      for (uint32_t b = 0; b < kBatch; ++b) {
        if (i + b * kThreads >= n || i + b * kThreads < i) continue;
#pragma unroll
        for (int e = 0; e < kChannels; ++e) {
          // fabs clears the sign of -0 too
          if (e < count) body(e, fabs(Acc(widen(in[b].values[e])) - mean[e]));
        }
      }
      if (i + kBatch * kThreads < i) break;
    }
  };

  Bits prefix[kChannels] = {}, known = 0;
  if (thread < kChannels) left[thread] = k;
  for (int shift = int(sizeof(Bits)) * 8 - 8; shift >= 0; shift -= 8) {
    for (int digit = thread; digit < 256 * kChannels; digit += kThreads) {
      histogram[digit / 256][digit % 256] = 0;
    }
    __syncthreads();
    for_each([&](int e, Acc size) {
      const Bits bits = bits_of(size);
      if ((bits & known) == prefix[e]) atomicAdd(&histogram[e][(bits >> shift) & 255], 1u);
    });
    __syncthreads();
    if (thread / 32 < count) {
      choose_digit(histogram[thread / 32], &left[thread / 32], &chosen[thread / 32]);
    }
    __syncthreads();
#pragma unroll
    for (int e = 0; e < kChannels; ++e) {
      if (e < count) prefix[e] |= Bits(chosen[e]) << shift;
    }
    known |= Bits(255) << shift;
  }
  double above[kUnit][1] = {};
  for_each([&](int e, Acc size) {
    if (bits_of(size) > prefix[e]) above[e][0] += size;
  });
  const double sum = sum_lines<Sums::kAbsolute>(shared, above, 0, 1);
  const int e = thread / 32;
  if (thread % 32 != 0 || e >= count) return;
  Acc kth = 0;
#pragma unroll
  for (int each = 0; each < kChannels; ++each) {
    if (each == e) kth = value_of(prefix[each]);
  }
  const int64_t index = ghost * at.channels + first + e;
  const Acc spread = static_cast<Acc>((sum + double(left[e]) * kth) / static_cast<double>(k));
  finish.statistics[all + index] = spread;
  finish.statistics[2 * all + index] = kth;
  finish_forward(at, finish, ghost, first + e, finish.statistics[index], spread);
}

}  // namespace largebatch
