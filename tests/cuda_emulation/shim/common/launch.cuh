// Launches on the CPU, in place of csrc/common/launch.cuh.

#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <tuple>

namespace largebatch {

struct Grid {
  unsigned int blocks, threads;
  cudaStream_t stream;
  size_t shared = 0;
};

// Arguments are copied once, as CUDA does.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const Grid& grid, const Arguments&... arguments) {
  const std::tuple<std::decay_t<Parameters>...> copies(arguments...);
  const auto body = [&] { std::apply(kernel, copies); };
  emulation::run(
      {grid.blocks, grid.threads, grid.shared, sizeof(copies),
       [](const void* context) { (*static_cast<const decltype(body)*>(context))(); }, &body});
}

// Blocks that wait run at once here in any case; few of them, with little memory, so that small
// tensors are cut into many.
template <typename... Parameters, typename... Arguments>
void launch_together(
    void (*kernel)(Parameters...), const Grid& grid, const Arguments&... arguments) {
  launch(kernel, grid, arguments...);
}

inline int64_t shared_of_multiprocessor() { return 80 * 1024; }

template <typename... Parameters>
int64_t blocks_at_once(void (*)(Parameters...), unsigned int, size_t) {
  return 48;
}

inline const char* launch_error() { return emulation::error(); }

inline const char* clear(void* memory, size_t bytes, cudaStream_t) {
  std::memset(memory, 0, bytes);
  return nullptr;
}

}  // namespace largebatch
