// LARS and LAMB on CUDA, host side: tables filled and launched.

#ifdef LARGEBATCH_CUDA

#include "optim/layerwise_cuda.h"

#include "common/cuda_device.h"
#include "optim/cuda_host.h"
#include "optim/layerwise.h"

namespace largebatch {
namespace {

// Checks devices, fills the table and the scratch memory, and runs `launch(call, stream)`.
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
  const DeviceRows of_lists = device_rows(lists, device);
  std::vector<LayerRow> rows;
  rows.reserve(of_lists.rows.size());
  for (const DeviceRow& row : of_lists.rows) {
    const size_t index = rows.size();
    const double* const setting = settings + 3 * index;
    rows.push_back(
        {row,
         lists.steps.empty() ? nullptr
                             : static_cast<float*>(lists.steps[index].mutable_data_ptr()),
         setting[0], setting[1], 0, static_cast<uint32_t>(index), setting[2] != 0.0});
  }
  const Tensor scratch = torch::stable::new_empty(
      scalars.norms, {static_cast<int64_t>(layer_scratch(rows.data(), rows.size()))},
      ScalarType::Byte);
  const LayerCall call = {
      rows.data(),
      of_lists.types.data(),
      rows.size(),
      device_scalar(scalars.lr_factor, device),
      device_scalar(scalars.grad_factor, device),
      device_scalar(scalars.found_inf, device),
      static_cast<double*>(scalars.norms.mutable_data_ptr()),
      scratch.mutable_data_ptr(),
      scalars.stage != Stage::kUpdate,
      scalars.stage != Stage::kSums};
  check_launch(launch(call, current_cuda_stream(device)), name);
  flat.write_back();
}

}  // namespace

void lars_step_cuda(
    StepLists lists, const LayerwiseScalars& scalars, const LarsOptions& options) {
  step(lists, scalars, "largebatch::lars_", [&](const LayerCall& call, void* stream) {
    return launch_lars(call, options, stream);
  });
}

void lamb_step_cuda(
    StepLists lists, const LayerwiseScalars& scalars, const LambOptions& options) {
  step(lists, scalars, "largebatch::lamb_", [&](const LayerCall& call, void* stream) {
    return launch_lamb(call, options, stream);
  });
}

}  // namespace largebatch

#endif  // LARGEBATCH_CUDA
