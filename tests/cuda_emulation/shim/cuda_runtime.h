// CUDA on the CPU, for tests: the names that kernels use. machine.h says how they run.

#pragma once

#include <math.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "machine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#if defined(__SANITIZE_THREAD__)  // variables would be some that fibers share
#define threadIdx (emulation::thread_index())
#define blockIdx (emulation::block_index())
#else
#define threadIdx (emulation::now_thread)
#define blockIdx (emulation::now_block)
#endif
#define blockDim (emulation::block_size)
#define gridDim (emulation::grid_size)

#define __syncthreads() emulation::barrier(__FILE__, __LINE__)
#define __syncwarp(...) \
  emulation::Exchange(emulation::mask_of(__VA_ARGS__), 0, __FILE__, __LINE__)
#define __shfl_sync(mask, value, from) \
  emulation::shuffle(mask, value, [&](int) { return int(from); }, __FILE__, __LINE__)
#define __shfl_down_sync(mask, value, delta) \
  emulation::shuffle(mask, value, [&](int lane) { return lane + int(delta); }, __FILE__, __LINE__)
#define __shfl_up_sync(mask, value, delta) \
  emulation::shuffle(mask, value, [&](int lane) { return lane - int(delta); }, __FILE__, __LINE__)
#define __shfl_xor_sync(mask, value, bits) \
  emulation::shuffle(mask, value, [&](int lane) { return lane ^ int(bits); }, __FILE__, __LINE__)
#define __ballot_sync(mask, predicate) emulation::ballot(mask, predicate, __FILE__, __LINE__)
#define __any_sync(mask, predicate) (__ballot_sync(mask, predicate) != 0)
#define __all_sync(mask, predicate) (__ballot_sync(mask, predicate) == (mask))

// A kernel that waits for another block says so by sleeping; the other blocks run meanwhile.
#define __nanosleep(nanoseconds) emulation::wait(__FILE__, __LINE__)
#define __threadfence() emulation::fence()
#define __trap() emulation::trap(__FILE__, __LINE__)

struct double2 {
  double x, y;
};

using cudaStream_t = void*;

// Memory of the device is the host's.
enum cudaError_t { cudaSuccess, cudaErrorMemoryAllocation };
enum cudaMemcpyKind { cudaMemcpyDefault };
inline cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = std::malloc(bytes > 0 ? bytes : 1);
  return *memory != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "out of memory"; }

template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}

template <typename T>
T atomicAdd(T* to, T value) {
  if constexpr (std::is_integral<T>::value) {
    return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
  } else {
    T old = *to, sum;
    do {
      sum = old + value;
    } while (!__atomic_compare_exchange(to, &old, &sum, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
  }
}

template <typename T>
T atomicExch(T* to, T value) {
  return __atomic_exchange_n(to, value, __ATOMIC_RELAXED);
}

template <typename T>
T __ldcg(const T* from) {
  return *from;
}

inline int cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return 0;
}

namespace emulation {
template <typename To, typename From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
}  // namespace emulation

inline unsigned int __float_as_uint(float value) { return emulation::bits_as<unsigned int>(value); }
inline float __uint_as_float(unsigned int value) { return emulation::bits_as<float>(value); }
inline long long __double_as_longlong(double v) { return emulation::bits_as<long long>(v); }
inline double __longlong_as_double(long long v) { return emulation::bits_as<double>(v); }
