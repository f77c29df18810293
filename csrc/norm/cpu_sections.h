// The pieces that the CPU cuts a call into, whatever the layout: a section is a ghost batch and some
// of its channels, and knows how to sum over them and how to write them. The cuts depend on the
// shapes alone and partial sums are added in the order of the samples, so the number of threads
// changes no bit.
//
// Arrays with a value a channel are readable to a full vector past the section's last channel.

#pragma once

#include <algorithm>
#include <atomic>
#include <vector>

#include "common/tensors.h"
#include "norm/cpu_kernels.h"
#include "norm/layout.h"

namespace largebatch {

// Below this many elements in all, waking other threads costs more than it saves.
constexpr int64_t kSerialElements = 32768;
// Elements of a chunk of rows: 256 KiB of float32, a part of a core's second-level cache.
constexpr int64_t kRowElements = 65536;
// Rows that one float32 sum runs over: longer sums, of chunks, are float64.
constexpr int64_t kRows = 512;
// A ghost batch up to this size is one thread's: it stays in that core's second-level cache.
constexpr int64_t kGhostBytes = 512 * 1024;

template <typename T>
const NormKernels<T>& norm_kernels();

template <class Body>
void run(bool parallel, int64_t count, const Body& body) {
  if (!parallel || count < 2) {
    for (int64_t index = 0; index < count; ++index) body(index);
    return;
  }
  // Threads take the next piece when they are done with one: a core that others slow down, or an
  // uneven piece, does not hold up all.
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), count);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t index = next++; index < count; index = next++) body(index);
  });
}

// Some arrays with a value a channel, readable past their ends.
template <typename Acc>
class Columns {
 public:
  Columns(int64_t channels, int arrays)
      : padded_((channels + 15) / 16 * 16), values_(padded_ * arrays) {}

  Acc* operator[](int array) { return values_.data() + array * padded_; }

 private:
  int64_t padded_;
  std::vector<Acc> values_;
};

// A few adjacent channels whose values of a sample lie together (contiguous layout).
template <typename T>
class PlanarSection {
  using Acc = Wide<T>;

 public:
  const int64_t ghost, first, channels, values;

  PlanarSection(const NormLayout& at, int64_t ghost, int64_t first, int64_t channels)
      : ghost(ghost),
        first(first),
        channels(channels),
        values(at.values(ghost)),
        row_(at.first(ghost) * at.channels + first),
        begin_(row_ * at.length),
        mask_begin_(row_ * at.mask_row()),
        at_{at.size(ghost), at.channels * at.length, at.length, at.mask_row(),
            at.channels * at.mask_row(), static_cast<int>(channels)} {}

  // `variance` may be null.
  void moments(const T* x, Acc* mean, Acc* variance) const {
    norm_kernels<T>().planar_moments(at_, x + begin_, mean, variance);
  }
  void absolute(const T* x, const Acc* mean, Acc* spread) const {
    norm_kernels<T>().planar_absolute(at_, x + begin_, mean, spread);
  }
  void offer(const T* x, const Acc* mean, int64_t top, Acc* kth, Acc* spread) const {
    std::vector<Acc> heap(top);
    norm_kernels<T>().planar_offer(at_, x + begin_, mean, heap.data(), top, kth, spread);
  }
  void normalize(
      const T* x, const T* residual, T* y, uint8_t* mask, const Acc* mean, const Acc* scale,
      const Acc* bias, bool stream) const {
    norm_kernels<T>().planar_normalize(
        at_, x + begin_, moved(residual, begin_), y + begin_, moved(mask, mask_begin_), mean, scale,
        bias, stream);
  }
  void gradient_sums(
      const T* grad, const T* x, const uint8_t* mask, const Acc* mean, bool signs,
      GradientSums* sums) const {
    norm_kernels<T>().planar_gradient_sums(
        signs, at_, grad + begin_, x + begin_, moved(mask, mask_begin_), mean, sums);
  }
  void count_top(const T* x, const Acc* mean, const Acc* kth, TopCounts* counts) const {
    norm_kernels<T>().planar_count_top(at_, x + begin_, mean, kth, counts);
  }
  void gradient(
      NormPolicy policy, const T* grad, const T* x, const uint8_t* mask, T* dx, T* dresidual,
      const GradientCoefficients<Acc>& by, bool stream) const {
    norm_kernels<T>().planar_gradient(
        policy, at_, grad + begin_, x + begin_, moved(mask, mask_begin_), dx + begin_,
        moved(dresidual, begin_), by, stream);
  }

