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

constexpr std::array<Element, 4> kElements = {
    Element::kFloat, Element::kDouble, Element::kHalf, Element::kBFloat16};

// Enqueues norm and, unless null, clip factor; the chunks of one element type follow another's.
void enqueue_norm(TensorList& tensors, const Tensor& norm, const Tensor* factor, const Clip& clip) {
  const int32_t device = tensors[0].get_device_index();
  check_device(tensors, device);
  const DeviceGuard guard(device);
  void* const stream = current_cuda_stream(device);
  std::array<std::vector<NormRow>, kElements.size()> rows;
  int64_t count = 0;
  for (Tensor& tensor : tensors) {
    if (!is_dense(tensor)) tensor = torch::stable::contiguous(tensor);
    if (tensor.numel() == 0) continue;
    rows[static_cast<size_t>(element_of(tensor))].push_back(
        {tensor.const_data_ptr(), tensor.numel()});
    count += square_sum_count(tensor.numel());
  }
  const Tensor partial = torch::stable::new_empty(tensors[0], {count}, ScalarType::Double);
  auto* next = static_cast<double*>(partial.mutable_data_ptr());
  for (const Element element : kElements) {
    const auto& of_type = rows[static_cast<size_t>(element)];
    check_launch(
        launch_square_sums(element, of_type.data(), of_type.size(), next, stream),
        "largebatch::global_norm");
    for (const NormRow& row : of_type) next += square_sum_count(row.length);
  }
  check_launch(
      launch_finish_norm(
          static_cast<const double*>(partial.const_data_ptr()), count, norm.mutable_data_ptr(),
          factor == nullptr ? nullptr : factor->mutable_data_ptr(),
          norm.scalar_type() == ScalarType::Double, clip, stream),
      "largebatch::global_norm");
}

}  // namespace

void sgd_step_cuda(StepLists lists, const StepScalars& scalars, const SgdOptions& options) {
  if (lists.params.empty()) return;
  const int32_t device = lists.params[0].get_device_index();
  const DeviceGuard guard(device);
  Rows flat = flat_rows(lists);
  std::vector<DeviceRow> rows;
  for (const DeviceRow& row : device_rows(lists, device)) {
    if (row.length > 0) rows.push_back(row);
  }
  check_launch(
      launch_sgd(
          rows.data(), rows.size(), options, device_scalar(scalars.grad_factor, device),
          device_scalar(scalars.found_inf, device), current_cuda_stream(device)),
      "largebatch::sgd_");
  flat.write_back();
}

Tensor global_norm_cuda(TensorList tensors) {
  const ScalarType type = norm_type(tensors);
  const Tensor norm = torch::stable::new_empty(tensors[0], {}, type);
  enqueue_norm(tensors, norm, nullptr, {0.0, 0.0, {nullptr, false}});
  return norm;
}

std::tuple<Tensor, Tensor> clip_factor_cuda(
    TensorList tensors, double max_norm, double eps, std::optional<Tensor> scale) {
  const ScalarType type = norm_type(tensors);
  check_scalar(scale, "scale");
  const Clip clip = {max_norm, eps, device_scalar(scale, tensors[0].get_device_index())};
  const Tensor norm = torch::stable::new_empty(tensors[0], {}, type);
  const Tensor factor = torch::stable::new_empty(tensors[0], {}, type);
  enqueue_norm(tensors, norm, &factor, clip);
  return {norm, factor};
}

}  // namespace largebatch

#endif  // LARGEBATCH_CUDA
