// What kernels over lists of tensors ask of their arguments: types, shapes, one memory order.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace largebatch {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using TensorList = std::vector<Tensor>;

inline bool is_supported(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
      type == ScalarType::BFloat16;
}

// The type a kernel computes in, and the type of the state kept for a tensor of `type`.
inline ScalarType accumulate_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Whether the elements fill one gapless stretch of memory in some order of the dimensions.
inline bool is_dense(const Tensor& tensor) {
  if (tensor.is_contiguous()) return true;
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  int64_t expected = 1;
  size_t wide = 0, placed = 0;  // dimensions with more than one element: all, and those in place
  for (size_t dim = 0; dim < sizes.size(); ++dim) wide += sizes[dim] > 1;
  while (placed < wide) {
    size_t next = 0;
    while (next < sizes.size() && !(sizes[next] > 1 && strides[next] == expected)) ++next;
    if (next == sizes.size()) return false;
    expected *= sizes[next];
    ++placed;
  }
  return true;
}

inline bool same_sizes(const Tensor& left, const Tensor& right) {
  const auto a = left.sizes();
  const auto b = right.sizes();
  if (a.size() != b.size()) return false;
  for (size_t dim = 0; dim < a.size(); ++dim) {
    if (a[dim] != b[dim]) return false;
  }
  return true;
}

// Whether two tensors of one shape put their elements in the same order in memory.
inline bool same_order(const Tensor& left, const Tensor& right) {
  const auto sizes = left.sizes();
  const auto a = left.strides();
  const auto b = right.strides();
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    if (sizes[dim] > 1 && a[dim] != b[dim]) return false;
  }
  return true;
}

// Lists walked together: the i-th tensors of all lists have one shape, and a kernel treats them as
// flat arrays. Rows whose memory orders differ or have gaps are replaced by contiguous copies, and
// `write_back` returns the results to those of the lists whose place is below `written`. An entry
// without elements beside a parameter with some stands for an absent one.
class Rows {
 public:
  Rows(std::vector<TensorList*> lists, size_t written) {
    for (size_t row = 0; row < lists[0]->size(); ++row) {
      bool flat = true;
      for (TensorList* list : lists) flat = flat && (*list)[row].is_contiguous();
      if (flat) continue;
      const Tensor& first = (*lists[0])[row];
      flat = is_dense(first);
      for (TensorList* list : lists) {
        flat = flat && (is_absent((*list)[row], first) || same_order(first, (*list)[row]));
      }
      if (flat) continue;
      for (size_t index = 0; index < lists.size(); ++index) {
        Tensor& entry = (*lists[index])[row];
        if (is_absent(entry, first)) continue;
        const Tensor copy = torch::stable::contiguous(entry);
        if (index < written && copy.data_ptr() != entry.data_ptr()) {
          write_backs_.emplace_back(entry, copy);
        }
        entry = copy;
      }
    }
  }

  void write_back() {
    for (auto& [original, copy] : write_backs_) torch::stable::copy_(original, copy);
  }

 private:
  static bool is_absent(const Tensor& entry, const Tensor& first) {
    return entry.numel() == 0 && first.numel() > 0;
  }

  std::vector<std::pair<Tensor, Tensor>> write_backs_;
};

}  // namespace largebatch
