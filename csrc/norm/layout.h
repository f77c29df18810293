// Which layout a tensor is in, and the checks that both back ends share.

#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <optional>

#include "common/tensors.h"
#include "norm/math.h"
#include "norm/shape.h"

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

// Checks the arguments, puts `x` into one of the two layouts and describes it.
inline NormLayout norm_layout(
    Tensor& x,
    const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias,
    int64_t policy,
    int64_t top,
    int64_t ghost_size,
    int64_t full) {
  const auto sizes = x.sizes();
  STD_TORCH_CHECK(
      sizes.size() >= 2 && x.numel() > 0,
      "largebatch::ghost_norm: x must have at least 2 dimensions and a value");
  STD_TORCH_CHECK(
      is_supported(x.scalar_type()),
      "largebatch::ghost_norm: x must be float32, float64, float16 or bfloat16");
  STD_TORCH_CHECK(
      policy >= 0 && policy <= 2 && (policy != 2 || top >= 1),
      "largebatch::ghost_norm: policy must be 0 (L2), 1 (L1) or 2 (top-k with k of at least 1)");
  STD_TORCH_CHECK(
      ghost_size >= 1 && full >= 0 && full * ghost_size <= sizes[0],
      "largebatch::ghost_norm: ", full, " ghosts of ", ghost_size, " samples do not fit a batch of ",
      sizes[0]);
  for (const auto* parameter : {&weight, &bias}) {
    if (!*parameter) continue;
    STD_TORCH_CHECK(
        (*parameter)->scalar_type() == accumulate_type(x.scalar_type()) &&
            (*parameter)->numel() == sizes[1] && (*parameter)->is_contiguous(),
        "largebatch::ghost_norm: weight and bias must be contiguous, with a value a channel, and "
        "float64 for float64 x, else float32");
  }
  int64_t length = 1;
  for (size_t dim = 2; dim < sizes.size(); ++dim) length *= sizes[dim];
  bool planar = length > 1 && x.is_contiguous();
  if (!planar && !is_rows(x)) {
    x = torch::stable::contiguous(x);
    planar = length > 1;
  }
  return {planar, sizes[0], sizes[1], length, ghost_size, full};
}

// `other`, of the shape and type of `x`, in its layout.
inline Tensor in_layout_of(const Tensor& other, const Tensor& x, const char* name) {
  STD_TORCH_CHECK(
      same_sizes(other, x) && other.scalar_type() == x.scalar_type(),
      "largebatch::ghost_norm: ", name, " must have the shape and type of x");
  if (same_order(other, x)) return other;
  Tensor copy = torch::stable::empty_like(x);
  torch::stable::copy_(copy, other);
  return copy;
}

// Checks what a forward has kept for its backward.
inline void check_saved(
    const Tensor& x,
    const Tensor& statistics,
    const Tensor& mask,
    const NormLayout& at,
    int64_t policy) {
  STD_TORCH_CHECK(
      statistics.is_contiguous() && statistics.scalar_type() == accumulate_type(x.scalar_type()) &&
          statistics.numel() == (policy == 2 ? 3 : 2) * at.ghosts() * at.channels,
      "largebatch::ghost_norm_backward: statistics are not those of the forward");
  STD_TORCH_CHECK(
      mask.is_contiguous() && mask.scalar_type() == ScalarType::Byte &&
          (mask.numel() == 0 || mask.numel() == at.mask_rows() * at.mask_row()),
      "largebatch::ghost_norm_backward: the mask is not that of the forward");
}

}  // namespace largebatch
