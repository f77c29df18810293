// CUDA kernels of the Hadamard transform. A row is one block's, in shared memory; rows too long for
// that go through global memory, a launch a stage. The order of the additions depends on the sizes
// alone.

#include <algorithm>

#include "common/launch.cuh"
#include "common/widen.cuh"
#include "linear/cuda.h"

namespace largebatch {
namespace {

constexpr int64_t kSharedBytes = 32768;
constexpr int kMostThreads = 512;
constexpr int64_t kMostBlocks = 65535;

// Adds to and subtracts from each other the pair number `pair` of a stage.
template <typename Acc>
__device__ __forceinline__ void butterfly(Acc* values, int64_t pair, int64_t step) {
  const int64_t first = ((pair & ~(step - 1)) << 1) | (pair & (step - 1));
  const Acc upper = values[first], lower = values[first + step];
  values[first] = upper + lower;
  values[first + step] = upper - lower;
}

template <typename T, typename Acc>
__device__ __forceinline__ Acc folded(const T* row, int64_t begin, int64_t width, int64_t features) {
  Acc sum = 0;
  for (int64_t i = begin; i < features; i += width) sum += widen(row[i]);
  return sum;
}

// A block takes rows in turn. `width` is a power of two, at least the length and the block.
template <typename T>
__global__ void __launch_bounds__(kMostThreads)
    shared_kernel(const HadamardCall call, const int width) {
  using Acc = typename Accumulate<T>::type;
  extern __shared__ __align__(16) unsigned char memory[];
  Acc* const values = reinterpret_cast<Acc*>(memory);
  const int length = static_cast<int>(call.length), threads = static_cast<int>(blockDim.x);
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t row = blockIdx.x; row < call.rows; row += gridDim.x) {
    const T* const x = static_cast<const T*>(call.x) + row * call.features;
    T* const y = static_cast<T*>(call.y) + row * call.outputs;
    for (int j = thread; j < width; j += threads) {
      values[j] = folded<T, Acc>(x, j, width, call.features);
    }
    __syncthreads();
    for (int half = width / 2; half >= length; half /= 2) {
      for (int j = thread; j < half; j += threads) values[j] += values[half + j];
      __syncthreads();
    }
    for (int step = 1; step < length; step *= 2) {
      for (int pair = thread; pair < length / 2; pair += threads) butterfly(values, pair, step);
      __syncthreads();
    }
    for (int64_t c = thread; c < call.outputs; c += threads) {
      narrow(values[c & (length - 1)], y[c]);
    }
    __syncthreads();
  }
}

// The same three parts for rows in global memory; each block walks over all rows' elements.
template <typename T>
__global__ void __launch_bounds__(kMostThreads) fold_kernel(const HadamardCall call) {
  using Acc = typename Accumulate<T>::type;
  Acc* const scratch = static_cast<Acc*>(call.scratch);
  const int64_t all = call.rows * call.length, stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < all; i += stride) {
    const T* const x = static_cast<const T*>(call.x) + i / call.length * call.features;
    scratch[i] = folded<T, Acc>(x, i & (call.length - 1), call.length, call.features);
  }
}

template <typename Acc>
__global__ void __launch_bounds__(kMostThreads)
    stage_kernel(const HadamardCall call, const int64_t step) {
  // Rows are whole powers of two, so pairs of all rows can be numbered through.
  const int64_t all = call.rows * call.length / 2, stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < all; i += stride) {
    butterfly(static_cast<Acc*>(call.scratch), i, step);
  }
}

template <typename T>
__global__ void __launch_bounds__(kMostThreads) read_kernel(const HadamardCall call) {
  using Acc = typename Accumulate<T>::type;
  const Acc* const scratch = static_cast<const Acc*>(call.scratch);
  const int64_t all = call.rows * call.outputs, stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < all; i += stride) {
    const int64_t row = i / call.outputs, c = i - row * call.outputs;
    narrow(scratch[row * call.length + (c & (call.length - 1))], static_cast<T*>(call.y)[i]);
  }
}

unsigned int blocks_for(int64_t threads) {
  return static_cast<unsigned int>(
      std::min(kMostBlocks, (threads + kMostThreads - 1) / kMostThreads));
}

template <typename T>
const char* run(const HadamardCall& call, cudaStream_t stream) {
  using Acc = typename Accumulate<T>::type;
  if (call.scratch == nullptr) {
    // Short transforms take a warp or more to add x up; long ones a thread a pair.
    unsigned int threads = 64;
    while (threads < kMostThreads && threads < call.length / 2) threads *= 2;
    const int width = static_cast<int>(std::max<int64_t>(threads, call.length));
    const auto blocks = static_cast<unsigned int>(std::min(kMostBlocks, call.rows));
    launch(shared_kernel<T>, {blocks, threads, stream, width * sizeof(Acc)}, call, width);
  } else {
    const int64_t all = call.rows * call.length;
    launch(fold_kernel<T>, {blocks_for(all), kMostThreads, stream}, call);
    for (int64_t step = 1; step < call.length; step *= 2) {
      launch(stage_kernel<Acc>, {blocks_for(all / 2), kMostThreads, stream}, call, step);
    }
    launch(read_kernel<T>, {blocks_for(call.rows * call.outputs), kMostThreads, stream}, call);
  }
  return launch_error();
}

}  // namespace

bool hadamard_needs_scratch(HadamardElement element, int64_t length) {
  const int64_t size = element == HadamardElement::kDouble ? sizeof(double) : sizeof(float);
  return length * size > kSharedBytes;
}

const char* launch_hadamard(HadamardElement element, const HadamardCall& call, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  switch (element) {
    case HadamardElement::kFloat: return run<float>(call, queue);
    case HadamardElement::kDouble: return run<double>(call, queue);
    case HadamardElement::kHalf: return run<__half>(call, queue);
    default: return run<__nv_bfloat16>(call, queue);
  }
}

}  // namespace largebatch
