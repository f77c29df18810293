// LARS and LAMB on CUDA, host side: tables filled and launched.

#ifdef LARGEBATCH_CUDA

#include "optim/layerwise_cuda.h"

#include "common/cuda_device.h"
#include "optim/cuda_host.h"
#include "optim/layerwise.h"

namespace largebatch {
namespace {

// Checks devices, fills the table and the scratch memory, and runs `launch(rows, call, stream)`.
template <class Launch>
void step(
    StepLists& lists, const LayerwiseScalars& scalars, const char* name,
    const Launch& launch) {
  if (lists.params.empty()) return;
  const int32_t device = lists.params[0].get_device_index();
  check_device({scalars.norms}, device);
  const DeviceGuard guard(device);
  Rows flat = flat_rows(lists);

  const auto* settings = static_cast<const double*>(scalars.settings.const_data_ptr());
  std::vector<LayerRow> rows;
  int64_t chunks = 0;
  for (const DeviceRow& row : device_rows(lists, device)) {
    const size_t index = rows.size();
    const double* const setting = settings + 3 * index;
    rows.push_back(
        {row,
         lists.steps.empty() ? nullptr
                             : static_cast<float*>(lists.steps[index].mutable_data_ptr()),
         {setting[0], setting[1], setting[2] != 0.0},
         static_cast<int>(index)});
    chunks += layer_chunks(row.length);
  }
  const auto count = static_cast<int64_t>(rows.size());
  const Tensor scratch =
      torch::stable::new_empty(scalars.norms, {2 * chunks + count}, ScalarType::Double);
  auto* const memory = static_cast<double*>(scratch.mutable_data_ptr());
  const LayerCall call = {
      device_scalar(scalars.lr_factor, device),
      device_scalar(scalars.grad_factor, device),
      device_scalar(scalars.found_inf, device),
      static_cast<double*>(scalars.norms.mutable_data_ptr()),
      memory,
      memory + 2 * chunks,
      scalars.stage != Stage::kUpdate,
      scalars.stage != Stage::kSums};
  check_launch(launch(rows, call, current_cuda_stream(device)), name);
  flat.write_back();
}

}  // namespace

void lars_step_cuda(
    StepLists lists, const LayerwiseScalars& scalars, const LarsOptions& options) {
  step(lists, scalars, "largebatch::lars_", [&](const auto& rows, const auto& call, void* stream) {
    return launch_lars(rows.data(), rows.size(), call, options, stream);
  });
}

void lamb_step_cuda(
    StepLists lists, const LayerwiseScalars& scalars, const LambOptions& options) {
  step(lists, scalars, "largebatch::lamb_", [&](const auto& rows, const auto& call, void* stream) {
    return launch_lamb(rows.data(), rows.size(), call, options, stream);
  });
}

}  // namespace largebatch

#endif  // LARGEBATCH_CUDA
