// CUDA kernels of the Hadamard transform. A row is one block's, in shared memory. Of rows too long for
// that, a block transforms a segment (the first 13 stages, float64: 12); the stages that are left go
// through global memory, a launch each. The order of the additions depends on the sizes alone.

#include <algorithm>

#include "common/dispatch.cuh"
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

// All stages within `length` values in shared memory, with barriers before and after.
template <typename Acc>
__device__ __forceinline__ void transform(Acc* values, int length) {
  __syncthreads();
  for (int step = 1; step < length; step *= 2) {
    for (int pair = threadIdx.x; pair < length / 2; pair += blockDim.x) {
      butterfly(values, pair, step);
    }
    __syncthreads();
  }
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
    for (int half = width / 2; half >= length; half /= 2) {
      __syncthreads();
      for (int j = thread; j < half; j += threads) values[j] += values[half + j];
    }
    transform(values, length);
    for (int64_t c = thread; c < call.outputs; c += threads) {
      narrow(values[c & (length - 1)], y[c]);
    }
    __syncthreads();
  }
}

// The same parts for long rows. First their segments of `width` values, one after another over all
// rows: x added up and transformed.
template <typename T>
__global__ void __launch_bounds__(kMostThreads)
    segment_kernel(const HadamardCall call, const int width) {
  using Acc = typename Accumulate<T>::type;
  extern __shared__ __align__(16) unsigned char memory[];
  Acc* const values = reinterpret_cast<Acc*>(memory);
  const int64_t all = call.rows * call.length;
  for (int64_t first = int64_t(blockIdx.x) * width; first < all; first += int64_t(gridDim.x) * width) {
    const T* const x = static_cast<const T*>(call.x) + first / call.length * call.features;
    const int64_t begin = first & (call.length - 1);
    for (int j = threadIdx.x; j < width; j += blockDim.x) {
      values[j] = folded<T, Acc>(x, begin + j, call.length, call.features);
    }
    transform(values, width);
    Acc* const scratch = static_cast<Acc*>(call.scratch) + first;
    for (int j = threadIdx.x; j < width; j += blockDim.x) scratch[j] = values[j];
  }
}

// Then the other stages, and the outputs; each block walks over all rows' elements.
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
    const int width = kSharedBytes / sizeof(Acc);
    const auto blocks = static_cast<unsigned int>(std::min(kMostBlocks, all / width));
    launch(segment_kernel<T>, {blocks, kMostThreads, stream, kSharedBytes}, call, width);
    for (int64_t step = width; step < call.length; step *= 2) {
      launch(stage_kernel<Acc>, {blocks_for(all / 2), kMostThreads, stream}, call, step);
    }
    launch(read_kernel<T>, {blocks_for(call.rows * call.outputs), kMostThreads, stream}, call);
  }
  return launch_error();
}

}  // namespace

bool hadamard_needs_scratch(Element element, int64_t length) {
  const int64_t size = element == Element::kDouble ? sizeof(double) : sizeof(float);
  return length * size > kSharedBytes;
}

const char* launch_hadamard(const HadamardCall& call, void* stream) {
  return dispatch(call.element, [&](auto of) {
    return run<decltype(of)>(call, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace largebatch