 private:
  template <typename P>
  static P* moved(P* pointer, int64_t by) {
    return pointer == nullptr ? nullptr : pointer + by;
  }

  const int64_t row_, begin_, mask_begin_;
  const PlanarAt at_;
};

// All channels of a ghost batch whose channels are adjacent, in chunks of rows. A pass begins where
// the one before it ended, with rows that the caches may still hold.
template <typename T>
class RowsSection {
  using Acc = Wide<T>;

 public:
  const int64_t ghost, first = 0, channels, values;

  // `threads`: whether the threads share the rows.
  RowsSection(const NormLayout& at, int64_t ghost, bool threads)
      : ghost(ghost),
        channels(at.channels),
        values(at.values(ghost)),
        begin_(at.first(ghost) * at.length),
        mask_row_(at.mask_row()),
        per_chunk_(std::clamp<int64_t>(kRowElements / at.channels, 1, kRows)),
        chunks_((values + per_chunk_ - 1) / per_chunk_),
        padded_((at.channels + 15) / 16 * 16),
        parallel_(threads && values * at.channels > kSerialElements) {}

  void moments(const T* x, Acc* mean, Acc* variance) const {
    const NormKernels<T>& kernel = norm_kernels<T>();
    const double n = static_cast<double>(values);
    const T* const begin = x + begin_ * channels;
    // A shift by the mean of the first rows, as good as any against cancellation.
    std::vector<Acc> shift(padded_), origin(padded_);
    const int64_t some = std::min<int64_t>(values, std::min<int64_t>(per_chunk_, 64));
    for (int64_t c = 0; c < channels; ++c) origin[c] = static_cast<Acc>(begin[c]);
    kernel.moments(begin, some, channels, origin.data(), shift.data(), nullptr);
    for (int64_t c = 0; c < channels; ++c) shift[c] = origin[c] + shift[c] / static_cast<Acc>(some);

    std::vector<Acc> sums(chunks_ * padded_), squares(variance == nullptr ? 0 : sums.size());
    for_chunks([&](int64_t chunk, int64_t row, int64_t count) {
      kernel.moments(
          x + row * channels, count, channels, shift.data(), sums.data() + chunk * padded_,
          squares.empty() ? nullptr : squares.data() + chunk * padded_);
    });
    const std::vector<double> sum = added(sums);
    std::vector<double> square;
    if (variance != nullptr) square = added(squares);
    for (int64_t c = 0; c < channels; ++c) {
      const double offset = sum[c] / n;
      mean[c] = static_cast<Acc>(static_cast<double>(shift[c]) + offset);
      if (variance == nullptr) continue;
      const double difference = square[c] / n - offset * offset;
      variance[c] = static_cast<Acc>(difference < 0 ? 0 : difference);
    }
  }

  void absolute(const T* x, const Acc* mean, Acc* spread) const {
    std::vector<Acc> sums(chunks_ * padded_);
    for_chunks([&](int64_t chunk, int64_t row, int64_t count) {
      norm_kernels<T>().absolute(
          x + row * channels, count, channels, mean, sums.data() + chunk * padded_);
    });
    const std::vector<double> sum = added(sums);
    for (int64_t c = 0; c < channels; ++c) {
      spread[c] = static_cast<Acc>(sum[c] / static_cast<double>(values));
    }
  }

  void offer(const T* x, const Acc* mean, int64_t top, Acc* kth, Acc* spread) const {
    for_vectors([&](int64_t c, int count) {
      std::vector<Acc> heaps(count * top);
      norm_kernels<T>().offer(
          x + begin_ * channels + c, values, channels, count, mean + c, heaps.data(), top, kth + c,
          spread + c);
    });
  }

  void normalize(
      const T* x, const T* residual, T* y, uint8_t* mask, const Acc* mean, const Acc* scale,
      const Acc* bias, bool stream) const {
    for_chunks([&](int64_t, int64_t row, int64_t count) {
      const int64_t begin = row * channels;
      norm_kernels<T>().normalize(
          x + begin, residual == nullptr ? nullptr : residual + begin, y + begin,
          mask == nullptr ? nullptr : mask + row * mask_row_, count, channels, mask_row_, mean,
          scale, bias, stream);
    });
  }

