// CUDA kernel of `sum_shards`: every element is read once from each shard, added in float64 (whole
// numbers in their own type) and written once. It waits for memory, not for the additions.

#include "shards/cuda.h"

#include <cstring>
#include <type_traits>

#include "common/block_sum.cuh"
#include "common/dispatch.cuh"
#include "optim/device.cuh"

namespace largebatch {
namespace {

constexpr int kMostBlocks = 1024;  // of a kernel that walks in strides; fixed, so that sums repeat

struct Shards {
  const void* data[kMostShards];
};

template <typename T>
constexpr bool kIsFloating = !std::is_integral<T>::value;

template <typename T>
using Sum = typename std::conditional<kIsFloating<T>, double, T>::type;

template <typename T>
__device__ __forceinline__ Sum<T> shard_value(T value) {
  if constexpr (kIsFloating<T>) {
    return static_cast<double>(widen(value));
  } else {
    return value;
  }
}

template <typename T>
__device__ __forceinline__ void add(Sum<T>& sum, Sum<T> value) {
  if constexpr (std::is_same<T, bool>::value) {
    sum = sum || value;
  } else if constexpr (kIsFloating<T>) {
    sum += value;
  } else {
    using Wrapping = typename std::make_unsigned<T>::type;
    sum = static_cast<T>(static_cast<Wrapping>(sum) + static_cast<Wrapping>(value));
  }
}

template <typename In, typename Out>
__device__ __forceinline__ Out result(Sum<In> sum, int64_t divisor) {
  Out out;
  if constexpr (std::is_same<In, bool>::value) {
    out = sum;
  } else if constexpr (!kIsFloating<In>) {
    out = divisor == 1 ? sum : static_cast<In>(sum / divisor);
  } else {
    const double quotient = divisor == 1 ? sum : sum / static_cast<double>(divisor);
    if constexpr (std::is_same<Out, double>::value) {
      out = quotient;
    } else {
      narrow(static_cast<float>(quotient), out);
    }
  }
  return out;
}

template <typename In, typename Out, bool Squares>
__global__ void __launch_bounds__(kThreads) sum_shards_kernel(
    const __grid_constant__ Shards shards, const int count, Out* const out, const int64_t length,
    const int64_t divisor, const bool aligned, double* const partial) {
  constexpr int kVector = kVectorBytes / (sizeof(In) > sizeof(Out) ? sizeof(In) : sizeof(Out));
  double before = 0.0, after = 0.0;
  const auto take = [&](Sum<In>& sum, In value, bool first) {
    const Sum<In> wide = shard_value(value);
    if (first) {
      sum = wide;
    } else {
      add<In>(sum, wide);
    }
    if constexpr (Squares && kIsFloating<In>) before += wide * wide;
  };
  const auto square = [&](Out value) {
    if constexpr (Squares && kIsFloating<In>) {
      const double wide = shard_value(value);
      after += wide * wide;
    }
  };
  struct alignas(sizeof(In) * kVector) InPack {
    In values[kVector];
  };
  struct alignas(sizeof(Out) * kVector) OutPack {
    Out values[kVector];
  };
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t packs = aligned ? length / kVector : 0;
  for (int64_t pack = first; pack < packs; pack += stride) {
    Sum<In> sums[kVector];
    for (int shard = 0; shard < count; ++shard) {
      const InPack values = static_cast<const InPack*>(shards.data[shard])[pack];
#pragma unroll
      for (int lane = 0; lane < kVector; ++lane) take(sums[lane], values.values[lane], shard == 0);
    }
    OutPack results;
#pragma unroll
    for (int lane = 0; lane < kVector; ++lane) {
      results.values[lane] = result<In, Out>(sums[lane], divisor);
      square(results.values[lane]);
    }
    reinterpret_cast<OutPack*>(out)[pack] = results;
  }
  for (int64_t i = packs * kVector + first; i < length; i += stride) {
    Sum<In> sum;
    for (int shard = 0; shard < count; ++shard) {
      take(sum, static_cast<const In*>(shards.data[shard])[i], shard == 0);
    }
    out[i] = result<In, Out>(sum, divisor);
    square(out[i]);
  }
  if constexpr (Squares) {
    const double2 sums = block_sums<kThreads>(before, after);
    if (threadIdx.x == 0) {
      partial[2 * blockIdx.x] = sums.x;
      partial[2 * blockIdx.x + 1] = sums.y;
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    add_partials_kernel(const double* const partial, const int count, double* const squares) {
  double before = 0.0, after = 0.0;
  for (int i = threadIdx.x; i < count; i += kThreads) {
    before += partial[2 * i];
    after += partial[2 * i + 1];
  }
  const double2 sums = block_sums<kThreads>(before, after);
  if (threadIdx.x != 0) return;
  squares[0] = sums.x;
  squares[1] = sums.y;
}

bool is_vector_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % kVectorBytes == 0;
}

template <typename In, typename Out>
const char* run(const SumShardsCall& call, cudaStream_t stream) {
  Shards shards;
  std::memcpy(shards.data, call.shards, call.count * sizeof(void*));
  const auto count = static_cast<int>(call.count);
  bool aligned = is_vector_aligned(call.out);
  for (int shard = 0; shard < count; ++shard) aligned &= is_vector_aligned(shards.data[shard]);
  const auto blocks = static_cast<unsigned>(shard_partials(call.length));
  auto* const out = static_cast<Out*>(call.out);
  if (call.partial != nullptr) {
    launch(
        sum_shards_kernel<In, Out, true>, {blocks, kThreads, stream}, shards, count, out,
        call.length, call.divisor, aligned, call.partial);
    launch(add_partials_kernel, {1, kThreads, stream}, call.partial, blocks, call.squares);
  } else {
    launch(
        sum_shards_kernel<In, Out, false>, {blocks, kThreads, stream}, shards, count, out,
        call.length, call.divisor, aligned, nullptr);
  }
  return launch_error();
}

}  // namespace

int64_t shard_partials(int64_t length) {
  const int64_t blocks = (length + kThreads * 4 - 1) / (kThreads * 4);
  return std::max<int64_t>(1, std::min<int64_t>(blocks, kMostBlocks));
}

const char* launch_sum_shards(const SumShardsCall& call, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  return dispatch_all(call.in, [&](auto of) {
    using In = decltype(of);
    if constexpr (std::is_same<In, float>::value) {
      if (call.to == Element::kHalf) return run<float, __half>(call, queue);
      if (call.to == Element::kBFloat16) return run<float, __nv_bfloat16>(call, queue);
    }
    return run<In, In>(call, queue);
  });
}

}  // namespace largebatch
