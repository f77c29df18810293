// Launches of the CUDA kernels of the batch norm family: how the work is cut, and in which order.

#include <algorithm>

#include "common/launch.cuh"
#include "norm/cuda.h"
#include "norm/cuda_elements.h"
#include "norm/cuda_sums.h"
#include "norm/cuda_top.h"

namespace largebatch {
namespace {

// Blocks that keep any of today's chips busy; a fixed number, so that sums do not depend on it.
constexpr int64_t kBlocks = 1024;
constexpr int64_t kElementBlocks = 4096;

Parts cut_of(const NormLayout& at) {
  Parts cut{1, 1, 1};
  const int64_t ghosts = at.ghosts();
  int64_t longest = 0;  // of what is cut into parts, in a ghost
  if (at.planar) {
    cut.tiles = static_cast<int>(at.channels);
    longest = std::max(at.full > 0 ? at.ghost_size : 0, at.size(ghosts - 1));
  } else {
    const int64_t units = (at.channels + kUnit - 1) / kUnit;
    while (cut.lanes < 32 && cut.lanes < units) cut.lanes *= 2;
    cut.tiles = static_cast<int>((units + cut.lanes - 1) / cut.lanes);
    const int64_t rows = std::max(at.full > 0 ? at.ghost_size : 0, at.size(ghosts - 1)) * at.length;
    longest = std::max<int64_t>(1, rows * cut.lanes / kThreads / 4);
  }
  const int64_t wanted = kBlocks / std::max<int64_t>(1, ghosts * cut.tiles);
  cut.parts = static_cast<int>(std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, longest)));
  return cut;
}

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

unsigned int blocks_for(int64_t threads) {
  return static_cast<unsigned int>((threads + kThreads - 1) / kThreads);
}

unsigned int element_blocks(const NormLayout& at) {
  const int64_t units = at.mask_rows() * at.mask_row();
  return static_cast<unsigned int>(
      std::min<int64_t>(kElementBlocks, (units + kThreads - 1) / kThreads));
}

// Calls `body(planar, vector)` with compile-time constants.
template <class Body>
void choose(bool planar, bool vector, const Body& body) {
  using True = std::true_type;
  using False = std::false_type;
  if (planar) {
    vector ? body(True{}, True{}) : body(True{}, False{});
  } else {
    vector ? body(False{}, True{}) : body(False{}, False{});
  }
}

template <Sums What, typename T, typename Acc>
void sum(
    const NormLayout& at,
    bool vector,
    const T* x,
    const T* grad,
    const uint8_t* mask,
    const Acc* means,
    double* partial,
    cudaStream_t stream) {
  const Parts cut = cut_of(at);
  const auto blocks = static_cast<unsigned int>(at.ghosts() * cut.tiles * cut.parts);
  choose(at.planar, vector, [&](auto planar, auto by_vector) {
    launch(
        sum_kernel<T, What, decltype(planar)::value, decltype(by_vector)::value>,
        {blocks, kThreads, stream}, at, cut, x, grad, mask, means, partial);
  });
}

// Fills (2, ghosts, channels): mean and variance, or `center` and the mean absolute deviation.
template <typename T, typename Acc>
void moments(
    const NormLayout& at,
    const T* x,
    const Acc* center,
    double* partial,
    Acc* statistics,
    cudaStream_t stream) {
  const bool vector = at.row_length() % kUnit == 0 && is_aligned(x);
  const unsigned int blocks = blocks_for(at.ghosts() * at.channels);
  const int parts = cut_of(at).parts;
  if (center == nullptr) {
    sum<Sums::kMoments, T, Acc>(at, vector, x, nullptr, nullptr, nullptr, partial, stream);
    launch(
        finish_kernel<T, Sums::kMoments>, {blocks, kThreads, stream}, at, parts, x, nullptr,
        partial, statistics);
  } else {
    sum<Sums::kAbsolute, T, Acc>(at, vector, x, nullptr, nullptr, center, partial, stream);
    launch(
        finish_kernel<T, Sums::kAbsolute>, {blocks, kThreads, stream}, at, parts, x, center,
        partial, statistics);
  }
}

