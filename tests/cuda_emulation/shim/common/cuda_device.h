// Tensors of the CPU for the host sides of the CUDA back end, in place of csrc/common/cuda_device.h.

#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace largebatch {

struct DeviceGuard {
  explicit DeviceGuard(int32_t) {}
};

inline bool is_on_cuda(const torch::stable::Tensor& tensor) { return tensor.is_cpu(); }
inline void* current_cuda_stream(int32_t) { return nullptr; }

}  // namespace largebatch
