// How blocks of one launch wait for others. CUDA promises that a block which runs goes on running,
// but not that another one starts meanwhile. So a block may wait for those that surely run: for all
// of a cooperative launch (cuda_slab.h), and in any launch for blocks that have started before it,
// if these wait for nobody (cuda_spread.h), as in the scans with look-back of Merrill and Garland,
// "Single-pass Parallel Prefix Scan with Decoupled Look-back", 2016.

#pragma once

#include "norm/cuda_units.h"

namespace largebatch {

// The number of blocks that have taken one before; in all threads of a block, once. `next` is 0
// before a launch.
__device__ __forceinline__ unsigned int take_number(unsigned int* next) {
  __shared__ unsigned int number;
  if (threadIdx.x == 0) number = atomicAdd(next, 1u);
  __syncthreads();
  return number;
}

// Adds one to `count`, once all that the block has written can be read by others.
__device__ __forceinline__ void raise(unsigned int* count) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(count, 1u);
}

// Waits until `count` has come to `wanted`; what blocks have written before they raised it can be
// read after. Should that not happen for seconds, the launch ends in an error.
__device__ __forceinline__ void wait_until(unsigned int* count, int wanted) {
  constexpr int kPatience = 1 << 24;
  if (threadIdx.x == 0) {
    int tries = 0;
    while (atomicAdd(count, 0u) < static_cast<unsigned int>(wanted)) {
      if (++tries == kPatience) __trap();
      __nanosleep(100);
    }
  }
  __syncthreads();
  __threadfence();
}

}  // namespace largebatch
