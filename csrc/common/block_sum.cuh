// Sums over the threads of a block, in an order that depends on the block's size alone.

#pragma once

#include <cuda_runtime.h>

namespace largebatch {
namespace {

// Valid in thread 0. Between two calls there is a barrier.
template <int Threads>
__device__ __forceinline__ double block_sum(double value) {
  __shared__ double of_warps[32];
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_down_sync(0xffffffffu, value, offset);
  }
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x < 32) {
    value = threadIdx.x < Threads / 32 ? of_warps[threadIdx.x] : 0.0;
    for (int offset = 16; offset > 0; offset /= 2) {
      value += __shfl_down_sync(0xffffffffu, value, offset);
    }
  }
  return value;
}

// The sums of two numbers a thread.
template <int Threads>
__device__ __forceinline__ double2 block_sums(double first, double second) {
  first = block_sum<Threads>(first);
  __syncthreads();
  return {first, block_sum<Threads>(second)};
}

}  // namespace
}  // namespace largebatch
