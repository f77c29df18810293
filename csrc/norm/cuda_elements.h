// CUDA kernels that write every element: a thread keeps to its place in a period, with the
// coefficients of its channels in registers, and has the loads of several units in flight.

#pragma once

#include <type_traits>

#include "norm/cuda_units.h"

namespace largebatch {

// What a thread of an element-wise kernel does: units at one place of the periods begin, begin +
// lines, ... of a ghost.
template <Access By>
struct Walk {
  Share share;
  int lane, lines, begin;
  Place<By> place;
  Index<By> index, step;          // of the first unit, and from one to the next
  uint32_t mask_index, mask_step;  // of its period in the mask

  // With `halo`, a warp's last lane has the unit of the next warp's first, see MaskPlace.
  __device__ __forceinline__ Walk(const NormLayout& at, const Cut& cut, bool halo)
      : share(at, cut, blockIdx.x),
        lane(static_cast<int>(threadIdx.x) & (cut.lanes - 1)),
        lines(kThreads / cut.lanes),
        begin(share.begin + static_cast<int>(threadIdx.x) / cut.lanes),
        place(at, unit_of(share.tile * cut.lanes + lane, halo)) {
    const int64_t period = periods_of(at, at.first(share.ghost)) + begin;
    // Those that are outside, and have to stay, read what is inside.
    index = index_of<By>(period * period_of(at) + (place.count > 0 ? place.offset : 0));
    step = index_of<By>(lines * period_of(at));
    mask_index = static_cast<uint32_t>(period * mask_period_of(at));
    mask_step = static_cast<uint32_t>(lines * mask_period_of(at));
  }

  static __device__ __forceinline__ int64_t unit_of(int64_t thread, bool halo) {
    return halo ? thread / 32 * 31 + thread % 32 : thread;
  }

  // Calls `body(number, index, mask_index)` for `Batch` units at a time, then for single ones, with
  // a compile-time `number`.
  template <int Batch, class Body>
  __device__ __forceinline__ void for_each(const Body& body) {
    int r = begin;
    for (; Batch > 1 && r + (Batch - 1) * lines < share.end; r += Batch * lines) {
      body(std::integral_constant<int, Batch>{}, index, mask_index);
      index += Batch * step;
      mask_index += Batch * mask_step;
    }
#pragma unroll 1
    for (; r < share.end; r += lines) {
      body(std::integral_constant<int, 1>{}, index, mask_index);
      index += step;
      mask_index += mask_step;
    }
  }
};

template <Access By>
constexpr int kElementBatch = By == Access::kValues ? 1 : 4;

template <typename T, Access By>
constexpr int kNormalizeResident = resident<T>(By == Access::kUnits && sizeof(T) == 2 ? 3 : 2);

template <typename T>
struct Normalized {
  using Acc = typename Accumulate<T>::type;
  const T* x;
  const T* residual;        // null without one
  const Acc* coefficients;  // (3, ghosts, channels): mean, scale, bias
  T* y;
  uint8_t* mask;            // null without one
};

template <typename T, Access By>
__global__ void __launch_bounds__(kThreads, kNormalizeResident<T, By>) normalize_kernel(
    const NormLayout at, const Cut cut, const Normalized<T> of) {
  using Acc = typename Accumulate<T>::type;
  const bool halo = By == Access::kAcross && of.mask != nullptr;
  Walk<By> walk(at, cut, halo);
  const Place<By> place = walk.place;
  if (!halo && place.count == 0) return;  // with one, all lanes of a warp have to stay
  const bool is_owner =
      By != Access::kAcross || (place.count > 0 && !(halo && walk.lane % 32 == 31));
  const MaskPlace<By, uint8_t> bits_at(at, place, of.mask, is_owner);
  const int64_t channels = at.ghosts() * at.channels;
  const Acc* const table = of.coefficients + walk.share.ghost * at.channels;
  Acc mean[kUnit], scale[kUnit], bias[kUnit];
  place.look_up(at, table, mean);
  place.look_up(at, table + channels, scale);
  place.look_up(at, table + 2 * channels, bias);

  const auto run = [&](auto with_residual, auto with_mask) {
    const bool adds = By == Access::kValues ? of.residual != nullptr : with_residual.value;
    const bool cuts = By == Access::kValues ? of.mask != nullptr : with_mask.value;
    walk.template for_each<kElementBatch<By>>([&](auto number, Index<By> index, uint32_t byte) {
      constexpr int kBatch = decltype(number)::value;
      Unit<T> in[kBatch], more[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        in[k] = load_unit<By>(of.x, index + k * walk.step, place.count);
        if (adds) more[k] = load_unit<By>(of.residual, index + k * walk.step, place.count);
      }
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        Acc values[kUnit], others[kUnit];
        widen_unit(in[k], values);
        if (adds) widen_unit(more[k], others);
#pragma unroll
        for (int e = 0; e < kUnit; ++e) {
          values[e] = (values[e] - mean[e]) * scale[e] + bias[e];
          if (adds) values[e] += others[e];
        }
        int bits = cuts ? passing(values) : 0;
        if (By == Access::kValues) bits &= (1 << place.count) - 1;
        int following = 0;
        if (By == Access::kAcross && cuts) following = __shfl_down_sync(0xffffffffu, bits, 1);
        if (cuts) bits_at.store(byte + k * walk.mask_step, bits, following);
        Unit<T> out;
        cuts ? narrow_passing(values, out) : narrow_unit(values, out);
        if (is_owner) store_unit<By>(of.y, index + k * walk.step, place.count, out);
      }
    });
  };
  // Each its own loop, without a branch in it.
  constexpr std::true_type kYes{};
  constexpr std::false_type kNo{};
  if (By == Access::kValues || (of.residual == nullptr && of.mask == nullptr)) {
    run(kNo, kNo);
  } else if (of.residual == nullptr) {
    run(kNo, kYes);
  } else {
    of.mask == nullptr ? run(kYes, kNo) : run(kYes, kYes);
  }
}

