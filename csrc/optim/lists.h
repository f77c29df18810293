// The lists of a step, whose i-th tensors belong together.

#pragma once

#include "common/memory.h"

namespace largebatch {

// Lists that a step has no use for are empty. A parameter with a `masters` entry that is not empty
// is computed there and rounded from it.
struct StepLists {
  TensorList params;
  TensorList grads;
  TensorList first;   // momentum buffers; LAMB: first moments
  TensorList second;  // LAMB: second moments
  TensorList masters;
  TensorList steps;   // LAMB: one float32 a tensor
};

// Refuses lists whose tensors do not fit together, and enters their memory in `footprint`; `name` is
// the operator's. `moments`: how many lists of them there must be.
void check_lists(
    const char* name, const StepLists& lists, int moments, Footprint& footprint);

// Replaces rows with gaps or of differing memory orders by copies; see Rows.
Rows flat_rows(StepLists& lists);

}  // namespace largebatch
