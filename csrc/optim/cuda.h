// Launchers of the CUDA kernels, free of torch's headers so that nvcc has little to read.
//
// Each returns nullptr, or CUDA's message if the launch failed. Nothing waits for the device.

#pragma once

#include <cstddef>
#include <cstdint>

#include "optim/math.h"

namespace largebatch {

enum class Element { kFloat, kDouble, kHalf, kBFloat16 };

// One tensor of a step; null where absent.
struct DeviceRow {
  void* param;
  const void* grad;
  void* first;
  void* second;
  void* master;
  int64_t length;
  Element element;
  bool low_moments;  // bfloat16
};

// A number that lives on the device: null if absent.
struct DeviceScalar {
  const void* data;
  bool is_double;
};

const char* launch_sgd(
    const DeviceRow* rows, size_t count, const SgdOptions& options, DeviceScalar grad_factor,
    DeviceScalar found_inf, void* stream);

// One tensor of a norm.
struct NormRow {
  const void* data;
  int64_t length;
};

// The number of partial sums that `launch_square_sums` writes for a tensor of `length` elements.
int64_t square_sum_count(int64_t length);

// Writes sums of squares, a chunk each, to `partial` in the order of rows and chunks.
const char* launch_square_sums(
    Element element, const NormRow* rows, size_t count, double* partial, void* stream);

// What clipping makes of a norm: scale x norm, and scale x min(1, max_norm / (norm + eps)).
struct Clip {
  double max_norm;
  double eps;
  DeviceScalar scale;
};

// Writes the root of the sum of `partial` to `norm`, and the clip factor to `factor` unless null;
// both are double if `is_double`, else float.
const char* launch_finish_norm(
    const double* partial,
    int64_t count,
    void* norm,
    void* factor,
    bool is_double,
    Clip clip,
    void* stream);

}  // namespace largebatch