// `value` or, where `d` is negative, -value.
__device__ __forceinline__ float with_sign_of(float d, float value) {
  return __uint_as_float(__float_as_uint(value) ^ (__float_as_uint(d) & 0x80000000u));
}
__device__ __forceinline__ double with_sign_of(double d, double value) {
  return d < 0 ? -value : value;
}

// What a gradient needs beside grad and constant, see math.h: the kernels' tables have the rows
// grad, constant, spread, kth and share.
template <NormPolicy Policy, typename Acc>
struct SpreadTerm {
  Acc constant, spread, kth, tie;

  // Ties share; without a deviation they have no sign, and no share.
  SpreadTerm() = default;
  __device__ __forceinline__ SpreadTerm(Acc constant, Acc spread, Acc kth, Acc share)
      : constant(constant), spread(spread), kth(kth), tie(kth > 0 ? spread * share : Acc(0)) {}

  // grad * g + constant + spread * s(x - mean).
  __device__ __forceinline__ Acc gradient(Acc grad, Acc g, Acc x, Acc mean) const {
    if constexpr (Policy == NormPolicy::kL2) return grad * g + (constant + spread * (x - mean));
    if constexpr (Policy == NormPolicy::kL1) {
      // The sign of a deviation is the order of x and the mean.
      const Acc below = x < mean ? constant - spread : constant;
      return grad * g + (x > mean ? constant + spread : below);
    }
    const Acc d = x - mean, size = fabs(d), without = grad * g + constant;
    const Acc part = size > kth ? spread : tie;
    return size >= kth ? without + with_sign_of(d, part) : without;
  }
};

template <typename T, NormPolicy Policy, Access By>
constexpr int kGradientResident =
    resident<T>(Policy == NormPolicy::kL2 && By == Access::kUnits && sizeof(T) == 2 ? 3 : 2);

template <typename T>
struct Gradients {
  using Acc = typename Accumulate<T>::type;
  const T* grad;
  const T* x;
  const uint8_t* mask;      // null without one
  const Acc* means;         // (ghosts, channels)
  const Acc* coefficients;  // (3 or 5, ghosts, channels)
  T* dx;
  T* dresidual;             // null unless there is a mask and a residual
};

template <typename T, NormPolicy Policy, Access By>
__global__ void __launch_bounds__(kThreads, kGradientResident<T, Policy, By>) gradient_kernel(
    const NormLayout at, const Cut cut, const Gradients<T> of) {
  using Acc = typename Accumulate<T>::type;
  constexpr int kMost = By == Access::kValues ? 1 : 2;
  Walk<By> walk(at, cut, false);
  const Place<By> place = walk.place;
  if (place.count == 0) return;
  const MaskPlace<By, const uint8_t> bits_at(at, place, of.mask);
  const int64_t channels = at.ghosts() * at.channels;
  const Acc* const table = of.coefficients + walk.share.ghost * at.channels;
  Acc mean[kUnit], of_grad[kUnit];
  SpreadTerm<Policy, Acc> term[kUnit];
  place.look_up(at, of.means + walk.share.ghost * at.channels, mean);
  place.look_up(at, table, of_grad);
  {
    Acc constant[kUnit], spread[kUnit], kth[kUnit] = {}, share[kUnit] = {};
    place.look_up(at, table + channels, constant);
    place.look_up(at, table + 2 * channels, spread);
    if constexpr (Policy == NormPolicy::kTopK) {
      place.look_up(at, table + 3 * channels, kth);
      place.look_up(at, table + 4 * channels, share);
    }
#pragma unroll
    for (int e = 0; e < kUnit; ++e) term[e] = {constant[e], spread[e], kth[e], share[e]};
  }

  const auto run = [&](auto with_mask, auto with_dresidual) {
    const bool cuts = By == Access::kValues ? of.mask != nullptr : with_mask.value;
    const bool keeps = By == Access::kValues ? of.dresidual != nullptr : with_dresidual.value;
    walk.template for_each<kMost>([&](auto number, Index<By> index, uint32_t byte) {
      constexpr int kBatch = decltype(number)::value;
      Unit<T> grads[kBatch], in[kBatch];
      int bits[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        grads[k] = load_unit<By>(of.grad, index + k * walk.step, place.count);
        in[k] = load_unit<By>(of.x, index + k * walk.step, place.count);
        if (cuts) bits[k] = bits_at.load(byte + k * walk.mask_step);
      }
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const Unit<T> kept = cuts ? masked(grads[k], bits[k]) : grads[k];
        if (keeps) store_unit<By>(of.dresidual, index + k * walk.step, place.count, kept);
        Acc g[kUnit], values[kUnit];
        widen_unit(kept, g);
        widen_unit(in[k], values);
#pragma unroll
        for (int e = 0; e < kUnit; ++e) {
          values[e] = term[e].gradient(of_grad[e], g[e], values[e], mean[e]);
        }
        Unit<T> out;
        narrow_unit(values, out);
        store_unit<By>(of.dx, index + k * walk.step, place.count, out);
      }
    });
  };
  constexpr std::true_type kYes{};
  constexpr std::false_type kNo{};
  if (By == Access::kValues || of.mask == nullptr) {
    run(kNo, kNo);
  } else {
    of.dresidual == nullptr ? run(kYes, kNo) : run(kYes, kYes);
  }
}

}  // namespace largebatch
