// Sizes of the optimizers' launches: choices of speed, which no result depends on but by the order of
// sums. benchmarks/kernels.py shows what they make of registers and occupancy.

#pragma once

#include <cstdint>

namespace largebatch {

constexpr int kThreads = 256;

// Blocks of a multiprocessor: 1024 threads keep enough loads on their way. Float64 takes twice the
// registers, and twice the bytes.
template <typename T>
constexpr int kBlocks = sizeof(T) == 8 ? 2 : 4;

constexpr int64_t kChunk = 8192;  // elements of a block: 8 rounds of 16-byte loads of float32

// Tensors of a launch, whose table travels in the kernel's arguments, 32764 bytes at most. Small models
// do not pay for that much.
constexpr int kSmall = 64;
constexpr int kLargeSgd = 576;
constexpr int kLargeNorm = 1344;
constexpr int kLargeLayerwise = 400;

}  // namespace largebatch
