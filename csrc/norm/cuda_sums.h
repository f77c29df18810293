// CUDA kernels that add up over the channels of ghost batches. Sums go from threads (Acc) over
// blocks to parts (double) in an order that the shape alone decides; the last block of a tile adds
// its parts and finishes its channels.

#pragma once

#include "norm/cuda_finish.h"

namespace largebatch {

// What one thread adds up for one channel. A Count holds two numbers, that of the deviations above
// the k-th largest, or at it, in its lower half and the sum of their signs in its upper half: 16
// bits do where a thread has eight channels, for then its share has less than 2^15 values of each.
template <Sums What, typename Acc, typename Count>
struct Local {
  static constexpr int kHalf = sizeof(Count) * 4;
  Acc shift = 0, a = 0, b = 0, c = 0, largest = 0, smallest = 0;
  Count above = 0, equal = 0;

  // About the thread's first value: float32 loses nothing to a mean far from zero.
  __device__ __forceinline__ void begin(Acc x) {
    shift = shift_by(x);
    largest = smallest = x;
  }

  __device__ __forceinline__ void add(Acc x, Acc grad, Acc mean, Acc kth) {
    if constexpr (are_moments(What)) {
      const Acc d = x - shift;
      a += d;
      b += d * d;
      if constexpr (What == Sums::kExtremes) {
        largest = fmax(largest, x);
        smallest = fmin(smallest, x);
      }
      return;
    }
    const Acc d = x - mean;
    if constexpr (What == Sums::kAbsolute) {
      a += d < 0 ? -d : d;
      return;
    }
    a += grad;
    b += grad * d;
    if constexpr (What == Sums::kGradientSign) c += Acc(d > 0) - Acc(d < 0);
    if constexpr (What == Sums::kGradientTop) {
      constexpr Count kSign = Count(1) << kHalf;
      const Acc size = fabs(d);
      const Count one = d > 0 ? 1 + kSign : (d < 0 ? 1 - kSign : 1);
      above += size > kth ? one : 0;
      equal += size == kth ? one : 0;
    }
  }

