// Where the values of a batch norm lie; free of torch's headers, for nvcc's sake.

#pragma once

#include <cstdint>

#include "norm/math.h"

namespace largebatch {

// Two layouts cover all: `planar`, where the `length` values of a sample and channel are adjacent
// (contiguous), and rows of `channels` adjacent values (channels last, and two dimensions).
struct NormLayout {
  bool planar;
  int64_t samples, channels, length;
  int64_t ghost_size, full;

  LARGEBATCH_HOST_DEVICE int64_t ghosts() const { return full + (full * ghost_size < samples ? 1 : 0); }
  LARGEBATCH_HOST_DEVICE int64_t ghost_of(int64_t sample) const {
    const int64_t ghost = sample / ghost_size;
    return ghost < full ? ghost : full;
  }
  LARGEBATCH_HOST_DEVICE int64_t first(int64_t ghost) const { return ghost * ghost_size; }
  LARGEBATCH_HOST_DEVICE int64_t size(int64_t ghost) const {
    return ghost < full ? ghost_size : samples - full * ghost_size;
  }
  LARGEBATCH_HOST_DEVICE int64_t values(int64_t ghost) const { return size(ghost) * length; }

  // The ReLU's mask: element i of row r (of `row_length` values) is bit i % 8 of byte
  // r * mask_row + i / 8; rows fill up to 16 bits.
  LARGEBATCH_HOST_DEVICE int64_t row_length() const { return planar ? length : channels; }
  LARGEBATCH_HOST_DEVICE int64_t mask_rows() const { return samples * (planar ? channels : length); }
  LARGEBATCH_HOST_DEVICE int64_t mask_row() const { return (row_length() + 15) / 16 * 2; }
};

}  // namespace largebatch
