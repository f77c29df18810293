// Launchers of the LARS and LAMB kernels; see cuda.h for what all launchers keep to.

#pragma once

#include "optim/cuda.h"
#include "optim/math.h"

namespace largebatch {

// One tensor of a layer-wise call.
struct LayerRow : DeviceRow {
  float* step;  // null but in LAMB
  LayerSetting setting;
  int index;  // row of `norms`
};

struct LayerCall {
  DeviceScalar lr_factor;
  DeviceScalar grad_factor;
  DeviceScalar found_inf;
  double* norms;     // 3 a tensor
  double* partial;   // 2 a chunk
  double* numbers;   // LAMB: one step number a tensor
  bool with_sums;    // run the first pass
  bool with_update;  // run the second
};

// The number of chunks of a tensor, and so of pairs in `partial`: one at least, since a tensor
// without elements counts its steps too.
int64_t layer_chunks(int64_t length);

const char* launch_lars(
    const LayerRow* rows, size_t count, const LayerCall& call, const LarsOptions& options,
    void* stream);
const char* launch_lamb(
    const LayerRow* rows, size_t count, const LayerCall& call, const LambOptions& options,
    void* stream);

}  // namespace largebatch
