// Launches of the CUDA kernels that sum.

#pragma once

#include "norm/cuda_cut.h"
#include "norm/cuda_sums.h"

namespace largebatch {

inline int64_t partials_of(const NormLayout& at, const Cut& cut) {
  constexpr int64_t kMost = outputs_of(Sums::kGradientTop);
  return cut.parts == 1 ? 0 : kMost * cut.parts * at.ghosts() * at.channels;
}

// Counters that follow the partials: of the tiles, those of a second step, and the blocks' numbers.
inline int64_t counters_of(const NormLayout& at, const Cut& cut) {
  return 2 * at.ghosts() * cut.tiles + 1;
}

template <Sums What, typename T>
void launch_sums(
    const NormLayout& at,
    const T* x,
    const T* grad,
    const uint8_t* mask,
    double* partial,
    const Finish<typename Accumulate<T>::type>& finish,
    cudaStream_t stream) {
  const Cut cut = cut_sums(at);
  auto* const counts = reinterpret_cast<unsigned int*>(partial + partials_of(at, cut));
  if (cut.parts > 1) {
    cudaMemsetAsync(counts, 0, at.ghosts() * cut.tiles * sizeof(unsigned int), stream);
  }
  const Summed<T> of{x, grad, mask, partial, counts, finish};
  choose_access<T>(access_of<T>(at, {x, grad, finish.known}), [&](auto by) {
    constexpr Access kBy = decltype(by)::value;
    if (at.planar) {
      launch(sum_planar_kernel<T, What, kBy>, grid_of(at, cut, stream), at, cut, of);
    } else if constexpr (kBy != Access::kAcross) {
      launch(sum_rows_kernel<T, What, kBy>, grid_of(at, cut, stream), at, cut, of);
    }
  });
}

}  // namespace largebatch