  // As double; moments of `count` values become those about `origin`, the same for all threads.
  __device__ __forceinline__ void finish(
      int64_t count, double origin, double (&out)[outputs_of(What)]) const {
    for (int output = 0; output < outputs_of(What); ++output) out[output] = neutral<What>(output);
    if (count == 0) return;
    if constexpr (are_moments(What)) {
      const double n = static_cast<double>(count);
      out[0] = n * (double(shift) - origin) + a;
      out[1] = b + (out[0] - a) * (out[0] + a) * (1 / n);
    } else {
      out[0] = a;
      if constexpr (What != Sums::kAbsolute) out[1] = b;
    }
    if constexpr (What == Sums::kExtremes) {
      out[2] = largest;
      out[3] = smallest;
    }
    if constexpr (What == Sums::kGradientSign) out[2] = c;
    if constexpr (What == Sums::kGradientTop) {
      constexpr Count kLower = (Count(1) << kHalf) - 1;
      out[2] = static_cast<double>(above & kLower);
      out[3] = static_cast<double>(equal & kLower);
      out[4] = static_cast<double>(above >> kHalf);
      out[5] = static_cast<double>(equal >> kHalf);
    }
  }
};

template <typename T>
struct Summed {
  using Acc = typename Accumulate<T>::type;
  const T* x;
  const T* grad;        // null, as mask, in the forward
  const uint8_t* mask;  // null without one
  double* partial;      // [output][part][ghost * channels + channel]
  unsigned int* counts; // [ghost][tile], zeros
  Finish<Acc> finish;
};

// Loads of a thread that are in flight before the first is used.
template <Sums What, Access By>
constexpr int kSumBatch = By == Access::kValues ? 1 : are_gradient(What) ? 2 : 4;

template <typename T, Sums What>
constexpr int kSumResident =
    resident<T>(What == Sums::kGradientTop || What == Sums::kExtremes ? 2 : 3);

// The sums over `lines` threads of each of the eight channels of `lanes` threads, for a thread a
// channel: the first of the 256 / (8 lanes) that add it up together.
template <Sums What>
__device__ __forceinline__ double sum_lines(
    double (&shared)[kUnit][kThreads + 1],
    const double (&out)[kUnit][outputs_of(What)],
    int output,
    int lanes) {
  const int thread = static_cast<int>(threadIdx.x);
  const int together = kThreads / (kUnit * lanes), channel = thread / together;
  const int e = channel % kUnit, lane = channel / kUnit;
  __syncthreads();
#pragma unroll
  for (int each = 0; each < kUnit; ++each) shared[each][thread] = out[each][output];
  __syncthreads();
  double sum = neutral<What>(output);
#pragma unroll
  for (int j = 0; j < kUnit; ++j) {
    const int line = thread % together * kUnit + j;
    sum = merge<What>(output, sum, shared[e][line * lanes + lane]);
  }
  for (int half = together / 2; half > 0; half /= 2) {
    sum = merge<What>(output, sum, __shfl_xor_sync(0xffffffffu, sum, half));
  }
  return sum;
}

// The sum of parts `first`, first + step, ... of a channel.
template <Sums What>
__device__ __forceinline__ double sum_parts(
    const double* partial, int output, int parts, int64_t all, int64_t index, int first, int step) {
  double sum = neutral<What>(output);
  const double* next = partial + int64_t(output) * parts * all + index;
#pragma unroll 8
  for (int part = first; part < parts; part += step) {
    // Past the first-level cache, which may hold what a neighbour's parts were before.
    sum = merge<What>(output, sum, __ldcg(next + part * all));
  }
  return sum;
}

// The sums of all parts of `width` channels, for the first `width` threads.
template <Sums What>
__device__ __forceinline__ void add_parts(
    double (&shared)[kThreads + 1],
    const double* partial,
    int parts,
    int64_t all,
    int64_t index,
    int width,
    bool is_real,
    double (&total)[outputs_of(What)]) {
  const int thread = static_cast<int>(threadIdx.x), together = kThreads / width;
#pragma unroll
  for (int output = 0; output < outputs_of(What); ++output) {
    total[output] = is_real
        ? sum_parts<What>(partial, output, parts, all, index, thread / width, together)
        : 0.0;
    __syncthreads();
    shared[thread] = total[output];
    __syncthreads();
    for (int other = 1; thread < width && other < together; ++other) {
      total[output] = merge<What>(output, total[output], shared[thread + other * width]);
    }
  }
}

// Calls `body(with_mask)` with a compile-time constant: each its own loop, without a branch in it.
template <Sums What, class Body>
__device__ __forceinline__ void by_mask(const uint8_t* mask, const Body& body) {
  if (are_gradient(What) && mask != nullptr) {
    body(std::bool_constant<are_gradient(What)>{});
  } else {
    body(std::false_type{});
  }
}

// Scratch memory of a block.
using SumMemory = double[kUnit][kThreads + 1];

// Adds up share `number`. Returns, in all threads, whether the block came last and finished its
// tile. Channels vary fastest: a thread has eight of them, a block 8 * lanes.
template <typename T, Sums What, Access By>
__device__ __forceinline__ bool sum_rows(
    const NormLayout& at,
    const Cut& cut,
    const Summed<T>& of,
    unsigned int number,
    SumMemory& shared) {
  using Acc = typename Accumulate<T>::type;
  constexpr int kOutputs = outputs_of(What), kBatch = kSumBatch<What, By>;
  const Share share(at, cut, number);
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % cut.lanes, line = thread / cut.lanes, lines = kThreads / cut.lanes;
  const Place<By> place(at, share.tile * cut.lanes + lane);
  const int64_t all = at.ghosts() * at.channels;

  Local<What, Acc, int> local[kUnit];
  Acc mean[kUnit] = {}, kth[kUnit] = {};
  if constexpr (!are_moments(What)) {
    place.look_up(at, of.finish.known + share.ghost * at.channels, mean);
    if constexpr (What == Sums::kGradientTop) {
      place.look_up(at, of.finish.known + 2 * all + share.ghost * at.channels, kth);
    }
  }
  const int64_t first_row = periods_of(at, at.first(share.ghost));
  const int begin = share.begin + line, end = place.count > 0 ? share.end : begin;
  const Index<By> step = index_of<By>(lines * at.channels);
  const auto byte_step = static_cast<uint32_t>(lines * at.mask_row());
  Index<By> index = index_of<By>((first_row + begin) * at.channels + place.offset);
  auto byte = static_cast<uint32_t>((first_row + begin) * at.mask_row() + place.offset / kUnit);
  int r = begin;
  const auto take = [&](auto number, auto with_mask) {
    constexpr int kCount = decltype(number)::value;
    Unit<T> in[kCount], grads[kCount];
    int bits[kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      in[k] = load_unit<By>(of.x, index + k * step, place.count);
      if constexpr (are_gradient(What)) {
        grads[k] = load_unit<By>(of.grad, index + k * step, place.count);
        if (with_mask.value) bits[k] = of.mask[byte + k * byte_step];
      }
    }
    if (are_moments(What) && r == begin) {
      Acc values[kUnit];
      widen_unit(in[0], values);
#pragma unroll
      for (int e = 0; e < kUnit; ++e) {
        if (By != Access::kValues || e < place.count) local[e].begin(values[e]);
      }
    }
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      Acc values[kUnit], g[kUnit] = {};
      widen_unit(in[k], values);
      if constexpr (are_gradient(What)) {
        widen_unit(with_mask.value ? masked(grads[k], bits[k]) : grads[k], g);
      }
#pragma unroll
      for (int e = 0; e < kUnit; ++e) {
        if (By == Access::kValues && e >= place.count) continue;
        local[e].add(values[e], g[e], mean[e], kth[e]);
      }
    }
    index += kCount * step;
    byte += kCount * byte_step;
  };
  by_mask<What>(of.mask, [&](auto with_mask) {
    for (; kBatch > 1 && r + (kBatch - 1) * lines < end; r += kBatch * lines) {
      take(std::integral_constant<int, kBatch>{}, with_mask);
    }
#pragma unroll 1
    for (; r < end; r += lines) take(std::integral_constant<int, 1>{}, with_mask);
  });