template <typename T, typename Acc>
void apply(
    const NormLayout& at,
    const T* x,
    const T* residual,
    const Acc* coefficients,
    T* y,
    uint8_t* mask,
    cudaStream_t stream) {
  const bool vector = at.row_length() % kUnit == 0 && is_aligned(x) && is_aligned(residual) &&
      is_aligned(y);
  choose(at.planar, vector, [&](auto planar, auto by_vector) {
    launch(
        normalize_kernel<T, decltype(planar)::value, decltype(by_vector)::value>,
        {element_blocks(at), kThreads, stream}, at, x, residual, coefficients, y, mask);
  });
}

template <typename T>
const char* forward(const NormForward& call, cudaStream_t stream) {
  using Acc = typename Accumulate<T>::type;
  const NormLayout& at = call.at;
  const auto* const x = static_cast<const T*>(call.x);
  const auto* const residual = static_cast<const T*>(call.residual);
  auto* const statistics = static_cast<Acc*>(call.statistics);
  auto* const coefficients = static_cast<Acc*>(call.coefficients);
  const int64_t all = at.ghosts() * at.channels;
  moments<T, Acc>(at, x, nullptr, call.partial, statistics, stream);
  if (call.policy == NormPolicy::kL1) {
    moments<T, Acc>(at, x, statistics, call.partial, statistics, stream);
  } else if (call.policy == NormPolicy::kTopK) {
    launch(
        top_kernel<T>, {static_cast<unsigned int>(all), kThreads, stream}, at, call.top, x,
        statistics);
  }
  launch(
      coefficient_kernel<Acc>, {blocks_for(all), kThreads, stream}, at, call.policy, call.eps,
      statistics, static_cast<const Acc*>(call.weight), static_cast<const Acc*>(call.bias),
      coefficients);
  apply<T, Acc>(at, x, residual, coefficients, static_cast<T*>(call.y), call.mask, stream);
  return launch_error();
}

// Fills `partial` with the sums of every part and `counts` with those of top-k.
template <typename T, typename Acc>
void gradient_sums(
    const NormLayout& at,
    NormPolicy policy,
    const T* grad,
    const T* x,
    const uint8_t* mask,
    const Acc* statistics,
    double* partial,
    double* counts,
    cudaStream_t stream) {
  const bool vector = at.row_length() % kUnit == 0 && is_aligned(x) && is_aligned(grad);
  sum<Sums::kGradient, T, Acc>(at, vector, x, grad, mask, statistics, partial, stream);
  if (policy == NormPolicy::kTopK) {
    const auto blocks = static_cast<unsigned int>(at.ghosts() * at.channels);
    launch(count_top_kernel<T>, {blocks, kThreads, stream}, at, x, statistics, counts);
  }
}

double* counts_after(double* partial, const NormLayout& at) {
  return partial + 3 * int64_t(cut_of(at).parts) * at.ghosts() * at.channels;
}

template <NormPolicy Policy, typename T, typename Acc>
void gradients_by(
    const NormLayout& at,
    const T* grad,
    const T* x,
    const uint8_t* mask,
    const Acc* means,
    const Acc* coefficients,
    T* dx,
    T* dresidual,
    cudaStream_t stream) {
  const bool vector = at.row_length() % kUnit == 0 && is_aligned(x) && is_aligned(grad) &&
      is_aligned(dx) && is_aligned(dresidual);
  choose(at.planar, vector, [&](auto planar, auto by_vector) {
    launch(
        gradient_kernel<T, Policy, decltype(planar)::value, decltype(by_vector)::value>,
        {element_blocks(at), kThreads, stream}, at, grad, x, mask, means, coefficients, dx,
        dresidual);
  });
}

template <typename T, typename Acc, typename... Arguments>
void gradients(NormPolicy policy, Arguments... arguments) {
  switch (policy) {
    case NormPolicy::kL2: return gradients_by<NormPolicy::kL2, T, Acc>(arguments...);
    case NormPolicy::kL1: return gradients_by<NormPolicy::kL1, T, Acc>(arguments...);
    default: return gradients_by<NormPolicy::kTopK, T, Acc>(arguments...);
  }
}

