// Work over lists of tensors, cut into chunks whose borders do not depend on the thread count.

#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/tensors.h"

namespace largebatch {

// Elements of a chunk: three float32 arrays of it (192 KiB) stay in a core's second-level cache.
constexpr int64_t kChunkElements = 16384;

// Below this many elements in all, waking other threads costs more than it saves.
constexpr int64_t kSerialElements = 32768;

struct Chunk {
  size_t tensor;
  int64_t begin;
  int64_t length;
};

class Chunks {
 public:
  explicit Chunks(const TensorList& tensors) : Chunks(tensors, 0, tensors.size()) {}

  // The chunks of tensors `first` up to `last`.
  Chunks(const TensorList& tensors, size_t first, size_t last) {
    for (size_t index = first; index < last; ++index) {
      const int64_t elements = tensors[index].numel();
      total_ += elements;
      for (int64_t begin = 0; begin < elements; begin += kChunkElements) {
        chunks_.push_back({index, begin, std::min(kChunkElements, elements - begin)});
      }
    }
  }

  size_t size() const { return chunks_.size(); }
  const Chunk& operator[](size_t position) const { return chunks_[position]; }

  // Calls `body(position, chunk)` for every chunk, on torch's threads.
  template <class Body>
  void for_each(const Body& body) const {
    share([&](int64_t begin, int64_t end) {
      for (int64_t position = begin; position < end; ++position) {
        body(position, chunks_[position]);
      }
    });
  }

  // Calls `body(chunk)` for every chunk, each thread taking those of its `for_each` from the back.
  template <class Body>
  void for_each_reversed(const Body& body) const {
    share([&](int64_t begin, int64_t end) {
      for (int64_t position = end; position-- > begin;) body(chunks_[position]);
    });
  }

 private:
  template <class Body>
  void share(const Body& body) const {
    const auto count = static_cast<int64_t>(chunks_.size());
    const int64_t grain = total_ <= kSerialElements ? std::max<int64_t>(count, 1) : 1;
    torch::stable::parallel_for(0, count, grain, body);
  }

  std::vector<Chunk> chunks_;
  int64_t total_ = 0;
};

}  // namespace largebatch