  const int64_t count = end > begin ? (end - begin + lines - 1) / lines : 0;
  double out[kUnit][kOutputs], total[kOutputs];
#pragma unroll
  for (int e = 0; e < kUnit; ++e) {
    double origin = 0;
    if (are_moments(What) && e < place.count) {
      origin = shift_by(widen(of.x[origin_of(at, share.ghost, place.channel + e)]));
    }
    local[e].finish(count, origin, out[e]);
  }
#pragma unroll
  for (int output = 0; output < kOutputs; ++output) {
    total[output] = sum_lines<What>(shared, out, output, cut.lanes);
  }
  const int width = kUnit * cut.lanes, together = kThreads / width;
  const int64_t first_channel = share.tile * width;
  int64_t c = first_channel + thread / together;
  bool is_leader = thread % together == 0 && c < at.channels;
  if (cut.parts > 1) {
    if (is_leader) {
      for (int output = 0; output < kOutputs; ++output) {
        of.partial
            [(int64_t(output) * cut.parts + share.part) * all + share.ghost * at.channels + c] =
            total[output];
      }
    }
    if (!is_last(of.counts + share.ghost * cut.tiles + share.tile, cut.parts)) return false;
    c = first_channel + thread % width;
    is_leader = thread < width && c < at.channels;
    add_parts<What>(
        shared[0], of.partial, cut.parts, all, share.ghost * at.channels + c, width,
        c < at.channels, total);
  }
  if (is_leader) finish_channel<What>(at, of.finish, of.x, share.ghost, c, total);
  return true;
}

