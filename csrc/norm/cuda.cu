// Launches of the CUDA kernels of the batch norm family: how the work is cut, and in which order.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "norm/cuda.h"

namespace largebatch {
namespace {

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }
__device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ __forceinline__ void narrow(float value, float& out) { out = value; }
__device__ __forceinline__ void narrow(double value, double& out) { out = value; }
__device__ __forceinline__ void narrow(float value, __half& out) { out = __float2half_rn(value); }
__device__ __forceinline__ void narrow(float value, __nv_bfloat16& out) {
  out = __float2bfloat16_rn(value);
}

}  // namespace
}  // namespace largebatch

#include "norm/cuda_kernels.h"

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

const char* last_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
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
    sum_kernel<T, What, decltype(planar)::value, decltype(by_vector)::value>
        <<<blocks, kThreads, 0, stream>>>(at, cut, x, grad, mask, means, partial);
  });
}

template <typename T>
const char* forward(const NormForward& call, cudaStream_t stream) {
  using Acc = typename Accumulate<T>::type;
  const NormLayout& at = call.at;
  const auto* const x = static_cast<const T*>(call.x);
  const auto* const residual = static_cast<const T*>(call.residual);
  auto* const y = static_cast<T*>(call.y);
  auto* const statistics = static_cast<Acc*>(call.statistics);
  auto* const coefficients = static_cast<Acc*>(call.coefficients);
  const int64_t all = at.ghosts() * at.channels;
  const bool vector = at.row_length() % kUnit == 0 && is_aligned(x) && is_aligned(residual) &&
      is_aligned(y);
  const Parts cut = cut_of(at);
  sum<Sums::kMoments, T, Acc>(at, vector, x, nullptr, nullptr, nullptr, call.partial, stream);
  finish_kernel<T, Sums::kMoments>
      <<<blocks_for(all), kThreads, 0, stream>>>(at, cut.parts, x, call.partial, statistics);
  if (call.policy == NormPolicy::kL1) {
    sum<Sums::kAbsolute, T, Acc>(
        at, vector, x, nullptr, nullptr, statistics, call.partial, stream);
    finish_kernel<T, Sums::kAbsolute>
        <<<blocks_for(all), kThreads, 0, stream>>>(at, cut.parts, x, call.partial, statistics);
  } else if (call.policy == NormPolicy::kTopK) {
    top_kernel<T><<<static_cast<unsigned int>(all), kThreads, 0, stream>>>(
        at, call.top, x, statistics);
  }
  coefficient_kernel<Acc><<<blocks_for(all), kThreads, 0, stream>>>(
      at, call.policy, call.eps, statistics, static_cast<const Acc*>(call.weight),
      static_cast<const Acc*>(call.bias), coefficients);
  choose(at.planar, vector, [&](auto planar, auto by_vector) {
    normalize_kernel<T, decltype(planar)::value, decltype(by_vector)::value>
        <<<element_blocks(at), kThreads, 0, stream>>>(
            at, x, residual, coefficients, y, call.mask);
  });
  return last_error();
}

template <typename T, NormPolicy Policy>
void gradients(const NormBackward& call, bool vector, cudaStream_t stream) {
  using Acc = typename Accumulate<T>::type;
  choose(call.at.planar, vector, [&](auto planar, auto by_vector) {
    gradient_kernel<T, Policy, decltype(planar)::value, decltype(by_vector)::value>
        <<<element_blocks(call.at), kThreads, 0, stream>>>(
            call.at, static_cast<const T*>(call.grad), static_cast<const T*>(call.x), call.mask,
            static_cast<const Acc*>(call.statistics), static_cast<const Acc*>(call.coefficients),
            static_cast<T*>(call.dx), static_cast<T*>(call.dresidual));
  });
}

template <typename T>
const char* backward(const NormBackward& call, cudaStream_t stream) {
  using Acc = typename Accumulate<T>::type;
  const NormLayout& at = call.at;
  const auto* const x = static_cast<const T*>(call.x);
  const auto* const grad = static_cast<const T*>(call.grad);
  const auto* const statistics = static_cast<const Acc*>(call.statistics);
  const int64_t all = at.ghosts() * at.channels;
  const bool vector = at.row_length() % kUnit == 0 && is_aligned(x) && is_aligned(grad) &&
      is_aligned(call.dx) && is_aligned(call.dresidual);
  const Parts cut = cut_of(at);
  sum<Sums::kGradient, T, Acc>(at, vector, x, grad, call.mask, statistics, call.partial, stream);
  double* const share_and_sign = call.partial + 3 * cut.parts * all;
  if (call.policy == NormPolicy::kTopK) {
    count_top_kernel<T><<<static_cast<unsigned int>(all), kThreads, 0, stream>>>(
        at, call.top, x, statistics, share_and_sign);
  }
  gradient_term_kernel<Acc><<<blocks_for(all), kThreads, 0, stream>>>(
      at, call.policy, call.top, call.eps, cut.parts, call.partial, share_and_sign, statistics,
      static_cast<const Acc*>(call.weight), static_cast<Acc*>(call.coefficients),
      static_cast<Acc*>(call.sums));
  switch (call.policy) {
    case NormPolicy::kL2: gradients<T, NormPolicy::kL2>(call, vector, stream); break;
    case NormPolicy::kL1: gradients<T, NormPolicy::kL1>(call, vector, stream); break;
    default: gradients<T, NormPolicy::kTopK>(call, vector, stream);
  }
  return last_error();
}

}  // namespace

int64_t norm_partials(const NormLayout& at) {
  return (3 * int64_t(cut_of(at).parts) + 2) * at.ghosts() * at.channels;
}

const char* launch_norm_forward(NormElement element, const NormForward& call, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  switch (element) {
    case NormElement::kFloat: return forward<float>(call, queue);
    case NormElement::kDouble: return forward<double>(call, queue);
    case NormElement::kHalf: return forward<__half>(call, queue);
    default: return forward<__nv_bfloat16>(call, queue);
  }
}

const char* launch_norm_backward(NormElement element, const NormBackward& call, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  switch (element) {
    case NormElement::kFloat: return backward<float>(call, queue);
    case NormElement::kDouble: return backward<double>(call, queue);
    case NormElement::kHalf: return backward<__half>(call, queue);
    default: return backward<__nv_bfloat16>(call, queue);
  }
}

}  // namespace largebatch
