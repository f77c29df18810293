// What the host sides of the CUDA back end share.

#pragma once

#include <optional>
#include <vector>

#include "common/cuda_device.h"
#include "common/tensors.h"
#include "optim/cuda.h"
#include "optim/lists.h"

namespace largebatch {

inline Element element_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Element::kFloat;
    case ScalarType::Double: return Element::kDouble;
    case ScalarType::Half: return Element::kHalf;
    default: return Element::kBFloat16;
  }
}

// Kernels read raw pointers: all of a call must be on one device.
inline void check_device(const TensorList& tensors, int32_t device) {
  for (const Tensor& tensor : tensors) {
    STD_TORCH_CHECK(
        is_on_cuda(tensor) && tensor.get_device_index() == device,
        "largebatch: all tensors of a call must be on one CUDA device");
  }
}

// The rows of lists that are flat, having checked that all are on one device.
inline std::vector<DeviceRow> device_rows(const StepLists& lists, int32_t device) {
  for (const TensorList* list :
       {&lists.params, &lists.grads, &lists.first, &lists.second, &lists.steps}) {
    check_device(*list, device);
  }
  std::vector<DeviceRow> rows;
  rows.reserve(lists.params.size());
  for (size_t index = 0; index < lists.params.size(); ++index) {
    const Tensor& param = lists.params[index];
    const bool has_master = !lists.masters.empty() && lists.masters[index].numel() > 0;
    if (has_master) check_device({lists.masters[index]}, device);
    rows.push_back(
        {param.mutable_data_ptr(),
         lists.grads[index].const_data_ptr(),
         lists.first.empty() ? nullptr : lists.first[index].mutable_data_ptr(),
         lists.second.empty() ? nullptr : lists.second[index].mutable_data_ptr(),
         has_master ? lists.masters[index].mutable_data_ptr() : nullptr,
         param.numel(),
         element_of(param),
         !lists.first.empty() && lists.first[index].scalar_type() == ScalarType::BFloat16});
  }
  return rows;
}

inline DeviceScalar device_scalar(const std::optional<Tensor>& scalar, int32_t device) {
  if (!scalar) return {nullptr, false};
  check_device({*scalar}, device);
  return {scalar->const_data_ptr(), scalar->scalar_type() == ScalarType::Double};
}

inline void check_launch(const char* error, const char* name) {
  STD_TORCH_CHECK(error == nullptr, name, ": ", error == nullptr ? "" : error);
}

}  // namespace largebatch
