// CUDA kernel of the norms whose spread needs the mean: L1's mean deviation, and top-k for k of at
// least 2. One launch does both: the blocks that start first sum for the mean, the others wait for
// that of their channels.

#pragma once

#include "norm/cuda_top.h"
#include "norm/cuda_turns.h"

namespace largebatch {

// Both steps of a call. The spread's sums have counters of their own.
template <typename T>
struct Spread {
  Summed<T> mean, spread;
  unsigned int* next;  // zero: the number of the block that starts next
};

// Blocks that find spreads, after those of the sums.
template <NormPolicy Policy, bool Planar>
__host__ __device__ __forceinline__ int64_t spread_blocks(const NormLayout& at, const Cut& cut) {
  if (Policy == NormPolicy::kL1) return at.ghosts() * cut.tiles * cut.parts;
  const int64_t channels = kTopChannels<Planar>;
  return at.ghosts() * ((at.channels + channels - 1) / channels);
}

template <typename T, Sums What, bool Planar, Access By>
__device__ __forceinline__ bool sum_share(
    const NormLayout& at,
    const Cut& cut,
    const Summed<T>& of,
    unsigned int number,
    SumMemory& shared) {
  if constexpr (Planar) {
    return sum_planar<T, What, By>(at, cut, of, number);
  } else {
    return sum_rows<T, What, By>(at, cut, of, number, shared);
  }
}

template <typename T, NormPolicy Policy>
constexpr int kSpreadResident =
    resident<T>(Policy == NormPolicy::kL1 && sizeof(T) == 2 ? 3 : 2);

template <typename T, NormPolicy Policy, bool Planar, Access By>
__global__ void __launch_bounds__(kThreads, kSpreadResident<T, Policy>) spread_kernel(
    const NormLayout at, const Cut cut, const Spread<T> of) {
  __shared__ double shared[kUnit][kThreads + 1];
  const unsigned int number = take_number(of.next);
  const auto shares = static_cast<unsigned int>(at.ghosts() * cut.tiles * cut.parts);
  if (number < shares) {
    // A tile's counter, once all parts are there, is raised once more when the mean is.
    unsigned int* const count = of.mean.counts + number / cut.parts;
    if (sum_share<T, Sums::kMoments, Planar, By>(at, cut, of.mean, number, shared)) raise(count);
    return;
  }
  // All numbers below `shares` are taken, by blocks that wait for nobody.
  const unsigned int own = number - shares;
  const int wanted = cut.parts > 1 ? cut.parts + 1 : 1;
  if constexpr (Policy == NormPolicy::kL1) {
    wait_until(of.mean.counts + own / cut.parts, wanted);
    sum_share<T, Sums::kAbsolute, Planar, By>(at, cut, of.spread, own, shared);
  } else {
    constexpr int kChannels = kTopChannels<Planar>;
    const int64_t tiles = (at.channels + kChannels - 1) / kChannels;
    const int64_t ghost = own / tiles, first = own % tiles * kChannels;
    const int64_t of_tile = Planar ? kThreads / cut.lanes : kUnit * cut.lanes;
    wait_until(of.mean.counts + ghost * cut.tiles + first / of_tile, wanted);
    find_top<T, Planar, By>(at, of.spread.x, of.spread.finish, ghost, first, shared);
  }
}

}  // namespace largebatch
