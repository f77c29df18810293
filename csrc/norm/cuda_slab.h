// CUDA kernels that read a ghost once: its slab of channels stays in the shared memory of several
// blocks, which add it up, meet, and write what they have. A thread keeps to the units that it has
// copied itself.

#pragma once

#include <cuda_pipeline_primitives.h>

#include "norm/cuda_elements.h"
#include "norm/cuda_slab_cut.h"
#include "norm/cuda_sums.h"
#include "norm/cuda_turns.h"

namespace largebatch {

// Waits until all `blocks` of a slab have come here; what they have written before can be read
// after.
__device__ __forceinline__ void meet(unsigned int* count, int blocks) {
  raise(count);
  wait_until(count, blocks);
}

// A block's part of a slab: `rows` pixels from `begin` on, of which a thread has those of its line.
struct Slab {
  int64_t ghost, tile;
  int rank, lane, line, lines, begin, end;
  Place<Access::kUnits> place;
  uint32_t index, step, byte, byte_step;

  __device__ __forceinline__ Slab(const NormLayout& at, const SlabCut& cut, int64_t number)
      : ghost(number / cut.tiles),
        tile(number % cut.tiles),
        rank(static_cast<int>(blockIdx.x) % cut.blocks),
        lane(static_cast<int>(threadIdx.x) % cut.lanes),
        line(static_cast<int>(threadIdx.x) / cut.lanes),
        lines(kThreads / cut.lanes),
        place(at, tile * cut.lanes + lane) {
    const auto all = static_cast<int>(periods_of(at, at.size(ghost)));
    const int rounds = (all + lines - 1) / lines, each = (rounds + cut.blocks - 1) / cut.blocks;
    begin = min(all, rank * each * lines) + line;
    end = place.count > 0 ? min(all, (rank + 1) * each * lines) : begin;
    const int64_t row = periods_of(at, at.first(ghost)) + begin;
    index = static_cast<uint32_t>((row * at.channels + place.offset) / kUnit);
    step = static_cast<uint32_t>(lines * at.channels / kUnit);
    byte = static_cast<uint32_t>(row * at.mask_row());
    byte_step = static_cast<uint32_t>(lines * at.mask_row());
  }

  __device__ __forceinline__ int64_t count() const {
    return end > begin ? (end - begin + lines - 1) / lines : 0;
  }