  void gradient_sums(
      const T* grad, const T* x, const uint8_t* mask, const Acc* mean, bool signs,
      GradientSums* sums) const {
    std::vector<Acc> of_grad(chunks_ * padded_), of_product(of_grad.size());
    std::vector<Acc> of_sign(signs ? of_grad.size() : 0);
    for_chunks([&](int64_t chunk, int64_t row, int64_t count) {
      const int64_t begin = row * channels, part = chunk * padded_;
      norm_kernels<T>().gradient_sums(
          grad + begin, x + begin, mask == nullptr ? nullptr : mask + row * mask_row_, count,
          channels, mask_row_, mean, of_grad.data() + part, of_product.data() + part,
          signs ? of_sign.data() + part : nullptr);
    });
    const std::vector<double> grads = added(of_grad), products = added(of_product);
    std::vector<double> sign(channels);
    if (signs) sign = added(of_sign);
    for (int64_t c = 0; c < channels; ++c) sums[c] = {grads[c], products[c], sign[c]};
  }

  void count_top(const T* x, const Acc* mean, const Acc* kth, TopCounts* counts) const {
    for_vectors([&](int64_t c, int count) {
      norm_kernels<T>().count_top(
          x + begin_ * channels + c, values, channels, count, mean + c, kth + c, counts + c);
    });
  }

  void gradient(
      NormPolicy policy, const T* grad, const T* x, const uint8_t* mask, T* dx, T* dresidual,
      const GradientCoefficients<Acc>& by, bool stream) const {
    for_chunks([&](int64_t, int64_t row, int64_t count) {
      const int64_t begin = row * channels;
      norm_kernels<T>().gradient(
          policy, grad + begin, x + begin, mask == nullptr ? nullptr : mask + row * mask_row_,
          dx + begin, dresidual == nullptr ? nullptr : dresidual + begin, count, channels,
          mask_row_, by, stream);
    });
  }

 private:
  // Calls body(chunk, first row in the tensor, rows).
  template <class Body>
  void for_chunks(const Body& body) const {
    run(parallel_, chunks_, [&](int64_t index) {
      const int64_t chunk = back_ ? chunks_ - 1 - index : index;
      const int64_t row = chunk * per_chunk_;
      body(chunk, begin_ + row, std::min(per_chunk_, values - row));
    });
    back_ = !back_;
  }

  // Calls body(first channel, channels) for vectors of channels.
  template <class Body>
  void for_vectors(const Body& body) const {
    constexpr int64_t kCount = 64 / sizeof(Acc);
    run(parallel_, (channels + kCount - 1) / kCount, [&](int64_t index) {
      body(index * kCount, static_cast<int>(std::min(kCount, channels - index * kCount)));
    });
  }

  // Adds up `partial`, (chunks, padded), chunk after chunk.
  std::vector<double> added(const std::vector<Acc>& partial) const {
    std::vector<double> total(channels);
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
      const Acc* const row = partial.data() + chunk * padded_;
      for (int64_t c = 0; c < channels; ++c) total[c] += static_cast<double>(row[c]);
    }
    return total;
  }

  const int64_t begin_, mask_row_, per_chunk_, chunks_, padded_;
  const bool parallel_;
  mutable bool back_ = false;
};

// Calls `body` with the sections of a call.
//
// Whole ghosts of rows go to threads where they are small, or where there are enough to keep all
// threads busy: that costs one wait for the slowest thread in all. Otherwise one ghost follows
// another and the threads share its rows. The sums are the same either way.
template <typename T, class Body>
void for_sections(const NormLayout& at, const Body& body) {
  const int64_t elements = at.channels * at.length, ghosts = at.ghosts();
  const bool parallel = at.samples * elements > kSerialElements;
  if (at.planar) {
    const int64_t width = std::clamp<int64_t>(kPlanarElements / at.length, 1, kPlanarChannels);
    const int64_t blocks = (at.channels + width - 1) / width;
    run(parallel, ghosts * blocks, [&](int64_t index) {
      const int64_t first = index % blocks * width;
      body(PlanarSection<T>(at, index / blocks, first, std::min(width, at.channels - first)));
    });
    return;
  }
  const int64_t largest = std::max(at.full > 0 ? at.ghost_size : 0, at.size(ghosts - 1));
  const int64_t threads = torch::stable::get_num_threads();
  const bool small = largest * elements * static_cast<int64_t>(sizeof(T)) <= kGhostBytes;
  const bool even = largest == at.size(ghosts - 1) && ghosts % threads == 0;
  const bool whole = ghosts > 1 && (small || even || ghosts >= 4 * threads);
  run(whole && parallel, ghosts,
      [&](int64_t ghost) { body(RowsSection<T>(at, ghost, !whole)); });
}

}  // namespace largebatch
