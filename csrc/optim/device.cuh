// What the CUDA sources of the optimizer family share: types, vectors of 16 bytes, block sums.

#pragma once

#include <algorithm>

#include "common/widen.cuh"
#include "optim/cuda.h"
#include "optim/math.h"

namespace largebatch {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kChunk = 8192;  // elements of a block: 8 rounds of 16-byte loads of float32
constexpr int kVectorBytes = 16;

template <typename T, int Count>
struct alignas(kVectorBytes) Pack {
  T values[Count];
};

__device__ __forceinline__ double read(DeviceScalar scalar) {
  return scalar.is_double ? *static_cast<const double*>(scalar.data)
                          : static_cast<double>(*static_cast<const float*>(scalar.data));
}

__device__ __forceinline__ bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % kVectorBytes == 0;
}

// The row that a block works on: the last whose first chunk is not after it.
__device__ __forceinline__ int find_row(const int* first_chunk, int count, int chunk) {
  int low = 0, high = count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (first_chunk[middle] <= chunk) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// Adds one number a thread in an order that depends on the block's size alone; valid in thread 0.
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

int64_t chunks_of(int64_t length) { return (length + kChunk - 1) / kChunk; }

const char* last_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace
}  // namespace largebatch