  // Calls `body(number, index, byte)` for the thread's units.
  template <class Body>
  __device__ __forceinline__ void for_each(const Body& body) const {
    uint32_t unit = index, bits = byte;
    int number = 0;
#pragma unroll 4
    for (int r = begin; r < end; r += lines) {
      body(number++, unit, bits);
      unit += step;
      bits += byte_step;
    }
  }
};

template <typename T>
__device__ __forceinline__ void copy_unit(Unit<T>* to, const T* data, uint32_t index) {
  const auto* const from = reinterpret_cast<const char*>(data) + int64_t(index) * sizeof(Unit<T>);
#pragma unroll
  for (size_t byte = 0; byte < sizeof(Unit<T>); byte += 16) {
    __pipeline_memcpy_async(reinterpret_cast<char*>(to) + byte, from + byte, 16);
  }
}

// A table of a slab's channels in shared memory, and its values for a thread.
template <typename Acc>
using SlabTable = Acc[5][kUnit * kSlabLanes];

template <typename Acc>
__device__ __forceinline__ void read_row(const Acc* row, int lane, Acc (&values)[kUnit]) {
#pragma unroll
  for (int e = 0; e < kUnit; ++e) values[e] = row[lane * kUnit + e];
}

// The sums of a slab, in all of its blocks, for their first 8 * lanes threads.
template <Sums What, typename T, typename Acc>
__device__ __forceinline__ void sum_slab(
    const NormLayout& at,
    const SlabCut& cut,
    const Slab& slab,
    const T* x,
    const Local<What, Acc, int> (&local)[kUnit],
    double (&shared)[kUnit][kThreads + 1],
    double* partial,
    unsigned int* count,
    double (&total)[outputs_of(What)]) {
  const int thread = static_cast<int>(threadIdx.x), width = kUnit * cut.lanes;
  const int64_t all = at.ghosts() * at.channels;
  double out[kUnit][outputs_of(What)];
#pragma unroll
  for (int e = 0; e < kUnit; ++e) {
    double origin = 0;
    if (are_moments(What) && slab.place.count > 0) {
      origin = shift_by(widen(x[origin_of(at, slab.ghost, slab.place.channel + e)]));
    }
    local[e].finish(slab.count(), origin, out[e]);
  }
#pragma unroll
  for (int output = 0; output < outputs_of(What); ++output) {
    total[output] = sum_lines<What>(shared, out, output, cut.lanes);
  }
  const int together = kThreads / width;
  const int64_t first = slab.tile * width, row = slab.ghost * at.channels;
  int64_t c = first + thread / together;
  for (int output = 0; thread % together == 0 && c < at.channels && output < outputs_of(What);
       ++output) {
    partial[(int64_t(output) * cut.blocks + slab.rank) * all + row + c] = total[output];
  }
  meet(count, cut.blocks);
  c = first + thread % width;
  add_parts<What>(
      shared[0], partial, cut.blocks, all, row + c, width, c < at.channels, total);
}

template <typename T>
struct SlabForward {
  using Acc = typename Accumulate<T>::type;
  const T* x;
  const T* residual;
  T* y;
  uint8_t* mask;
  double* partial;
  unsigned int* counts;  // [2][ghost][tile], zeros
  Finish<Acc> finish;
};

template <typename T>
__global__ void __launch_bounds__(kThreads, resident<T>(2)) slab_forward_kernel(
    const NormLayout at, const SlabCut cut, const SlabForward<T> of) {
  using Acc = typename Accumulate<T>::type;
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ double shared[kUnit][kThreads + 1];
  __shared__ SlabTable<Acc> table;
  auto* const units = reinterpret_cast<Unit<T>*>(memory) + threadIdx.x;  // every kThreads-th
  const int thread = static_cast<int>(threadIdx.x), width = kUnit * cut.lanes;
  const int64_t all = at.ghosts() * at.channels, slabs = at.ghosts() * cut.tiles;
  const bool is_l1 = of.finish.policy == NormPolicy::kL1;
  for (int64_t number = blockIdx.x / cut.blocks; number < slabs;
       number += gridDim.x / cut.blocks) {
    const Slab slab(at, cut, number);
    slab.for_each([&](int at_unit, uint32_t unit, uint32_t) {
      copy_unit(units + at_unit * kThreads, of.x, unit);
    });
    __pipeline_commit();
    __pipeline_wait_prior(0);

    Local<Sums::kMoments, Acc, int> moments[kUnit];
    slab.for_each([&](int at_unit, uint32_t, uint32_t) {
      Acc values[kUnit];
      widen_unit(units[at_unit * kThreads], values);
#pragma unroll
      for (int e = 0; e < kUnit; ++e) {
        if (at_unit == 0) moments[e].begin(values[e]);
        moments[e].add(values[e], Acc(0), Acc(0), Acc(0));
      }
    });
    const int64_t c = slab.tile * width + thread;
    const bool is_leader = thread < width && c < at.channels;
    Acc mean_of = 0, spread_of = 0;
    {
      double total[2];
      sum_slab<Sums::kMoments>(
          at, cut, slab, of.x, moments, shared, of.partial, of.counts + number, total);
      if (is_leader) moments_of(at, of.x, slab.ghost, c, total, mean_of, spread_of);
    }
    Acc mean[kUnit], scale[kUnit], bias[kUnit];
    if (is_l1) {
      if (thread < width) table[0][thread] = mean_of;
      __syncthreads();
      read_row(table[0], slab.lane, mean);
      Local<Sums::kAbsolute, Acc, int> sizes[kUnit];
      slab.for_each([&](int at_unit, uint32_t, uint32_t) {
        Acc values[kUnit];
        widen_unit(units[at_unit * kThreads], values);
#pragma unroll
        for (int e = 0; e < kUnit; ++e) sizes[e].add(values[e], Acc(0), mean[e], Acc(0));
      });
      // Its partials follow those of the moments, which other blocks may still be reading.
      double total[1];
      sum_slab<Sums::kAbsolute>(
          at, cut, slab, of.x, sizes, shared, of.partial + 2 * cut.blocks * all,
          of.counts + slabs + number, total);
      spread_of = static_cast<Acc>(total[0] / static_cast<double>(at.values(slab.ghost)));
    }
    if (is_leader) {
      const auto terms = forward_terms(at, of.finish, slab.ghost, c, mean_of, spread_of);
      table[1][thread] = terms.mean;
      table[2][thread] = terms.scale;
      table[3][thread] = terms.bias;
      if (slab.rank == 0) {
        of.finish.statistics[slab.ghost * at.channels + c] = mean_of;
        of.finish.statistics[all + slab.ghost * at.channels + c] = spread_of;
      }
    }
    __syncthreads();
    read_row(table[1], slab.lane, mean);
    read_row(table[2], slab.lane, scale);
    read_row(table[3], slab.lane, bias);
    const MaskPlace<Access::kUnits, uint8_t> bits_at(at, slab.place, of.mask);
    const auto write = [&](auto with_residual, auto with_mask) {
      slab.for_each([&](int at_unit, uint32_t unit, uint32_t byte) {
        Acc values[kUnit], others[kUnit];
        widen_unit(units[at_unit * kThreads], values);
        if (with_residual.value) {
          widen_unit(load_unit<Access::kUnits>(of.residual, unit, kUnit), others);
        }
#pragma unroll
        for (int e = 0; e < kUnit; ++e) {
          values[e] = (values[e] - mean[e]) * scale[e] + bias[e];
          if (with_residual.value) values[e] += others[e];
        }
        if (with_mask.value) bits_at.store(byte, passing(values), 0);
        Unit<T> out;
        with_mask.value ? narrow_passing(values, out) : narrow_unit(values, out);
        store_unit<Access::kUnits>(of.y, unit, kUnit, out);
      });
    };
    constexpr std::true_type kYes{};
    constexpr std::false_type kNo{};
    if (of.residual == nullptr) {
      of.mask == nullptr ? write(kNo, kNo) : write(kNo, kYes);
    } else {
      of.mask == nullptr ? write(kYes, kNo) : write(kYes, kYes);
    }
  }
}

template <typename T>
struct SlabBackward {
  using Acc = typename Accumulate<T>::type;
  const T* grad;
  const T* x;
  const uint8_t* mask;
  T* dx;
  T* dresidual;
  double* partial;
  unsigned int* counts;  // [ghost][tile], zeros
  Finish<Acc> finish;
};

template <typename T, NormPolicy Policy>
__global__ void __launch_bounds__(kThreads, resident<T>(2)) slab_backward_kernel(
    const NormLayout at, const SlabCut cut, const SlabBackward<T> of) {
  using Acc = typename Accumulate<T>::type;
  constexpr Sums kWhat = Policy == NormPolicy::kL2 ? Sums::kGradient : Sums::kGradientSign;
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ double shared[kUnit][kThreads + 1];
  __shared__ SlabTable<Acc> table;
  auto* const units = reinterpret_cast<Unit<T>*>(memory) + threadIdx.x;  // x, grad, x, grad, ...
  const int thread = static_cast<int>(threadIdx.x), width = kUnit * cut.lanes;
  const int64_t all = at.ghosts() * at.channels, slabs = at.ghosts() * cut.tiles;
  for (int64_t number = blockIdx.x / cut.blocks; number < slabs;
       number += gridDim.x / cut.blocks) {
    const Slab slab(at, cut, number);
    slab.for_each([&](int at_unit, uint32_t unit, uint32_t) {
      copy_unit(units + 2 * at_unit * kThreads, of.x, unit);
      copy_unit(units + (2 * at_unit + 1) * kThreads, of.grad, unit);
    });
    __pipeline_commit();
    Acc mean[kUnit] = {}, of_grad[kUnit], constant[kUnit], spread[kUnit];
    slab.place.look_up(at, of.finish.known + slab.ghost * at.channels, mean);
    __pipeline_wait_prior(0);

    const MaskPlace<Access::kUnits, const uint8_t> bits_at(at, slab.place, of.mask);
    // A unit's x and its gradient behind the ReLU.
    const auto read = [&](int at_unit, uint32_t byte, Acc (&values)[kUnit], Acc (&g)[kUnit]) {
      widen_unit(units[2 * at_unit * kThreads], values);
      Unit<T> grads = units[(2 * at_unit + 1) * kThreads];
      if (of.mask != nullptr) grads = masked(grads, bits_at.load(byte));
      widen_unit(grads, g);
    };
    Local<kWhat, Acc, int> local[kUnit];
    slab.for_each([&](int at_unit, uint32_t, uint32_t byte) {
      Acc values[kUnit], g[kUnit];
      read(at_unit, byte, values, g);
#pragma unroll
      for (int e = 0; e < kUnit; ++e) local[e].add(values[e], g[e], mean[e], Acc(0));
    });
    double total[outputs_of(kWhat)];
    sum_slab<kWhat>(at, cut, slab, of.x, local, shared, of.partial, of.counts + number, total);
    const int64_t c = slab.tile * width + thread;
    if (thread < width && c < at.channels) {
      const auto terms = backward_terms<kWhat>(at, of.finish, slab.ghost, c, total);
      table[0][thread] = terms.of.grad;
      table[1][thread] = terms.of.constant;
      table[2][thread] = terms.of.spread;
      if (slab.rank == 0) {
        of.finish.sums[slab.ghost * at.channels + c] = terms.weight;
        of.finish.sums[all + slab.ghost * at.channels + c] = terms.bias;
      }
    }
    __syncthreads();
    read_row(table[0], slab.lane, of_grad);
    read_row(table[1], slab.lane, constant);
    read_row(table[2], slab.lane, spread);
    slab.for_each([&](int at_unit, uint32_t unit, uint32_t byte) {
      Acc values[kUnit], g[kUnit];
      read(at_unit, byte, values, g);
#pragma unroll
      for (int e = 0; e < kUnit; ++e) {
        const SpreadTerm<Policy, Acc> term(constant[e], spread[e], Acc(0), Acc(0));
        values[e] = term.gradient(of_grad[e], g[e], values[e], mean[e]);
      }
      Unit<T> out;
      narrow_unit(values, out);
      store_unit<Access::kUnits>(of.dx, unit, kUnit, out);
      if (of.dresidual == nullptr) return;
      narrow_unit(g, out);
      store_unit<Access::kUnits>(of.dresidual, unit, kUnit, out);
    });
  }
}

}  // namespace largebatch
