// What the host sides of the CUDA optimizers share.

#pragma once

#include <optional>
#include <vector>

#include "common/cuda_host.h"
#include "optim/cuda.h"
#include "optim/lists.h"

namespace largebatch {

// The tensors of lists that are flat, as the kernels take them.
struct DeviceRows {
  std::vector<DeviceRow> rows;
  std::vector<StepTypes> types;
};

// Checks that all are on one device.
inline DeviceRows device_rows(const StepLists& lists, int32_t device) {
  for (const TensorList* list :
       {&lists.params, &lists.grads, &lists.first, &lists.second, &lists.steps}) {
    check_device(*list, device);
  }
  DeviceRows result;
  result.rows.reserve(lists.params.size());
  result.types.reserve(lists.params.size());
  for (size_t index = 0; index < lists.params.size(); ++index) {
    const Tensor& param = lists.params[index];
    const bool has_master = !lists.masters.empty() && lists.masters[index].numel() > 0;
    if (has_master) check_device({lists.masters[index]}, device);
    result.rows.push_back(
        {param.mutable_data_ptr(),
         lists.grads[index].const_data_ptr(),
         lists.first.empty() ? nullptr : lists.first[index].mutable_data_ptr(),
         lists.second.empty() ? nullptr : lists.second[index].mutable_data_ptr(),
         has_master ? lists.masters[index].mutable_data_ptr() : nullptr,
         param.numel()});
    result.types.push_back(
        {element_of(param.scalar_type()),
         !lists.first.empty() && param.scalar_type() != ScalarType::Double &&
             lists.first[index].scalar_type() == ScalarType::BFloat16});
  }
  return result;
}

inline DeviceScalar device_scalar(const std::optional<Tensor>& scalar, int32_t device) {
  if (!scalar) return {nullptr, false};
  check_device({*scalar}, device);
  return {scalar->const_data_ptr(), scalar->scalar_type() == ScalarType::Double};
}

}  // namespace largebatch
