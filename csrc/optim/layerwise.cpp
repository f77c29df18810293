#include "optim/layerwise.h"

namespace largebatch {

void check_layerwise(
    const char* name, const StepLists& lists, int moments, const LayerwiseScalars& scalars) {
  const auto stage = static_cast<int64_t>(scalars.stage);
  STD_TORCH_CHECK(
      stage >= 0 && stage <= 2, name, ": stage must be 0 (all), 1 (sums) or 2 (update)");
  Footprint footprint(name);
  check_lists(name, lists, moments, footprint);
  const auto count = static_cast<int64_t>(lists.params.size());
  for (const Tensor* table : {&scalars.norms, &scalars.settings}) {
    STD_TORCH_CHECK(
        table->dim() == 2 && table->size(0) == count && table->size(1) == 3 &&
            table->scalar_type() == ScalarType::Double && table->is_contiguous(),
        name, ": norms and settings must be contiguous float64 of shape (", count, ", 3)");
  }
  STD_TORCH_CHECK(scalars.settings.is_cpu(), name, ": settings must be on the CPU");
  check_scalar(scalars.lr_factor, "lr_factor", footprint);
  check_scalar(scalars.grad_factor, "grad_factor", footprint);
  check_scalar(scalars.found_inf, "found_inf", footprint);
  footprint.writes(scalars.norms);
  footprint.reads(scalars.settings);
  footprint.check();
}

}  // namespace largebatch
