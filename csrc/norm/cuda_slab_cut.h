// When the batch norms go by slabs (cuda_slab.h), and how these are cut: heuristics.
//
// A slab is what a ghost has of a few channels. It is spread over the shared memory of several
// blocks, which wait for each other, so all blocks of a launch must run at once. That holds where
// channels vary fastest, in multiples of eight aligned values of at most four bytes, for L2 and L1,
// if a slab's blocks are at most as many as the device runs at once. Else, and unless
// LARGEBATCH_NORM_SLABS=1 is set, the norms go by sums of their own (cuda_sums.h): no GPU has run
// the slabs yet.

#pragma once

#include <cstdlib>
#include <cstring>

#include "norm/cuda_cut.h"

namespace largebatch {

// Threads along channels: 128 bytes of 16-bit values in the forward, 64 in the backward, whose
// slabs have a second tensor.
constexpr int kSlabLanes = 8;
constexpr int kSlabGradientLanes = 4;
// Static shared memory of a block, and what the device keeps for itself.
constexpr int64_t kSlabStatic = (kThreads + 1) * kUnit * 8 + 5 * kUnit * kSlabLanes * 4 + 2048;
// Two blocks a multiprocessor: one loads while the other computes.
constexpr int64_t kSlabBlocksAtOnce = 2;
// Bytes of a block below which slabs are not worth it: a unit of each of two float32 tensors a
// thread.
constexpr int64_t kSlabSmallest = 2 * kUnit * 4 * kThreads;

struct SlabCut {
  int lanes, tiles;
  int blocks;  // of a slab
};

inline bool wants_slabs() {
  const char* const wish = std::getenv("LARGEBATCH_NORM_SLABS");
  return wish != nullptr && std::strcmp(wish, "1") == 0;
}

inline SlabCut cut_slab(const NormLayout& at, int most_lanes, int64_t bytes_of_unit, int64_t room) {
  SlabCut cut{1, 1, 1};
  const int64_t units = row_units_of(at);
  while (cut.lanes < most_lanes && cut.lanes < units) cut.lanes *= 2;
  cut.tiles = static_cast<int>(divide_up(units, cut.lanes));
  // A thread has the same number of units as the others, or one less.
  const int64_t lines = kThreads / cut.lanes, fit = room / (kThreads * bytes_of_unit);
  cut.blocks = static_cast<int>(
      fit == 0 ? 0 : divide_up(divide_up(most_periods(at), lines), fit));
  return cut;
}

// Doubles that the blocks of all slabs exchange, and their counters, for any device.
inline int64_t slab_partials(const NormLayout& at) {
  if (!wants_slabs() || at.planar) return 0;
  const SlabCut cut = cut_slab(at, kSlabGradientLanes, kSlabSmallest / kThreads, kSlabSmallest);
  return at.ghosts() * (3 * cut.blocks * at.channels + cut.tiles);
}

}  // namespace largebatch
