// Launchers of the CUDA kernels of the batch norm family, free of torch's headers.
//
// Pointers are to device memory, null where a call has no such tensor. `Acc` is double for double
// elements, else float. Each launcher returns nullptr, or CUDA's message if a launch failed.
// Nothing waits for the device.

#pragma once

#include <cstdint>

#include "common/element.h"
#include "norm/layout.h"

namespace largebatch {

struct NormForwardCall {
  Element element;
  NormLayout at;
  NormPolicy policy;
  int64_t top;
  double eps;
  const void* x;
  const void* residual;
  const void* weight;
  const void* bias;
  void* y;
  void* statistics;    // Acc (2 or 3, ghosts, channels)
  uint8_t* mask;
  double* partial;     // norm_partials(at) doubles
  void* coefficients;  // Acc (kNormCoefficients, ghosts, channels)
};

struct NormBackwardCall {
  Element element;
  NormLayout at;
  NormPolicy policy;
  int64_t top;
  double eps;
  const void* grad;
  const void* x;
  const void* weight;
  const void* statistics;
  const uint8_t* mask;
  void* dx;
  void* dresidual;  // null unless there is a mask and a residual
  void* sums;       // Acc (2, ghosts, channels): of weight, of bias
  double* partial;
  void* coefficients;
};

constexpr int kNormCoefficients = 5;

// Doubles of scratch memory: the sums of each part of each channel of each ghost, where there are
// several, and the counters of the blocks that have finished theirs.
int64_t norm_partials(const NormLayout& at);

const char* launch_norm_forward(const NormForwardCall& call, void* stream);
const char* launch_norm_backward(const NormBackwardCall& call, void* stream);

// The steps of both for one ghost, see calls.h. Tables are Acc (rows, channels).
struct NormMomentsCall {
  Element element;
  NormLayout at;
  const void* x;
  const void* center;  // null for the mean of x
  double* partial;
  void* statistics;
};

struct NormApplyCall {
  Element element;
  NormLayout at;
  const void* x;
  const void* residual;
  const void* coefficients;
  void* y;
  uint8_t* mask;
};

struct NormGradientSumsCall {
  Element element;
  NormLayout at;
  NormPolicy policy;
  const void* grad;
  const void* x;
  const uint8_t* mask;
  const void* statistics;
  double* partial;
  void* sums;
};

struct NormGradientCall {
  Element element;
  NormLayout at;
  NormPolicy policy;
  const void* grad;
  const void* x;
  const uint8_t* mask;
  const void* coefficients;
  void* dx;
  void* dresidual;
};

const char* launch_norm_moments(const NormMomentsCall& call, void* stream);
const char* launch_norm_apply(const NormApplyCall& call, void* stream);
const char* launch_norm_gradient_sums(const NormGradientSumsCall& call, void* stream);
const char* launch_norm_gradient(const NormGradientCall& call, void* stream);

}  // namespace largebatch
