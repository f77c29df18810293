// CUDA back end of the optimizer family, host side: arguments checked, tables filled, launched.

#ifdef LARGEBATCH_CUDA

#include <array>

#include "common/cuda_device.h"
#include "common/tensors.h"
#include "optim/check.h"
#include "optim/cuda_host.h"
#include "optim/optim.h"

namespace largebatch {
namespace {

// Enqueues the norm and what else `finish` asks for; the chunks of one element type follow another's.
void enqueue_norm(TensorList& tensors, FinishNorm finish) {
  const int32_t device = tensors[0].get_device_index();
  check_device(tensors, device);
  const DeviceGuard guard(device);
  void* const stream = current_cuda_stream(device);
  std::array<std::vector<NormRow>, std::size(kFloatingElements)> rows;
  int64_t count = 0;
  for (Tensor& tensor : tensors) {
    if (!is_dense(tensor)) tensor = torch::stable::contiguous(tensor);
    if (tensor.numel() == 0) continue;
    rows[static_cast<size_t>(element_of(tensor.scalar_type()))].push_back(
        {tensor.const_data_ptr(), tensor.numel()});
    count += square_sum_count(tensor.numel());
  }
  const Tensor partial = torch::stable::new_empty(tensors[0], {count}, ScalarType::Double);
  auto* next = static_cast<double*>(partial.mutable_data_ptr());
  for (const Element element : kFloatingElements) {
    const auto& of_type = rows[static_cast<size_t>(element)];
    check_launch(
        launch_square_sums(element, of_type.data(), of_type.size(), next, stream),
        "largebatch::global_norm");
    for (const NormRow& row : of_type) next += square_sum_count(row.length);
  }
  finish.partial = static_cast<const double*>(partial.const_data_ptr());
  finish.count = count;
  check_launch(launch_finish_norm(finish, stream), "largebatch::global_norm");
}

}  // namespace

void sgd_step_cuda(StepLists lists, const StepScalars& scalars, const SgdOptions& options) {
  if (lists.params.empty()) return;
  const int32_t device = lists.params[0].get_device_index();
  const DeviceGuard guard(device);
  Rows flat = flat_rows(lists);
  const auto [rows, types] = device_rows(lists, device);
  const SgdCall call = {
      rows.data(), types.data(), rows.size(), options, device_scalar(scalars.grad_factor, device),
      device_scalar(scalars.found_inf, device)};
  check_launch(launch_sgd(call, current_cuda_stream(device)), "largebatch::sgd_");
  flat.write_back();
}

Tensor global_norm_cuda(TensorList tensors) {
  const ScalarType type = norm_type(tensors);
  const Tensor norm = torch::stable::new_empty(tensors[0], {}, type);
  FinishNorm finish = {};
  finish.norm = norm.mutable_data_ptr();
  finish.is_double = type == ScalarType::Double;
  enqueue_norm(tensors, finish);
  return norm;
}

std::tuple<Tensor, Tensor> clip_factor_cuda(
    TensorList tensors, double max_norm, double eps, std::optional<Tensor> scale) {
  const ScalarType type = norm_type(tensors);
  check_scalar(scale, "scale");
  const Tensor norm = torch::stable::new_empty(tensors[0], {}, type);
  const Tensor factor = torch::stable::new_empty(tensors[0], {}, type);
  enqueue_norm(
      tensors,
      {nullptr, 0, norm.mutable_data_ptr(), factor.mutable_data_ptr(), type == ScalarType::Double,
       max_norm, eps, device_scalar(scale, tensors[0].get_device_index())});
  return {norm, factor};
}

}  // namespace largebatch

#endif  // LARGEBATCH_CUDA
