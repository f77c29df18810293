#include "optim/layerwise.h"

namespace largebatch {

void check_layerwise(
    const char* name, const StepLists& lists, const LayerwiseScalars& scalars) {
  check_lists(name, lists);
  const auto count = static_cast<int64_t>(lists.params.size());
  for (const Tensor* table : {&scalars.norms, &scalars.settings}) {
    STD_TORCH_CHECK(
        table->dim() == 2 && table->size(0) == count && table->size(1) == 3 &&
            table->scalar_type() == ScalarType::Double && table->is_contiguous(),
        name, ": norms and settings must be contiguous float64 of shape (", count, ", 3)");
  }
  STD_TORCH_CHECK(scalars.settings.is_cpu(), name, ": settings must be on the CPU");
  check_scalar(scalars.lr_factor, "lr_factor");
  check_scalar(scalars.grad_factor, "grad_factor");
  check_scalar(scalars.found_inf, "found_inf");
}

}  // namespace largebatch
