#include "optim/lists.h"

namespace largebatch {
namespace {

// Moments, or masters: those only of 16-bit parameters, and of no other type than float32.
void check_state(
    const char* name, const char* what, const TensorList& params,
    const std::vector<ScalarType>& types, const TensorList& list, bool masters) {
  STD_TORCH_CHECK(
      list.size() == params.size(), name, ": ", params.size(), " parameters, but ", list.size(),
      " ", what);
  for (size_t index = 0; index < list.size(); ++index) {
    const Tensor& entry = list[index];
    if (masters && entry.numel() == 0) continue;
    const ScalarType wide = accumulate_type(types[index]);
    const ScalarType type = entry.scalar_type();
    STD_TORCH_CHECK(
        !masters || wide != types[index],
        name, ": parameter ", index, " is in full precision and has no use for a master");
    STD_TORCH_CHECK(
        same_sizes(entry, params[index]) &&
            (type == wide ||
             (!masters && wide == ScalarType::Float && type == ScalarType::BFloat16)),
        name, ": ", what, " ", index, " must have its parameter's shape and be float64 for float64, ",
        masters ? "else float32" : "else float32 or bfloat16");
  }
}

void check_second(
    const char* name, const StepLists& lists, const std::vector<ScalarType>& types) {
  check_state(name, "second moments", lists.params, types, lists.second, false);
  STD_TORCH_CHECK(
      lists.steps.size() == lists.params.size(), name, ": ", lists.params.size(),
      " parameters, but ", lists.steps.size(), " steps");
  for (size_t index = 0; index < lists.params.size(); ++index) {
    STD_TORCH_CHECK(
        lists.first[index].scalar_type() == lists.second[index].scalar_type(),
        name, ": the moments of tensor ", index, " differ in type");
    STD_TORCH_CHECK(
        lists.steps[index].numel() == 1 && lists.steps[index].scalar_type() == ScalarType::Float,
        name, ": a step must be one float32");
  }
}

}  // namespace

void check_lists(
    const char* name, const StepLists& lists, int moments, Footprint& footprint) {
  const size_t count = lists.params.size();
  STD_TORCH_CHECK(
      lists.grads.size() == count, name, ": ", count, " parameters, but ", lists.grads.size(),
      " gradients");
  std::vector<ScalarType> types;
  types.reserve(count);
  for (size_t index = 0; index < count; ++index) {
    const ScalarType type = lists.params[index].scalar_type();
    types.push_back(type);
    STD_TORCH_CHECK(
        is_supported(type) && lists.grads[index].scalar_type() == type &&
            same_sizes(lists.params[index], lists.grads[index]),
        name, ": parameter ", index, " and its gradient must have one shape and one type of "
        "float32, float64, float16, bfloat16");
  }
  STD_TORCH_CHECK(
      moments == 2 || lists.first.size() == (moments == 1 ? count : 0), name, ": ", count,
      " parameters and ", lists.first.size(),
      " momentum buffers; there is a buffer a parameter if and only if momentum is not zero");
  if (moments > 0) check_state(name, "first moments", lists.params, types, lists.first, false);
  if (!lists.masters.empty()) check_state(name, "masters", lists.params, types, lists.masters, true);
  if (moments > 1) check_second(name, lists, types);
  footprint.reserve(6 * count);
  for (const TensorList* list :
       {&lists.params, &lists.first, &lists.second, &lists.masters, &lists.steps}) {
    for (const Tensor& tensor : *list) footprint.writes(tensor);
  }
  for (const Tensor& grad : lists.grads) footprint.reads(grad);
}

Rows flat_rows(StepLists& lists) {
  std::vector<TensorList*> together = {&lists.params};
  for (TensorList* list : {&lists.first, &lists.second, &lists.masters}) {
    if (!list->empty()) together.push_back(list);
  }
  const size_t written = together.size();
  together.push_back(&lists.grads);
  return Rows(together, written);
}

}  // namespace largebatch
