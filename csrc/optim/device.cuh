// What the CUDA sources of the optimizer family share: typed chunks in vectors of 16 bytes, block
// sums, and SGD's step on a chunk.

#pragma once

#include <algorithm>
#include <type_traits>

#include "common/launch.cuh"
#include "common/widen.cuh"
#include "optim/cuda.h"
#include "optim/math.h"

namespace largebatch {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kChunk = 8192;  // elements of a block: 8 rounds of 16-byte loads of float32
constexpr int kVectorBytes = 16;

// Aligned to its own size, or to that of the largest access: a lane's pack begins where the one of
// the lane before ends.
template <typename T, int Count>
struct alignas(sizeof(T) * Count < kVectorBytes ? sizeof(T) * Count : kVectorBytes) Pack {
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

// A chunk's arrays, typed. The parameter is read from, and written to, its master where it has one.
template <typename T, typename Moment>
struct Arrays {
  using Acc = typename Accumulate<T>::type;
  T* param;
  const T* grad;
  Moment* first;
  Moment* second;
  Acc* master;

  __device__ Arrays(const DeviceRow& row, int64_t begin) {
    param = static_cast<T*>(row.param) + begin;
    grad = static_cast<const T*>(row.grad) + begin;
    first = row.first ? static_cast<Moment*>(row.first) + begin : nullptr;
    second = row.second ? static_cast<Moment*>(row.second) + begin : nullptr;
    master = row.master ? static_cast<Acc*>(row.master) + begin : nullptr;
  }

  __device__ bool aligned() const {
    return is_aligned(param) && is_aligned(grad) && is_aligned(first) && is_aligned(second) &&
        is_aligned(master);
  }
};

// Calls `body(lanes, offset)` for the elements of a chunk: `lanes` at a time where all arrays are
// aligned, one by one for the rest; `lanes` is a compile-time constant.
template <int Lanes>
struct Count {
  static constexpr int value = Lanes;
};

template <typename T, class Body>
__device__ __forceinline__ void for_elements(int length, bool aligned, const Body& body) {
  constexpr int kVector = kVectorBytes / sizeof(T);
  int done = 0;
  if (aligned) {
    done = length - length % kVector;
    for (int i = threadIdx.x * kVector; i < done; i += kThreads * kVector) {
      body(Count<kVector>(), i);
    }
  }
  for (int i = done + threadIdx.x; i < length; i += kThreads) body(Count<1>(), i);
}

template <int Lanes, typename T>
__device__ __forceinline__ void load(const T* from, Pack<T, Lanes>& to) {
  if constexpr (Lanes == 1) {
    to.values[0] = *from;
  } else {
    to = *reinterpret_cast<const Pack<T, Lanes>*>(from);
  }
}

template <int Lanes, typename T>
__device__ __forceinline__ void store(T* to, const Pack<T, Lanes>& from) {
  if constexpr (Lanes == 1) {
    *to = from.values[0];
  } else {
    *reinterpret_cast<Pack<T, Lanes>*>(to) = from;
  }
}

// Loads `Lanes` full-precision parameters.
template <int Lanes, typename T, typename Moment>
__device__ __forceinline__ auto load_weights(const Arrays<T, Moment>& arrays, int i) {
  using Acc = typename Arrays<T, Moment>::Acc;
  Pack<Acc, Lanes> weights;
  if (arrays.master != nullptr) {
    load<Lanes>(arrays.master + i, weights);
  } else {
    Pack<T, Lanes> stored;
    load<Lanes>(static_cast<const T*>(arrays.param + i), stored);
#pragma unroll
    for (int lane = 0; lane < Lanes; ++lane) weights.values[lane] = widen(stored.values[lane]);
  }
  return weights;
}

template <int Lanes, typename T, typename Moment, typename Acc>
__device__ __forceinline__ void store_weights(
    const Arrays<T, Moment>& arrays, int i, const Pack<Acc, Lanes>& weights) {
  if (arrays.master != nullptr) store<Lanes>(arrays.master + i, weights);
  Pack<T, Lanes> stored;
#pragma unroll
  for (int lane = 0; lane < Lanes; ++lane) narrow(weights.values[lane], stored.values[lane]);
  store<Lanes>(arrays.param + i, stored);
}

// Calls `body` with null pointers of the row's element and moment types.
template <class Body>
__device__ __forceinline__ void with_types(const DeviceRow& row, const Body& body) {
  using Low = __nv_bfloat16*;
  switch (row.element) {
    case Element::kDouble:
      return body(static_cast<double*>(nullptr), static_cast<double*>(nullptr));
    case Element::kFloat:
      return row.low_moments ? body(static_cast<float*>(nullptr), Low())
                             : body(static_cast<float*>(nullptr), static_cast<float*>(nullptr));
    case Element::kHalf:
      return row.low_moments ? body(static_cast<__half*>(nullptr), Low())
                             : body(static_cast<__half*>(nullptr), static_cast<float*>(nullptr));
    default:
      return row.low_moments ? body(Low(), Low()) : body(Low(), static_cast<float*>(nullptr));
  }
}

// One step of SGD on a chunk; without momentum there is no first moment.
template <typename T, typename Moment, typename Acc>
__device__ __forceinline__ void sgd_chunk(
    const Arrays<T, Moment>& arrays, int length, Acc factor, const SgdScalars<Acc>& scalars) {
  for_elements<T>(length, arrays.aligned(), [&](auto count, int i) {
    constexpr int kLanes = decltype(count)::value;
    auto weights = load_weights<kLanes>(arrays, i);
    Pack<T, kLanes> grads;
    load<kLanes>(arrays.grad + i, grads);
    Pack<Moment, kLanes> buffer = {};
    if (arrays.first != nullptr) {
      load<kLanes>(static_cast<const Moment*>(arrays.first + i), buffer);
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) {
        Acc velocity = widen(buffer.values[lane]);
        sgd_element<true>(
            weights.values[lane], Acc(widen(grads.values[lane])), velocity, factor, scalars);
        narrow(velocity, buffer.values[lane]);
      }
      store<kLanes>(arrays.first + i, buffer);
    } else {
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) {
        Acc velocity = 0;
        sgd_element<false>(
            weights.values[lane], Acc(widen(grads.values[lane])), velocity, factor, scalars);
      }
    }
    store_weights<kLanes>(arrays, i, weights);
  });
}

int64_t chunks_of(int64_t length) { return (length + kChunk - 1) / kChunk; }

}  // namespace
}  // namespace largebatch
