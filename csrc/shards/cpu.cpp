// CPU kernel of `sum_shards`: blocks that stay in the first-level cache, read once from each shard.
//
// It runs on the thread that calls it: the threads of the torus' schedule call it while torch's own
// threads compute the next gradients.

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common/clones.h"
#include "common/dispatch.h"
#include "common/host_device.h"
#include "shards/shards.h"

namespace largebatch {
namespace {

constexpr int64_t kBlock = 1024;  // accumulators of 8 KiB
constexpr int kLanes = 8;         // partial sums of squares, in a fixed order

template <typename T>
using Sum = std::conditional_t<std::is_integral_v<T>, T, double>;

template <typename T>
LARGEBATCH_HOST_DEVICE Sum<T> widen(T value) {
  if constexpr (std::is_same_v<T, Half> || std::is_same_v<T, BFloat16>) {
    return static_cast<float>(value);
  } else {
    return static_cast<Sum<T>>(value);
  }
}

// As torch casts: to 16 bits by way of float32.
template <typename T>
LARGEBATCH_HOST_DEVICE T narrow(Sum<T> value) {
  if constexpr (std::is_same_v<T, Half> || std::is_same_v<T, BFloat16>) {
    return static_cast<T>(static_cast<float>(value));
  } else {
    return static_cast<T>(value);
  }
}

template <typename T>
LARGEBATCH_HOST_DEVICE void square_block(const T* __restrict values, int64_t length, double* lanes) {
  if constexpr (!std::is_integral_v<T>) {
    int64_t i = 0;
    for (; i + kLanes <= length; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const double value = widen(values[i + lane]);
        lanes[lane] += value * value;
      }
    }
    for (int lane = 0; i < length; ++i, ++lane) {
      const double value = widen(values[i]);
      lanes[lane] += value * value;
    }
  }
}

template <typename T>
LARGEBATCH_HOST_DEVICE void add_block(Sum<T>* __restrict sums, const T* __restrict in, int64_t n) {
  constexpr bool kWhole = std::is_integral_v<T> && !std::is_same_v<T, bool>;
  using Wrapping = std::make_unsigned_t<std::conditional_t<kWhole, T, int>>;  // signed may not wrap
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (std::is_same_v<T, bool>) {
      sums[i] = sums[i] || in[i];
    } else if constexpr (kWhole) {
      sums[i] = static_cast<T>(static_cast<Wrapping>(sums[i]) + static_cast<Wrapping>(in[i]));
    } else {
      sums[i] += widen(in[i]);
    }
  }
}

template <typename In, typename Out>
LARGEBATCH_HOST_DEVICE void sum_loop(
    const In* const* shards, size_t count, Out* out, int64_t length, int64_t divisor,
    double* squares) {
  alignas(64) Sum<In> sums[kBlock];
  double before[kLanes] = {}, after[kLanes] = {};
  for (int64_t begin = 0; begin < length; begin += kBlock) {
    const int64_t n = std::min(kBlock, length - begin);
    for (int64_t i = 0; i < n; ++i) sums[i] = widen(shards[0][begin + i]);
    for (size_t shard = 1; shard < count; ++shard) add_block(sums, shards[shard] + begin, n);
    if (squares != nullptr) {
      for (size_t shard = 0; shard < count; ++shard) {
        square_block(shards[shard] + begin, n, before);
      }
    }
    if constexpr (!std::is_same_v<In, bool>) {
      if (divisor != 1) {
        for (int64_t i = 0; i < n; ++i) {
          sums[i] = static_cast<Sum<In>>(sums[i] / static_cast<
              std::conditional_t<std::is_integral_v<In>, int64_t, double>>(divisor));
        }
      }
    }
    for (int64_t i = 0; i < n; ++i) {
      if constexpr (std::is_integral_v<Out>) {
        out[begin + i] = sums[i];
      } else {
        out[begin + i] = narrow<Out>(sums[i]);
      }
    }
    if (squares != nullptr) square_block(out + begin, n, after);
  }
  if (squares != nullptr) {
    squares[0] = squares[1] = 0.0;
    for (int lane = 0; lane < kLanes; ++lane) {
      squares[0] += before[lane];
      squares[1] += after[lane];
    }
  }
}

}  // namespace

// Clones cannot be templates, hence one named overload for each pair of types.
#define LARGEBATCH_SUM_SHARDS(In, Out)                                                          \
  LARGEBATCH_CLONES static void sum_shards_kernel(                                              \
      const In* const* shards, size_t count, Out* out, int64_t length, int64_t divisor,         \
      double* squares) {                                                                        \
    sum_loop(shards, count, out, length, divisor, squares);                                     \
  }

LARGEBATCH_SUM_SHARDS(float, float)
LARGEBATCH_SUM_SHARDS(float, Half)
LARGEBATCH_SUM_SHARDS(float, BFloat16)
LARGEBATCH_SUM_SHARDS(double, double)
LARGEBATCH_SUM_SHARDS(Half, Half)
LARGEBATCH_SUM_SHARDS(BFloat16, BFloat16)
LARGEBATCH_SUM_SHARDS(uint8_t, uint8_t)
LARGEBATCH_SUM_SHARDS(int8_t, int8_t)
LARGEBATCH_SUM_SHARDS(int16_t, int16_t)
LARGEBATCH_SUM_SHARDS(int32_t, int32_t)
LARGEBATCH_SUM_SHARDS(int64_t, int64_t)
LARGEBATCH_SUM_SHARDS(bool, bool)

namespace {

template <typename In, typename Out = In>
void call(const TensorList& shards, const Tensor& out, int64_t divisor, double* squares) {
  std::vector<const In*> data;
  for (const Tensor& shard : shards) data.push_back(static_cast<const In*>(shard.const_data_ptr()));
  sum_shards_kernel(
      data.data(), data.size(), static_cast<Out*>(out.mutable_data_ptr()), out.numel(), divisor,
      squares);
}

}  // namespace

Tensor sum_shards_cpu(TensorList shards, Tensor out, int64_t divisor, bool squares) {
  check_shards(shards, out, divisor);
  const Tensor found = torch::stable::new_zeros(out, {2}, ScalarType::Double);
  const ScalarType in = shards[0].scalar_type(), to = out.scalar_type();
  double* const sums =
      squares && is_supported(in) ? static_cast<double*>(found.mutable_data_ptr()) : nullptr;
  dispatch_all(in, [&](auto* of) {
    using In = std::remove_pointer_t<decltype(of)>;
    if constexpr (std::is_same_v<In, float>) {
      if (to == ScalarType::Half) return call<float, Half>(shards, out, divisor, sums);
      if (to == ScalarType::BFloat16) return call<float, BFloat16>(shards, out, divisor, sums);
    }
    call<In>(shards, out, divisor, sums);
  });
  return found;
}

}  // namespace largebatch
