// Launches of the CUDA kernels that read a ghost once.

#include "norm/cuda_slab.h"
#include "norm/cuda_slab_launch.h"

namespace largebatch {
namespace {

// How a kernel is launched; `blocks` is 0 where a slab does not fit.
struct SlabLaunch {
  SlabCut cut;
  Grid grid;
};

// `tensors` are those of which a slab holds the values.
template <typename T, typename Kernel>
SlabLaunch slab_launch(
    const NormLayout& at, Kernel kernel, int lanes, int tensors, cudaStream_t stream) {
  SlabLaunch found{{}, {0, kThreads, stream}};
  const int64_t room = shared_of_multiprocessor() / kSlabBlocksAtOnce - kSlabStatic;
  if (room < kSlabSmallest) return found;
  const int64_t bytes = tensors * sizeof(Unit<T>);
  found.cut = cut_slab(at, lanes, bytes, room);
  if (found.cut.blocks == 0) return found;
  found.grid.shared = room / (kThreads * bytes) * (kThreads * bytes);
  const int64_t slabs = at.ghosts() * found.cut.tiles;
  const int64_t most = blocks_at_once(kernel, kThreads, found.grid.shared);
  found.grid.blocks = static_cast<unsigned int>(
      std::min(slabs, most / found.cut.blocks) * found.cut.blocks);
  return found;
}

unsigned int* cleared_counts(
    double* partial, int outputs, const NormLayout& at, const SlabLaunch& launch, int meetings) {
  auto* const counts = reinterpret_cast<unsigned int*>(
      partial + outputs * launch.cut.blocks * at.ghosts() * at.channels);
  cudaMemsetAsync(
      counts, 0, meetings * at.ghosts() * launch.cut.tiles * sizeof(unsigned int),
      launch.grid.stream);
  return counts;
}

template <typename T>
bool forward(const NormForwardCall& call, cudaStream_t stream) {
  using Acc = typename Accumulate<T>::type;
  const NormLayout& at = call.at;
  const auto kernel = slab_forward_kernel<T>;
  const SlabLaunch launch = slab_launch<T>(at, kernel, kSlabLanes, 1, stream);
  if (launch.grid.blocks == 0) return false;
  const Finish<Acc> finish{
      call.policy, call.top, call.eps, static_cast<const Acc*>(call.weight),
      static_cast<const Acc*>(call.bias), nullptr, static_cast<Acc*>(call.statistics), nullptr,
      nullptr};
  const SlabForward<T> of{
      static_cast<const T*>(call.x), static_cast<const T*>(call.residual),
      static_cast<T*>(call.y), call.mask, call.partial,
      cleared_counts(call.partial, 3, at, launch, 2), finish};
  launch_together(kernel, launch.grid, at, launch.cut, of);
  return true;
}

template <NormPolicy Policy, typename T>
bool backward(const NormBackwardCall& call, cudaStream_t stream) {
  using Acc = typename Accumulate<T>::type;
  const NormLayout& at = call.at;
  const auto kernel = slab_backward_kernel<T, Policy>;
  const SlabLaunch launch = slab_launch<T>(at, kernel, kSlabGradientLanes, 2, stream);
  if (launch.grid.blocks == 0) return false;
  const Finish<Acc> finish{
      call.policy, call.top, call.eps, static_cast<const Acc*>(call.weight), nullptr,
      static_cast<const Acc*>(call.statistics), nullptr, nullptr, static_cast<Acc*>(call.sums)};
  const SlabBackward<T> of{
      static_cast<const T*>(call.grad), static_cast<const T*>(call.x), call.mask,
      static_cast<T*>(call.dx), static_cast<T*>(call.dresidual), call.partial,
      cleared_counts(call.partial, 3, at, launch, 1), finish};
  launch_together(kernel, launch.grid, at, launch.cut, of);
  return true;
}

// Whether the call is one for slabs: see cuda_slab_cut.h.
template <typename T>
bool is_for_slabs(
    const NormLayout& at, NormPolicy policy, std::initializer_list<const void*> pointers) {
  return wants_slabs() && policy != NormPolicy::kTopK && !at.planar &&
      access_of<T>(at, pointers) == Access::kUnits;
}

}  // namespace

bool launch_slab_forward(const NormForwardCall& call, void* stream) {
  return dispatch(call.element, [&](auto typed) {
    using T = decltype(typed);
    if constexpr (sizeof(T) <= 4) {
      return is_for_slabs<T>(call.at, call.policy, {call.x, call.residual, call.y}) &&
          forward<T>(call, static_cast<cudaStream_t>(stream));
    }
    return false;
  });
}

bool launch_slab_backward(const NormBackwardCall& call, void* stream) {
  return dispatch(call.element, [&](auto typed) {
    using T = decltype(typed);
    if constexpr (sizeof(T) <= 4) {
      const auto queue = static_cast<cudaStream_t>(stream);
      const bool fits = is_for_slabs<T>(
          call.at, call.policy, {call.grad, call.x, call.dx, call.dresidual, call.statistics});
      if (!fits) return false;
      return call.policy == NormPolicy::kL2 ? backward<NormPolicy::kL2, T>(call, queue)
                                            : backward<NormPolicy::kL1, T>(call, queue);
    }
    return false;
  });
}

}  // namespace largebatch