template <typename T, Sums What, Access By>
__global__ void __launch_bounds__(kThreads, kSumResident<T, What>) sum_rows_kernel(
    const NormLayout at, const Cut cut, const Summed<T> of) {
  __shared__ double shared[kUnit][kThreads + 1];
  sum_rows<T, What, By>(at, cut, of, blockIdx.x, shared);
}

// The sum over the threads of a channel, a warp or the block, for its first thread.
template <Sums What>
__device__ __forceinline__ void sum_threads(double (&total)[outputs_of(What)], int threads) {
  __shared__ double shared[outputs_of(What)][kThreads / 32];
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int output = 0; output < outputs_of(What); ++output) {
    for (int half = 16; half > 0; half /= 2) {
      total[output] = merge<What>(
          output, total[output], __shfl_xor_sync(0xffffffffu, total[output], half));
    }
  }
  if (threads == 32) return;
  for (int output = 0; output < outputs_of(What); ++output) {
    if (thread % 32 == 0) shared[output][thread / 32] = total[output];
  }
  __syncthreads();
  if (thread > 0) return;
  for (int output = 0; output < outputs_of(What); ++output) {
    for (int warp = 1; warp < kThreads / 32; ++warp) {
      total[output] = merge<What>(output, total[output], shared[output][warp]);
    }
  }
}

