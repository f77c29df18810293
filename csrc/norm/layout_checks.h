// Which layout a tensor is in, and the checks and allocations that the operators share.

#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>

#include "common/memory.h"
#include "norm/math.h"
#include "norm/layout.h"

namespace largebatch {

// Whether the channels vary fastest and nothing lies between the values.
inline bool is_rows(const Tensor& x) {
  const auto sizes = x.sizes();
  const auto strides = x.strides();
  int64_t expected = 1;
  if (sizes[1] != 1 && strides[1] != expected) return false;
  expected *= sizes[1];
  for (size_t dim = sizes.size(); dim-- > 0;) {
    if (dim == 1) continue;
    if (sizes[dim] != 1 && strides[dim] != expected) return false;
    expected *= sizes[dim];
  }
  return true;
}

// Checks `x`, puts it into one of the two layouts and describes it.
inline NormLayout norm_layout(Tensor& x, int64_t ghost_size, int64_t full) {
  const auto sizes = x.sizes();
  STD_TORCH_CHECK(
      sizes.size() >= 2 && x.numel() > 0,
      "largebatch::ghost_norm: x must have at least 2 dimensions and a value");
  STD_TORCH_CHECK(
      is_supported(x.scalar_type()),
      "largebatch::ghost_norm: x must be float32, float64, float16 or bfloat16");
  STD_TORCH_CHECK(
      ghost_size >= 1 && full >= 0 && full <= sizes[0] / ghost_size,
      "largebatch::ghost_norm: ", full, " ghosts of ", ghost_size, " samples do not fit a batch of ",
      sizes[0]);
  check_stored("largebatch::ghost_norm", x);
  int64_t length = 1;
  for (size_t dim = 2; dim < sizes.size(); ++dim) length *= sizes[dim];
  bool planar = length > 1 && x.is_contiguous();
  if (!planar && !is_rows(x)) {
    x = torch::stable::contiguous(x);
    planar = length > 1;
  }
  return {planar, sizes[0], sizes[1], length, ghost_size, full};
}

inline void check_policy(int64_t policy, int64_t top) {
  STD_TORCH_CHECK(
      policy >= 0 && policy <= 2 && (policy != 2 || top >= 1),
      "largebatch::ghost_norm: policy must be 0 (L2), 1 (L1) or 2 (top-k with k of at least 1)");
}

// A value a channel, in the type of the statistics.
inline void check_parameters(
    const Tensor& x, std::initializer_list<const std::optional<Tensor>*> parameters) {
  for (const auto* parameter : parameters) {
    if (!*parameter) continue;
    check_stored("largebatch::ghost_norm", *parameter);
    STD_TORCH_CHECK(
        (*parameter)->scalar_type() == accumulate_type(x.scalar_type()) &&
            (*parameter)->dim() == 1 && (*parameter)->size(0) == x.size(1) &&
            (*parameter)->is_contiguous(),
        "largebatch::ghost_norm: weight, bias and center must be contiguous, with a value a "
        "channel, and float64 for float64 x, else float32");
  }
}

// A table of `sizes` by channels, which another operator of the family has made.
inline void check_table(
    const Tensor& x, const Tensor& table, std::initializer_list<int64_t> sizes, const char* name) {
  const auto found = table.sizes();
  STD_TORCH_CHECK(
      table.is_contiguous() && table.scalar_type() == accumulate_type(x.scalar_type()) &&
          found.size() == sizes.size() + 1 &&
          std::equal(sizes.begin(), sizes.end(), found.begin()) && found.back() == x.size(1),
      "largebatch::ghost_norm: ", name, " must be contiguous, of ", *sizes.begin(), " by ",
      sizes.size() > 1 ? "ghosts by " : "", x.size(1), " values, and float64 for float64 x, else ",
      "float32");
  check_stored("largebatch::ghost_norm", table);
}

inline void check_mask(const Tensor& mask, const NormLayout& at) {
  STD_TORCH_CHECK(
      mask.is_contiguous() && mask.dim() == 1 && mask.scalar_type() == ScalarType::Byte &&
          (mask.numel() == 0 || mask.numel() == at.mask_rows() * at.mask_row()),
      "largebatch::ghost_norm: the mask is not that of the forward");
  check_stored("largebatch::ghost_norm", mask);
}

// `other`, of the shape and type of `x`, in its layout.
inline Tensor in_layout_of(const Tensor& other, const Tensor& x, const char* name) {
  STD_TORCH_CHECK(
      same_sizes(other, x) && other.scalar_type() == x.scalar_type() &&
          other.device() == x.device(),
      "largebatch::ghost_norm: ", name, " must have the shape and type of x, on its device");
  check_stored("largebatch::ghost_norm", other);
  if (same_order(other, x)) return other;
  Tensor copy = torch::stable::empty_like(x);
  torch::stable::copy_(copy, other);
  return copy;
}

inline Tensor new_wide(const Tensor& x, std::initializer_list<int64_t> sizes) {
  return torch::stable::new_empty(x, sizes, accumulate_type(x.scalar_type()));
}

inline Tensor new_mask(const Tensor& x, const NormLayout& at, bool relu) {
  return torch::stable::new_empty(
      x, {relu ? at.mask_rows() * at.mask_row() : 0}, ScalarType::Byte);
}

inline Tensor new_residual_gradient(const Tensor& x, bool wanted) {
  return wanted ? torch::stable::empty_like(x)
                : torch::stable::new_empty(x, {0}, x.scalar_type());
}

}  // namespace largebatch
