// Launcher of the CUDA kernels of the Hadamard transform, free of torch's headers.

#pragma once

#include <cstdint>

#include "common/element.h"

namespace largebatch {

// Pointers to device memory, contiguous. `length` is the power of two of the transform.
struct HadamardCall {
  Element element;
  int64_t rows, features, outputs, length;
  const void* x;
  void* y;
  void* scratch;  // rows x length of float, double for double elements; null if not needed
};

// Whether a transform does not fit a block's shared memory.
bool hadamard_needs_scratch(Element element, int64_t length);

// Returns nullptr, or CUDA's message if a launch failed. Nothing waits for the device.
const char* launch_hadamard(const HadamardCall& call, void* stream);

}  // namespace largebatch
