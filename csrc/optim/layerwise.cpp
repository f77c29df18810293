#include "optim/layerwise.h"

namespace largebatch {
namespace {

void check_list(
    const char* name, const char* what, const TensorList& params, const TensorList& list,
    bool may_be_16_bit, bool may_be_absent) {
  STD_TORCH_CHECK(
      list.size() == params.size(), name, ": ", params.size(), " parameters, but ", list.size(),
      " ", what);
  for (size_t index = 0; index < list.size(); ++index) {
    const Tensor& entry = list[index];
    if (may_be_absent && entry.numel() == 0) continue;
    const ScalarType wide = accumulate_type(params[index].scalar_type());
    const ScalarType type = entry.scalar_type();
    STD_TORCH_CHECK(
        !may_be_absent || wide != params[index].scalar_type(),
        name, ": parameter ", index, " is in full precision and has no use for a master");
    STD_TORCH_CHECK(
        same_sizes(entry, params[index]) &&
            (type == wide ||
             (may_be_16_bit && wide == ScalarType::Float && type == ScalarType::BFloat16)),
        name, ": ", what, " ", index, " must have its parameter's shape and be float64 for float64, ",
        may_be_16_bit ? "else float32 or bfloat16" : "else float32");
  }
}

}  // namespace

void check_layerwise(
    const char* name, const LayerwiseLists& lists, const LayerwiseScalars& scalars) {
  const auto count = static_cast<int64_t>(lists.params.size());
  STD_TORCH_CHECK(
      lists.grads.size() == lists.params.size(), name, ": ", count, " parameters, but ",
      lists.grads.size(), " gradients");
  for (int64_t index = 0; index < count; ++index) {
    const ScalarType type = lists.params[index].scalar_type();
    STD_TORCH_CHECK(
        is_supported(type) && lists.grads[index].scalar_type() == type &&
            same_sizes(lists.params[index], lists.grads[index]),
        name, ": parameter ", index, " and its gradient must have one shape and one type of "
        "float32, float64, float16, bfloat16");
  }
  if (!lists.first.empty()) {
    check_list(name, "first moments", lists.params, lists.first, true, false);
  }
  if (!lists.second.empty()) {
    check_list(name, "second moments", lists.params, lists.second, true, false);
    for (int64_t index = 0; index < count; ++index) {
      STD_TORCH_CHECK(
          lists.first[index].scalar_type() == lists.second[index].scalar_type(),
          name, ": the moments of tensor ", index, " differ in type");
    }
    STD_TORCH_CHECK(
        static_cast<int64_t>(lists.steps.size()) == count, name, ": ", count, " parameters, but ",
        lists.steps.size(), " steps");
    for (const Tensor& step : lists.steps) {
      STD_TORCH_CHECK(
          step.numel() == 1 && step.scalar_type() == ScalarType::Float,
          name, ": a step must be one float32");
    }
  }
  if (!lists.masters.empty()) {
    check_list(name, "masters", lists.params, lists.masters, false, true);
  }
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
