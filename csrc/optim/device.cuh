// What the CUDA kernels of the optimizer family share: typed chunks in vectors of 16 bytes, and SGD's
// step on a chunk.

#pragma once

#include <algorithm>
#include <type_traits>

#include "common/block_sum.cuh"
#include "common/launch.cuh"
#include "common/widen.cuh"
#include "optim/cuda.h"
#include "optim/heuristics.h"
#include "optim/math.h"

namespace largebatch {
namespace {

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

__device__ __forceinline__ double read_or_one(DeviceScalar scalar) {
  return scalar.data != nullptr ? read(scalar) : 1.0;
}

__device__ __forceinline__ bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % kVectorBytes == 0;
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
  constexpr int kVector = kVectorBytes / static_cast<int>(sizeof(T));
  int done = 0;
  if (aligned) {
    done = length - length % kVector;
    for (int i = threadIdx.x * kVector; i < done; i += kThreads * kVector) {
      body(Count<kVector>(), i);
    }
  }
#pragma unroll 1  // else the compiler spends the registers on this loop
  for (int i = done + threadIdx.x; i < length; i += kThreads) body(Count<1>(), i);
}

template <int Lanes, typename T>
__device__ __forceinline__ Pack<T, Lanes> load(const T* from) {
  if constexpr (Lanes == 1) {
    return {{*from}};
  } else {
    return *reinterpret_cast<const Pack<T, Lanes>*>(from);
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

// Where the full-precision values of a chunk are: in the master, or in the parameter.
template <bool Master, typename T, typename Moment>
__device__ __forceinline__ auto* weights_of(const Arrays<T, Moment>& arrays) {
  if constexpr (Master) {
    return arrays.master;
  } else {
    return arrays.param;
  }
}

// Calls `body` with whether the chunk has a master, known to the compiler: a branch around a load
// would make the loads after it wait for the first one's values.
template <typename T, typename Moment, class Body>
__device__ __forceinline__ void with_master(const Arrays<T, Moment>& arrays, const Body& body) {
  if constexpr (std::is_same<T, typename Arrays<T, Moment>::Acc>::value) {
    body(std::false_type());
  } else if (arrays.master != nullptr) {
    body(std::true_type());
  } else {
    body(std::false_type());
  }
}

template <typename From, int Lanes>
__device__ __forceinline__ auto widened(const Pack<From, Lanes>& from) {
  Pack<typename Accumulate<From>::type, Lanes> to;
#pragma unroll
  for (int lane = 0; lane < Lanes; ++lane) to.values[lane] = widen(from.values[lane]);
  return to;
}

template <bool Master, int Lanes, typename T, typename Moment, typename Acc>
__device__ __forceinline__ void store_weights(
    const Arrays<T, Moment>& arrays, int i, const Pack<Acc, Lanes>& weights) {
  if constexpr (Master) store<Lanes>(arrays.master + i, weights);
  Pack<T, Lanes> stored;
#pragma unroll
  for (int lane = 0; lane < Lanes; ++lane) narrow(weights.values[lane], stored.values[lane]);
  store<Lanes>(arrays.param + i, stored);
}

// One step of SGD on a chunk. All loads of a round come before the first conversion.
template <bool Momentum, typename T, typename Moment, typename Acc>
__device__ __forceinline__ void sgd_loop(
    const Arrays<T, Moment>& arrays, int length, Acc factor, const SgdScalars<Acc>& scalars) {
  with_master(arrays, [&](auto has_master) {
    constexpr bool kMaster = decltype(has_master)::value;
    const auto* const from = weights_of<kMaster>(arrays);
    for_elements<T>(length, arrays.aligned(), [&](auto count, int i) {
      constexpr int kLanes = decltype(count)::value;
      const auto stored = load<kLanes>(from + i);
      const auto grads = load<kLanes>(arrays.grad + i);
      Pack<Moment, kLanes> buffer = {};
      if constexpr (Momentum) buffer = load<kLanes>(arrays.first + i);
      Pack<Acc, kLanes> weights = widened(stored);
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) {
        Acc velocity = Momentum ? widen(buffer.values[lane]) : Acc(0);
        sgd_element<Momentum>(
            weights.values[lane], Acc(widen(grads.values[lane])), velocity, factor, scalars);
        narrow(velocity, buffer.values[lane]);
      }
      if constexpr (Momentum) store<kLanes>(arrays.first + i, buffer);
      store_weights<kMaster>(arrays, i, weights);
    });
  });
}

// Without momentum there is no first moment.
template <typename T, typename Moment, typename Acc>
__device__ __forceinline__ void sgd_chunk(
    const Arrays<T, Moment>& arrays, int length, Acc factor, const SgdScalars<Acc>& scalars) {
  if (arrays.first != nullptr) {
    sgd_loop<true>(arrays, length, factor, scalars);
  } else {
    sgd_loop<false>(arrays, length, factor, scalars);
  }
}

}  // namespace
}  // namespace largebatch
