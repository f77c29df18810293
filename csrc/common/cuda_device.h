// What the host sides take from torch for CUDA: whose a tensor is, and the current stream. The
// stream is found at run time: the same library then also loads where torch has no CUDA, because
// nothing in it is linked against libtorch_cuda.

#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace largebatch {

using torch::stable::accelerator::DeviceGuard;

inline bool is_on_cuda(const torch::stable::Tensor& tensor) { return tensor.is_cuda(); }

inline void* current_cuda_stream(int32_t device) {
  using GetStream = int32_t (*)(int32_t, void**);
  static const GetStream get_stream = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return reinterpret_cast<GetStream>(
        library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr);
  }();
  STD_TORCH_CHECK(get_stream != nullptr, "largebatch: this torch has no CUDA");
  void* stream = nullptr;
  STD_TORCH_CHECK(get_stream(device, &stream) == 0, "largebatch: no current CUDA stream");
  return stream;
}

}  // namespace largebatch
