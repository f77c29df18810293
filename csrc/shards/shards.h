// Sums over what the ranks of one axis of a torus sent.

#pragma once

#include "common/memory.h"

namespace largebatch {

Tensor sum_shards_cpu(TensorList shards, Tensor out, int64_t divisor, bool squares);
Tensor sum_shards_cuda(TensorList shards, Tensor out, int64_t divisor, bool squares);

inline bool is_whole(ScalarType type) {
  return type == ScalarType::Byte || type == ScalarType::Char || type == ScalarType::Short ||
      type == ScalarType::Int || type == ScalarType::Long;
}

inline void check_shards(const TensorList& shards, const Tensor& out, int64_t divisor) {
  STD_TORCH_CHECK(!shards.empty() && divisor > 0, "largebatch::sum_shards: no shard or divisor");
  const ScalarType in = shards[0].scalar_type(), to = out.scalar_type();
  STD_TORCH_CHECK(
      in == to ? is_supported(in) || is_whole(in) || in == ScalarType::Bool
               : in == ScalarType::Float && (to == ScalarType::Half || to == ScalarType::BFloat16),
      "largebatch::sum_shards: shards and out must have one type, or be float32 and a 16-bit type");
  STD_TORCH_CHECK(out.is_contiguous(), "largebatch::sum_shards: out must be contiguous");
  for (const Tensor& shard : shards) {
    STD_TORCH_CHECK(
        shard.is_contiguous() && shard.scalar_type() == in && same_sizes(shard, out),
        "largebatch::sum_shards: shards must be contiguous and have one type and shape");
  }
  // `out` may be one of the shards, but not a part of it or beside it.
  Footprint footprint("largebatch::sum_shards");
  footprint.writes(out);
  for (const Tensor& shard : shards) {
    if (shard.scalar_type() != out.scalar_type() || shard.const_data_ptr() != out.const_data_ptr()) {
      footprint.reads(shard);
    } else {
      check_stored("largebatch::sum_shards", shard);
    }
  }
  footprint.check();
}

}  // namespace largebatch
