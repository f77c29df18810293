// What kernels on raw pointers ask of memory: that all of a tensor is there, and that what a call
// writes shares no byte with another of its tensors, nor with itself.

#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "common/tensors.h"

namespace largebatch {

// From a tensor's first element to behind its last, in elements. Strides are never negative.
inline int64_t reach(const Tensor& tensor, bool is_contiguous) {
  if (is_contiguous) return tensor.numel();
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  int64_t last = 0;
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    if (sizes[dim] == 0) return 0;
    last += (sizes[dim] - 1) * strides[dim];
  }
  return last + 1;
}

// Refuses a tensor whose storage has become too small for it, as sharding frees storages by
// resize_(0). Returns the tensor's reach in bytes.
inline int64_t check_stored(const char* name, const Tensor& tensor, bool is_contiguous) {
  const int64_t elements = reach(tensor, is_contiguous);
  if (elements == 0) return 0;
  const auto size = static_cast<int64_t>(tensor.element_size());
  int64_t stored = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &stored));
  STD_TORCH_CHECK(
      tensor.storage_offset() + elements <= stored / size, name, ": a tensor of ", tensor.numel(),
      " elements has a storage of ", stored, " bytes: was it freed or resized?");
  return elements * size;
}

inline void check_stored(const char* name, const Tensor& tensor) {
  check_stored(name, tensor, tensor.is_contiguous());
}

inline void check_stored(const char* name, const std::optional<Tensor>& tensor) {
  if (tensor) check_stored(name, *tensor);
}

// Whether no two indices lead to one element: each stride must step over all that the smaller ones
// reach. Layouts that keep apart in another way, which slices and transpositions never make, do not
// pass.
inline bool is_free_of_overlap(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  std::vector<std::pair<int64_t, int64_t>> steps;
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    if (sizes[dim] > 1) steps.emplace_back(strides[dim], sizes[dim]);
  }
  std::sort(steps.begin(), steps.end());
  int64_t last = 0;
  for (const auto& [stride, size] : steps) {
    if (stride <= last) return false;
    last += (size - 1) * stride;
  }
  return true;
}

// The bytes that a call reads and writes.
class Footprint {
 public:
  explicit Footprint(const char* name) : name_(name) {}

  void reserve(size_t tensors) { spans_.reserve(tensors); }

  void reads(const Tensor& tensor) { add(tensor, false); }
  void reads(const std::optional<Tensor>& tensor) {
    if (tensor) reads(*tensor);
  }
  void writes(const Tensor& tensor) { add(tensor, true); }

  // Refuses tensors that share memory of which one is written. Of those with gaps it is not
  // known whether they do.
  void check() {
    // Tensors of an optimizer stay where they are: what was fine in one of the last calls is not
    // sorted again.
    static thread_local std::array<std::vector<Span>, 4> fine;
    static thread_local size_t oldest = 0;
    if (std::find(fine.begin(), fine.end(), spans_) != fine.end()) return;
    const std::vector<Span> given = spans_;
    std::sort(spans_.begin(), spans_.end(), [](const Span& a, const Span& b) {
      return a.begin < b.begin;
    });
    uintptr_t read = 0, written = 0;  // where the spans so far end
    for (const Span& span : spans_) {
      STD_TORCH_CHECK(
          span.begin >= (span.is_written ? std::max(read, written) : written), name_,
          ": a tensor to be written shares memory with another tensor of the call; is one passed "
          "twice?");
      uintptr_t& end = span.is_written ? written : read;
      end = std::max(end, span.end);
    }
    fine[oldest] = given;
    oldest = (oldest + 1) % fine.size();
  }

 private:
  struct Span {
    uintptr_t begin, end;
    bool is_written;

    bool operator==(const Span& other) const {
      return begin == other.begin && end == other.end && is_written == other.is_written;
    }
  };

  void add(const Tensor& tensor, bool is_written) {
    const bool is_contiguous = tensor.is_contiguous();
    const int64_t bytes = check_stored(name_, tensor, is_contiguous);
    if (bytes == 0) return;
    STD_TORCH_CHECK(
        is_contiguous || !is_written || is_free_of_overlap(tensor), name_,
        ": a tensor to be written has elements that share memory, as expand() makes them; clone() "
        "it first");
    if (!is_contiguous && !is_dense(tensor)) return;
    // A lazy copy gets memory of its own by the first.
    const void* const data = is_written ? tensor.mutable_data_ptr() : tensor.const_data_ptr();
    const auto begin = reinterpret_cast<uintptr_t>(data);
    spans_.push_back({begin, begin + static_cast<uintptr_t>(bytes), is_written});
  }

  const char* name_;
  std::vector<Span> spans_;
};

}  // namespace largebatch
