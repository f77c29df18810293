// Launcher of the CUDA kernel of `sum_shards`, free of torch's headers.

#pragma once

#include <cstddef>
#include <cstdint>

#include "common/element.h"

namespace largebatch {

constexpr size_t kMostShards = 448;  // their addresses travel in the kernel's arguments (4 KiB)

// The number of pairs of partial sums of squares for `length` elements of `out`.
int64_t shard_partials(int64_t length);

// Writes the sums over `divisor` to `out`, which has the shards' type or is a narrower one; with
// `partial`, room for `shard_partials` pairs, also the two sums of squares to `squares`.
struct SumShardsCall {
  Element in, to;
  const void* const* shards;
  size_t count;
  void* out;
  int64_t length;
  int64_t divisor;
  double* partial;
  double* squares;
};

const char* launch_sum_shards(const SumShardsCall& call, void* stream);

}  // namespace largebatch
