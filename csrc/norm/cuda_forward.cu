// Launches of the CUDA kernels of the batch norm family's forward: sums, then what they normalize.

#include "norm/cuda_elements.h"
#include "norm/cuda_launch_sums.h"
#include "norm/cuda_slab_cut.h"
#include "norm/cuda_slab_launch.h"
#include "norm/cuda_spread.h"

namespace largebatch {
namespace {

template <typename T>
void normalize(const NormLayout& at, const Normalized<T>& of, cudaStream_t stream) {
  const Access by = access_of<T>(at, {of.x, of.residual, of.y, of.coefficients});
  const Cut cut = cut_elements(at, by, by == Access::kAcross && of.mask != nullptr);
  choose_access<T>(by, [&](auto constant) {
    launch(
        normalize_kernel<T, decltype(constant)::value>, grid_of(at, cut, stream), at, cut, of);
  });
}

// The mean, and the spread that hangs on it.
template <NormPolicy Policy, typename T>
void launch_spread(
    const NormLayout& at,
    const T* x,
    double* partial,
    const Finish<typename Accumulate<T>::type>& finish,
    cudaStream_t stream) {
  const Cut cut = cut_sums(at);
  auto* const counts = reinterpret_cast<unsigned int*>(partial + partials_of(at, cut));
  auto* const later = counts + at.ghosts() * cut.tiles;
  auto mean_alone = finish;
  mean_alone.coefficients = nullptr;
  const Spread<T> of{
      {x, nullptr, nullptr, partial, counts, mean_alone},
      {x, nullptr, nullptr, partial, later, finish},
      later + at.ghosts() * cut.tiles};
  cudaMemsetAsync(counts, 0, counters_of(at, cut) * sizeof(unsigned int), stream);
  Grid grid = grid_of(at, cut, stream);
  choose_access<T>(access_of<T>(at, {x, finish.known}), [&](auto by) {
    constexpr Access kBy = decltype(by)::value;
    if (at.planar) {
      grid.blocks += spread_blocks<Policy, true>(at, cut);
      launch(spread_kernel<T, Policy, true, kBy>, grid, at, cut, of);
    } else if constexpr (kBy != Access::kAcross) {
      grid.blocks += spread_blocks<Policy, false>(at, cut);
      launch(spread_kernel<T, Policy, false, kBy>, grid, at, cut, of);
    }
  });
}

template <typename T>
const char* forward(const NormForwardCall& call, cudaStream_t stream) {
  using Acc = typename Accumulate<T>::type;
  const NormLayout& at = call.at;
  const auto* const x = static_cast<const T*>(call.x);
  auto* const statistics = static_cast<Acc*>(call.statistics);
  auto* const coefficients = static_cast<Acc*>(call.coefficients);
  const Finish<Acc> finish{
      call.policy, call.top, call.eps, static_cast<const Acc*>(call.weight),
      static_cast<const Acc*>(call.bias), statistics, statistics, coefficients, nullptr};
  if (call.policy == NormPolicy::kL2) {
    launch_sums<Sums::kMoments, T>(at, x, nullptr, nullptr, call.partial, finish, stream);
  } else if (call.policy == NormPolicy::kL1) {
    launch_spread<NormPolicy::kL1, T>(at, x, call.partial, finish, stream);
  } else if (call.top == 1) {
    launch_sums<Sums::kExtremes, T>(at, x, nullptr, nullptr, call.partial, finish, stream);
  } else {
    launch_spread<NormPolicy::kTopK, T>(at, x, call.partial, finish, stream);
  }
  normalize<T>(
      at, {x, static_cast<const T*>(call.residual), coefficients, static_cast<T*>(call.y), call.mask},
      stream);
  return launch_error();
}

}  // namespace

int64_t norm_partials(const NormLayout& at) {
  const Cut cut = cut_sums(at);
  const int64_t usual = partials_of(at, cut) + divide_up(counters_of(at, cut), 2);
  return std::max(usual, slab_partials(at));
}

const char* launch_norm_forward(const NormForwardCall& call, void* stream) {
  if (launch_slab_forward(call, stream)) return launch_error();
  return dispatch(call.element, [&](auto typed) {
    return forward<decltype(typed)>(call, static_cast<cudaStream_t>(stream));
  });
}

const char* launch_norm_moments(const NormMomentsCall& call, void* stream) {
  return dispatch(call.element, [&](auto typed) {
    using T = decltype(typed);
    using Acc = typename Accumulate<T>::type;
    const Finish<Acc> finish{
        NormPolicy::kL2, 1, 0.0, nullptr, nullptr, static_cast<const Acc*>(call.center),
        static_cast<Acc*>(call.statistics), nullptr, nullptr};
    const auto* const x = static_cast<const T*>(call.x);
    const auto queue = static_cast<cudaStream_t>(stream);
    if (call.center == nullptr) {
      launch_sums<Sums::kMoments, T>(call.at, x, nullptr, nullptr, call.partial, finish, queue);
    } else {
      launch_sums<Sums::kAbsolute, T>(call.at, x, nullptr, nullptr, call.partial, finish, queue);
    }
    return launch_error();
  });
}

const char* launch_norm_apply(const NormApplyCall& call, void* stream) {
  return dispatch(call.element, [&](auto typed) {
    using T = decltype(typed);
    using Acc = typename Accumulate<T>::type;
    normalize<T>(
        call.at,
        {static_cast<const T*>(call.x), static_cast<const T*>(call.residual),
         static_cast<const Acc*>(call.coefficients), static_cast<T*>(call.y), call.mask},
        static_cast<cudaStream_t>(stream));
    return launch_error();
  });
}

}  // namespace largebatch
