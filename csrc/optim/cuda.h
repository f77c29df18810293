// Launchers of the CUDA kernels, free of torch's headers so that nvcc has little to read.
//
// Each returns nullptr, or CUDA's message if a launch failed. Nothing waits for the device.

#pragma once

#include <cstddef>
#include <cstdint>

#include "common/element.h"
#include "optim/math.h"

namespace largebatch {

// The types of a tensor of a step: a launch takes tensors of one combination, or the kernel would
// hold the registers of them all.
struct StepTypes {
  Element element;
  bool low_moments;  // bfloat16
};

// One tensor of a step; null where absent.
struct DeviceRow {
  void* param;
  const void* grad;
  void* first;
  void* second;
  void* master;
  int64_t length;
};

// A number that lives on the device: null if absent.
struct DeviceScalar {
  const void* data;
  bool is_double;
};

struct SgdCall {
  const DeviceRow* rows;
  const StepTypes* types;  // one a row
  size_t count;
  SgdOptions options;
  DeviceScalar grad_factor;
  DeviceScalar found_inf;
};

const char* launch_sgd(const SgdCall& call, void* stream);

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

// Writes the root of the sum of `partial`, times `scale`, to `norm`, and, unless null, what clipping
// makes of it to `factor`: scale x min(1, max_norm / (norm + eps)).
struct FinishNorm {
  const double* partial;
  int64_t count;
  void* norm;
  void* factor;
  bool is_double;  // norm and factor, else float
  double max_norm;
  double eps;
  DeviceScalar scale;
};

const char* launch_finish_norm(const FinishNorm& call, void* stream);

}  // namespace largebatch