// The same, planar: cut.lanes threads, a warp or the block, have one channel, and its rows in the
// samples of a part. Where rows are no multiples of eight values (kAcross), the units are those of the memory,
// and what belongs to the rows before and after is left out.
template <typename T, Sums What, Access By>
__device__ __forceinline__ bool sum_planar(
    const NormLayout& at, const Cut& cut, const Summed<T>& of, unsigned int number) {
  using Acc = typename Accumulate<T>::type;
  constexpr int kOutputs = outputs_of(What), kBatch = kSumBatch<What, By>;
  const Share share(at, cut, number);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % cut.lanes;
  const int64_t all = at.ghosts() * at.channels;
  const int64_t c = share.tile * (kThreads / cut.lanes) + thread / cut.lanes;
  const int64_t row = share.ghost * at.channels + c;  // of the tables
  const bool active = c < at.channels;

  Local<What, Acc, int64_t> local;
  Acc mean = 0, kth = 0;
  if (!are_moments(What) && active) {
    mean = of.finish.known[row];
    if (What == Sums::kGradientTop) kth = of.finish.known[2 * all + row];
  }
  const auto length = static_cast<int>(at.length);
  const int skew = By == Access::kAcross ? static_cast<int>(c * at.length % kUnit) : 0;
  const int units = (skew + length + kUnit - 1) / kUnit;
  int sample = share.begin + lane / units, unit = lane % units;
  const int sample_step = cut.lanes / units, unit_step = cut.lanes % units;
  // From a unit to the next of this thread, and what more it is into another sample.
  constexpr int kLength = By == Access::kValues ? kUnit : 1;
  const auto period = static_cast<Index<By>>(index_of<By>(period_of(at)));
  const Index<By> step = sample_step * period + unit_step * kLength;
  const Index<By> wrap = period - units * kLength;
  Index<By> index =
      index_of<By>((at.first(share.ghost) + sample) * period_of(at) + c * at.length - skew) +
      unit * kLength;
  const auto mask_bytes = static_cast<int>(at.mask_row());
  const auto mask_period = static_cast<uint32_t>(mask_period_of(at));
  const auto first_byte =
      static_cast<uint32_t>(at.first(share.ghost) * mask_period_of(at) + c * at.mask_row());
  const auto bits_here = [&]() -> int {
    const uint8_t* const bytes = of.mask + (first_byte + sample * mask_period);
    if (By != Access::kAcross || skew == 0) return bytes[unit];
    const int low = unit > 0 ? bytes[unit - 1] : 0, high = unit < mask_bytes ? bytes[unit] : 0;
    return (low | high << 8) >> (kUnit - skew) & 255;
  };
  const auto all_units = static_cast<uint32_t>(share.end - share.begin) * units;
  const auto first_unit = static_cast<uint32_t>(lane);
  const int mine = active && first_unit < all_units
      ? static_cast<int>((all_units - first_unit - 1) / cut.lanes) + 1
      : 0;
  int64_t count = int64_t(mine) * kUnit;  // of values, but for those that are left out
  int done = 0;
  const auto take = [&](auto number, auto with_mask) {
    constexpr int kCount = decltype(number)::value;
    Unit<T> in[kCount], grads[kCount];
    int bits[kCount], position[kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      position[k] = unit * kUnit - skew;  // of the unit in its row
      in[k] = load_unit<By>(of.x, index, length - position[k]);
      if constexpr (are_gradient(What)) {
        grads[k] = load_unit<By>(of.grad, index, length - position[k]);
        if (with_mask.value) bits[k] = bits_here();
      }
      unit += unit_step;
      sample += sample_step;
      index += step;
      if (unit >= units) {
        unit -= units;
        ++sample;
        index += wrap;
      }
    }
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      Acc values[kUnit], g[kUnit] = {};
      widen_unit(in[k], values);
      if constexpr (are_gradient(What)) {
        widen_unit(with_mask.value ? masked(grads[k], bits[k]) : grads[k], g);
      }
      if (are_moments(What) && done + k == 0) {
        Acc value = values[0];
#pragma unroll
        for (int e = 1; e < kUnit; ++e) {
          if (By == Access::kAcross && position[k] + e <= 0) value = values[e];
        }
        local.begin(value);
      }
      const int left = length - position[k];
      if (By != Access::kUnits) count -= max(0, kUnit - left) + max(0, -position[k]);
#pragma unroll
      for (int e = 0; e < kUnit; ++e) {
        if (By != Access::kUnits && (e >= left || position[k] + e < 0)) continue;
        local.add(values[e], g[e], mean, kth);
      }
    }
    done += kCount;
  };
  by_mask<What>(of.mask, [&](auto with_mask) {
    while (kBatch > 1 && done + kBatch <= mine) {
      take(std::integral_constant<int, kBatch>{}, with_mask);
    }
#pragma unroll 1
    while (done < mine) take(std::integral_constant<int, 1>{}, with_mask);
  });

  double total[kOutputs], origin = 0;
  if (are_moments(What) && active) {
    origin = shift_by(widen(of.x[origin_of(at, share.ghost, c)]));
  }
  local.finish(count, origin, total);
  sum_threads<What>(total, cut.lanes);
  if (cut.parts > 1) {
    if (active && lane == 0) {
      for (int output = 0; output < kOutputs; ++output) {
        of.partial[(int64_t(output) * cut.parts + share.part) * all + row] = total[output];
      }
    }
    if (!is_last(of.counts + share.ghost * cut.tiles + share.tile, cut.parts)) return false;
#pragma unroll
    for (int output = 0; output < kOutputs; ++output) {
      total[output] = active
          ? sum_parts<What>(of.partial, output, cut.parts, all, row, lane, cut.lanes)
          : 0.0;
    }
    sum_threads<What>(total, cut.lanes);
  }
  if (active && lane == 0) finish_channel<What>(at, of.finish, of.x, share.ghost, c, total);
  return true;
}

template <typename T, Sums What, Access By>
__global__ void __launch_bounds__(kThreads, kSumResident<T, What>) sum_planar_kernel(
    const NormLayout at, const Cut cut, const Summed<T> of) {
  sum_planar<T, What, By>(at, cut, of, blockIdx.x);
}

}  // namespace largebatch
