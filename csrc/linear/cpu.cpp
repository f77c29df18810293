// CPU kernel of the Hadamard transform: each row is one thread's, in plain loops that the compiler
// turns into vectors. The order of the additions depends on the sizes alone.

#include <algorithm>
#include <type_traits>
#include <vector>

#include "common/chunks.h"
#include "common/clones.h"
#include "common/dispatch.h"
#include "linear/linear.h"

namespace largebatch {
namespace {

// Values that x is added up to where the transform is shorter: whole vectors.
constexpr int64_t kLanes = 64;

// One stage of the transform with a step that the compiler knows.
template <int64_t Step, typename Acc>
inline __attribute__((always_inline)) void short_stage(Acc* values, int64_t length) {
  for (int64_t i = 0; i < length; i += 2 * Step) {
    for (int64_t j = i; j < i + Step; ++j) {
      const Acc upper = values[j], lower = values[j + Step];
      values[j] = upper + lower;
      values[j + Step] = upper - lower;
    }
  }
}

template <typename Acc>
inline __attribute__((always_inline)) void transform(Acc* values, int64_t length) {
  if (length > 1) short_stage<1>(values, length);
  if (length > 2) short_stage<2>(values, length);
  if (length > 4) short_stage<4>(values, length);
  if (length > 8) short_stage<8>(values, length);
  for (int64_t step = 16; step < length; step *= 2) {
    for (int64_t i = 0; i < length; i += 2 * step) {
      Acc* __restrict const upper = values + i;
      Acc* __restrict const lower = values + i + step;
      for (int64_t j = 0; j < step; ++j) {
        const Acc a = upper[j], b = lower[j];
        upper[j] = a + b;
        lower[j] = a - b;
      }
    }
  }
}

template <typename T, typename Acc>
inline __attribute__((always_inline)) void transform_row(
    const T* __restrict x, T* __restrict y, const HadamardShape& shape, Acc* __restrict values) {
  const int64_t width = std::max(shape.length, kLanes);
  std::fill(values, values + width, Acc(0));
  for (int64_t begin = 0; begin < shape.features; begin += width) {
    const int64_t count = std::min(width, shape.features - begin);
    for (int64_t j = 0; j < count; ++j) values[j] += static_cast<Acc>(x[begin + j]);
  }
  for (int64_t half = width / 2; half >= shape.length; half /= 2) {
    for (int64_t j = 0; j < half; ++j) values[j] += values[half + j];
  }
  transform(values, shape.length);
  for (int64_t begin = 0; begin < shape.outputs; begin += shape.length) {
    const int64_t count = std::min(shape.length, shape.outputs - begin);
    for (int64_t j = 0; j < count; ++j) y[begin + j] = static_cast<T>(values[j]);
  }
}

// Clones must be functions, not templates.
#define LARGEBATCH_HADAMARD_ROWS(T, Acc)                                                   \
  LARGEBATCH_CLONES void transform_rows(                                                   \
      const T* x, T* y, int64_t rows, const HadamardShape& shape, Acc* values) {           \
    for (int64_t row = 0; row < rows; ++row) {                                             \
      transform_row(x + row * shape.features, y + row * shape.outputs, shape, values);     \
    }                                                                                      \
  }
LARGEBATCH_HADAMARD_ROWS(float, float)
LARGEBATCH_HADAMARD_ROWS(double, double)
LARGEBATCH_HADAMARD_ROWS(Half, float)
LARGEBATCH_HADAMARD_ROWS(BFloat16, float)
#undef LARGEBATCH_HADAMARD_ROWS

template <typename T>
void run(const Tensor& x, Tensor& y, const HadamardShape& shape) {
  using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;
  const auto* const from = static_cast<const T*>(x.const_data_ptr());
  auto* const to = static_cast<T*>(y.mutable_data_ptr());
  const int64_t grain = std::max<int64_t>(1, kSerialElements / (shape.features + shape.outputs));
  torch::stable::parallel_for(0, shape.rows, grain, [&](int64_t begin, int64_t end) {
    std::vector<Acc> values(std::max(shape.length, kLanes));
    transform_rows(
        from + begin * shape.features, to + begin * shape.outputs, end - begin, shape,
        values.data());
  });
}

}  // namespace

Tensor hadamard_cpu(Tensor x, int64_t outputs) {
  const HadamardShape shape = hadamard_shape(x, outputs);
  x = torch::stable::contiguous(x);
  Tensor y = hadamard_result(x, outputs);
  dispatch(x.scalar_type(), [&](auto* of) {
    run<std::remove_pointer_t<decltype(of)>>(x, y, shape);
  });
  return y;
}

}  // namespace largebatch
