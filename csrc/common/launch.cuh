// The one place where kernels are launched and memory is cleared. The tests put a file of their own in its stead, which
// runs the kernels on the CPU (tests/cuda_emulation).

#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>

namespace largebatch {

struct Grid {
  unsigned int blocks, threads;  // threads of a block
  cudaStream_t stream;
  size_t shared = 0;  // bytes of dynamic shared memory
};

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const Grid& grid, const Arguments&... arguments) {
  kernel<<<grid.blocks, grid.threads, grid.shared, grid.stream>>>(arguments...);
}

// The same for blocks that wait for each other: all of them run at once, or the launch fails.
template <typename... Parameters, typename... Arguments>
void launch_together(
    void (*kernel)(Parameters...), const Grid& grid, const Arguments&... arguments) {
  std::tuple<std::decay_t<Parameters>...> copies(arguments...);
  std::apply(
      [&](auto&... each) {
        void* addresses[] = {&each...};
        cudaLaunchCooperativeKernel(
            reinterpret_cast<const void*>(kernel), dim3(grid.blocks), dim3(grid.threads), addresses,
            grid.shared, grid.stream);
      },
      copies);
}

// Bytes of shared memory of a multiprocessor of the current device, 0 if blocks may not wait there.
inline int64_t shared_of_multiprocessor() {
  int device = 0, bytes = 0, cooperates = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&cooperates, cudaDevAttrCooperativeLaunch, device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  return cooperates ? bytes : 0;
}

// How many blocks of a kernel the current device runs at once, having allowed them their `shared`
// bytes of dynamic memory.
template <typename... Parameters>
int64_t blocks_at_once(void (*kernel)(Parameters...), unsigned int threads, size_t shared) {
  const auto* const function = reinterpret_cast<const void*>(kernel);
  int device = 0, multiprocessors = 0, blocks = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (cudaFuncSetAttribute(
          function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)) !=
          cudaSuccess ||
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(
          &blocks, function, static_cast<int>(threads), shared) != cudaSuccess) {
    cudaGetLastError();  // not an error of a launch
    return 0;
  }
  return int64_t(blocks) * multiprocessors;
}

// CUDA's message if a launch failed since the last call, else null. Nothing waits for the device.
inline const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Enqueues zeros for `bytes` bytes; the same message if that failed.
inline const char* clear(void* memory, size_t bytes, cudaStream_t stream) {
  cudaMemsetAsync(memory, 0, bytes, stream);
  return launch_error();
}

}  // namespace largebatch
