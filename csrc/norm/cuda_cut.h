// How the CUDA kernels of the batch norm family are cut into blocks, and how they reach memory: the
// heuristics, on the host.

#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "common/dispatch.cuh"
#include "common/launch.cuh"
#include "norm/cuda.h"
#include "norm/cuda_units.h"

namespace largebatch {

// Blocks that keep any of today's chips busy; fixed numbers, so that sums do not depend on the
// chip.
constexpr int64_t kSumBlocks = 1024;
constexpr int64_t kElementBlocks = 2048;
// Units of a thread that sums, below which more blocks would cost more than they bring.
constexpr int64_t kSumUnits = 8;
// Threads along channels in the sums: 256 bytes of 16-bit values. More would leave less threads to
// add up the parts of a channel.
constexpr int kSumLanes = 16;

inline int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

inline int64_t most_periods(const NormLayout& at) {
  return periods_of(at, std::max(at.full > 0 ? at.ghost_size : 0, at.size(at.ghosts() - 1)));
}

inline int parts_for(int64_t wanted, int64_t most) {
  return static_cast<int>(std::max<int64_t>(1, std::min(wanted, most)));
}

inline Cut cut_sums(const NormLayout& at) {
  Cut cut{1, 1, 1};
  const int64_t periods = most_periods(at), units = row_units_of(at);
  int64_t most;
  if (at.planar) {
    cut.lanes = periods * units < 64 * 32 ? 32 : kThreads;
    cut.tiles = static_cast<int>(divide_up(at.channels, kThreads / cut.lanes));
    most = std::min(periods, periods * units / (cut.lanes * kSumUnits));
  } else {
    while (cut.lanes < kSumLanes && cut.lanes < units) cut.lanes *= 2;
    cut.tiles = static_cast<int>(divide_up(units, cut.lanes));
    most = periods * cut.lanes / (kThreads * kSumUnits);
  }
  cut.parts = parts_for(kSumBlocks / (at.ghosts() * cut.tiles), most);
  return cut;
}

// With `halo`, every warp has a unit of the next one's.
inline Cut cut_elements(const NormLayout& at, Access by, bool halo) {
  Cut cut{halo ? 32 : 1, 1, 1};
  const int64_t periods = most_periods(at);
  const int64_t threads = halo ? divide_up(units_of(at, by), 31) * 32 : units_of(at, by);
  // Four units a thread at least, where there are some.
  const auto is_wide = [&] {
    return cut.lanes >= threads || cut.lanes >= kThreads ||
        (cut.lanes >= 32 && periods * cut.lanes >= 4 * kThreads);
  };
  while (!is_wide()) cut.lanes *= 2;
  cut.tiles = static_cast<int>(divide_up(threads, cut.lanes));
  cut.parts = parts_for(
      kElementBlocks / (at.ghosts() * cut.tiles), periods * cut.lanes / (4 * kThreads));
  return cut;
}

inline Grid grid_of(const NormLayout& at, const Cut& cut, cudaStream_t stream) {
  return {static_cast<unsigned int>(at.ghosts() * cut.tiles * cut.parts), kThreads, stream};
}

inline bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// float64 is here to check the other types: by values, which saves a third of the kernels.
template <typename T>
Access access_of(const NormLayout& at, std::initializer_list<const void*> pointers) {
  if (sizeof(T) == 8 || !std::all_of(pointers.begin(), pointers.end(), is_aligned)) {
    return Access::kValues;
  }
  if (at.row_length() % kUnit == 0) return Access::kUnits;
  const bool across = at.planar && at.length > kUnit && period_of(at) % kUnit == 0 &&
      period_of(at) < int64_t(1) << 32;
  return across ? Access::kAcross : Access::kValues;
}

// Calls `body(by)` with a compile-time constant.
template <typename T, class Body>
void choose_access(Access by, const Body& body) {
  if constexpr (sizeof(T) < 8) {
    if (by == Access::kUnits) {
      return body(std::integral_constant<Access, Access::kUnits>{});
    }
    if (by == Access::kAcross) {
      return body(std::integral_constant<Access, Access::kAcross>{});
    }
  }
  body(std::integral_constant<Access, Access::kValues>{});
}

}  // namespace largebatch