template <typename T>
const char* backward(const NormBackward& call, cudaStream_t stream) {
  using Acc = typename Accumulate<T>::type;
  const NormLayout& at = call.at;
  const auto* const x = static_cast<const T*>(call.x);
  const auto* const grad = static_cast<const T*>(call.grad);
  const auto* const statistics = static_cast<const Acc*>(call.statistics);
  auto* const coefficients = static_cast<Acc*>(call.coefficients);
  double* const counts = counts_after(call.partial, at);
  gradient_sums<T, Acc>(
      at, call.policy, grad, x, call.mask, statistics, call.partial, counts, stream);
  launch(
      gradient_term_kernel<Acc>, {blocks_for(at.ghosts() * at.channels), kThreads, stream}, at,
      call.policy, call.top, call.eps, cut_of(at).parts, call.partial, counts, statistics,
      static_cast<const Acc*>(call.weight), coefficients, static_cast<Acc*>(call.sums));
  gradients<T, Acc>(
      call.policy, at, grad, x, call.mask, statistics, static_cast<const Acc*>(coefficients),
      static_cast<T*>(call.dx), static_cast<T*>(call.dresidual), stream);
  return launch_error();
}

// Calls `body` with a null pointer of the element's type.
template <class Body>
const char* dispatch(NormElement element, const Body& body) {
  switch (element) {
    case NormElement::kFloat: return body(static_cast<float*>(nullptr));
    case NormElement::kDouble: return body(static_cast<double*>(nullptr));
    case NormElement::kHalf: return body(static_cast<__half*>(nullptr));
    default: return body(static_cast<__nv_bfloat16*>(nullptr));
  }
}

}  // namespace

int64_t norm_partials(const NormLayout& at) {
  return (3 * int64_t(cut_of(at).parts) + 4) * at.ghosts() * at.channels;
}

const char* launch_norm_forward(NormElement element, const NormForward& call, void* stream) {
  return dispatch(element, [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    return forward<T>(call, static_cast<cudaStream_t>(stream));
  });
}

const char* launch_norm_backward(NormElement element, const NormBackward& call, void* stream) {
  return dispatch(element, [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    return backward<T>(call, static_cast<cudaStream_t>(stream));
  });
}

const char* launch_norm_moments(
    NormElement element,
    const NormLayout& at,
    const void* x,
    const void* center,
    double* partial,
    void* statistics,
    void* stream) {
  return dispatch(element, [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    using Acc = typename Accumulate<T>::type;
    moments<T, Acc>(
        at, static_cast<const T*>(x), static_cast<const Acc*>(center), partial,
        static_cast<Acc*>(statistics), static_cast<cudaStream_t>(stream));
    return launch_error();
  });
}

const char* launch_norm_apply(
    NormElement element,
    const NormLayout& at,
    const void* x,
    const void* residual,
    const void* coefficients,
    void* y,
    uint8_t* mask,
    void* stream) {
  return dispatch(element, [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    using Acc = typename Accumulate<T>::type;
    apply<T, Acc>(
        at, static_cast<const T*>(x), static_cast<const T*>(residual),
        static_cast<const Acc*>(coefficients), static_cast<T*>(y), mask,
        static_cast<cudaStream_t>(stream));
    return launch_error();
  });
}

const char* launch_norm_gradient_sums(
    NormElement element,
    const NormLayout& at,
    NormPolicy policy,
    const void* grad,
    const void* x,
    const uint8_t* mask,
    const void* statistics,
    double* partial,
    void* sums,
    void* stream) {
  return dispatch(element, [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    using Acc = typename Accumulate<T>::type;
    const auto queue = static_cast<cudaStream_t>(stream);
    double* const counts = counts_after(partial, at);
    gradient_sums<T, Acc>(
        at, policy, static_cast<const T*>(grad), static_cast<const T*>(x), mask,
        static_cast<const Acc*>(statistics), partial, counts, queue);
    launch(
        finish_gradient_sums_kernel<Acc>,
        {blocks_for(at.ghosts() * at.channels), kThreads, queue}, at, policy, cut_of(at).parts,
        partial, counts, static_cast<Acc*>(sums));
    return launch_error();
  });
}

const char* launch_norm_gradient(
    NormElement element,
    const NormLayout& at,
    NormPolicy policy,
    const void* grad,
    const void* x,
    const uint8_t* mask,
    const void* coefficients,
    void* dx,
    void* dresidual,
    void* stream) {
  return dispatch(element, [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    using Acc = typename Accumulate<T>::type;
    const auto* const means = static_cast<const Acc*>(coefficients);
    gradients<T, Acc>(
        policy, at, static_cast<const T*>(grad), static_cast<const T*>(x), mask, means,
        means + at.channels, static_cast<T*>(dx), static_cast<T*>(dresidual),
        static_cast<cudaStream_t>(stream));
    return launch_error();
  });
}

}  // namespace largebatch
