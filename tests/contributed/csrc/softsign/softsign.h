// x over 1 + |x|, element by element.

#pragma once

#include "common/memory.h"

namespace largebatch {

// Any float type; returns a contiguous tensor of the same shape and type.
Tensor softsign_cpu(Tensor x);

}  // namespace largebatch
