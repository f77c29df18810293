// The batch norms by slabs, where these are wanted and fit (cuda_slab_cut.h).

#pragma once

#include "norm/cuda.h"

namespace largebatch {

// Each returns whether it has launched, or tried to; else the call is one for the usual kernels.
bool launch_slab_forward(const NormForwardCall& call, void* stream);
bool launch_slab_backward(const NormBackwardCall& call, void* stream);

}  // namespace largebatch
