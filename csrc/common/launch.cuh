// The one place where kernels are launched and memory is cleared. The tests put a file of their own in its stead, which
// runs the kernels on the CPU (tests/cuda_emulation).

#pragma once

#include <cuda_runtime.h>

#include <cstddef>

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
