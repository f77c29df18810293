// Launchers of the LARS and LAMB kernels; see cuda.h for what all launchers keep to.

#pragma once

#include "optim/cuda.h"
#include "optim/math.h"

namespace largebatch {

// One tensor of a layer-wise call. Small, so that many fit a kernel's arguments.
struct LayerRow : DeviceRow {
  float* step;  // null but in LAMB
  double lr;
  double weight_decay;
  int first_chunk;      // in the launch's grid; filled in by the launcher
  uint32_t index : 31;  // row of `norms`
  uint32_t adapts : 1;
};

struct LayerCall {
  const LayerRow* rows;
  const StepTypes* types;  // one a row
  size_t count;
  DeviceScalar lr_factor;
  DeviceScalar grad_factor;
  DeviceScalar found_inf;
  double* norms;     // 3 a tensor
  void* scratch;     // layer_scratch bytes
  bool with_sums;    // run the first pass
  bool with_update;  // run the second
};

// Bytes of scratch memory for a call, aligned to 16.
size_t layer_scratch(const LayerRow* rows, size_t count);

const char* launch_lars(const LayerCall& call, const LarsOptions& options, void* stream);
const char* launch_lamb(const LayerCall& call, const LambOptions& options, void* stream);

}  // namespace largebatch
