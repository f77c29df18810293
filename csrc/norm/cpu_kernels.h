// What the CPU kernels of the batch norm family are called with, and the tables that hold them: one
// for each instruction set.

#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "norm/math.h"

namespace largebatch {

// The type that a tensor of T is computed in.
template <typename T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Channels of a planar block: enough that a sample's part is at least a page, where channels are short.
constexpr int kPlanarChannels = 64;
constexpr int64_t kPlanarElements = 1024;

// A few adjacent channels of one ghost batch whose values of a sample lie together: `stride` values
// from a sample to the next, `length` a channel.
struct PlanarAt {
  int64_t samples, stride, length;
  int64_t mask_row, mask_stride;
  int channels;
};

// How many deviations lie above the k-th largest and at it, and the sums of their signs.
struct TopCounts {
  double above = 0, equal = 0, above_sign = 0, equal_sign = 0;
};

// Coefficients of the gradient of a channel, or pointers to those of many.
template <typename Acc>
struct GradientCoefficients {
  const Acc* mean;
  const Acc* grad;
  const Acc* constant;
  const Acc* spread;
  const Acc* kth;
  const Acc* share;
};

// cpu_planar.h and cpu_rows.h say what each does.
template <typename T>
struct NormKernels {
  using Acc = Wide<T>;
  void (*planar_moments)(const PlanarAt& at, const T* x, Acc* mean, Acc* variance);
  void (*planar_absolute)(const PlanarAt& at, const T* x, const Acc* mean, Acc* spread);
  void (*planar_offer)(
      const PlanarAt& at, const T* x, const Acc* mean, Acc* heap, int64_t top, Acc* kth,
      Acc* spread);
  void (*planar_normalize)(
      const PlanarAt& at, const T* x, const T* residual, T* y, uint8_t* mask, const Acc* mean,
      const Acc* scale, const Acc* bias, bool stream);
  void (*planar_gradient_sums)(
      bool signs, const PlanarAt& at, const T* grad, const T* x, const uint8_t* mask,
      const Acc* mean, GradientSums* sums);
  void (*planar_count_top)(
      const PlanarAt& at, const T* x, const Acc* mean, const Acc* kth, TopCounts* counts);
  void (*planar_gradient)(
      NormPolicy policy, const PlanarAt& at, const T* grad, const T* x, const uint8_t* mask, T* dx,
      T* dresidual, const GradientCoefficients<Acc>& by, bool stream);
  void (*moments)(
      const T* x, int64_t rows, int64_t channels, const Acc* shift, Acc* sum, Acc* square);
  void (*absolute)(const T* x, int64_t rows, int64_t channels, const Acc* mean, Acc* sum);
  void (*offer)(
      const T* x, int64_t rows, int64_t channels, int count, const Acc* mean, Acc* heaps,
      int64_t top, Acc* kth, Acc* spread);
  void (*count_top)(
      const T* x, int64_t rows, int64_t channels, int count, const Acc* mean, const Acc* kth,
      TopCounts* counts);
  void (*normalize)(
      const T* x, const T* residual, T* y, uint8_t* mask, int64_t rows, int64_t channels,
      int64_t mask_row, const Acc* mean, const Acc* scale, const Acc* bias, bool stream);
  void (*gradient_sums)(
      const T* grad, const T* x, const uint8_t* mask, int64_t rows, int64_t channels,
      int64_t mask_row, const Acc* mean, Acc* of_grad, Acc* of_product, Acc* of_sign);
  void (*gradient)(
      NormPolicy policy, const T* grad, const T* x, const uint8_t* mask, T* dx, T* dresidual,
      int64_t rows, int64_t channels, int64_t mask_row, const GradientCoefficients<Acc>& by,
      bool stream);
};

struct NormKernelSet {
  NormKernels<float> of_float;
  NormKernels<double> of_double;
  NormKernels<torch::headeronly::Half> of_half;
  NormKernels<torch::headeronly::BFloat16> of_bfloat16;
};

const NormKernelSet& norm_kernels_base();
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 && \
    !defined(LARGEBATCH_SANITIZE)
#define LARGEBATCH_NORM_X86
const NormKernelSet& norm_kernels_avx2();
const NormKernelSet& norm_kernels_avx512();
#endif

}  // namespace largebatch
