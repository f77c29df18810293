// CPU kernels of the optimizer family: fixed chunks over torch's threads, plain loops that the
// compiler turns into vectors.

#include "optim/cpu.h"

#include <cmath>

#include "common/chunks.h"
#include "common/clones.h"
#include "common/tensors.h"
#include "optim/check.h"
#include "optim/math.h"
#include "optim/optim.h"

namespace largebatch {
namespace {

// Two streams, both halves of each array side by side: a core waits for memory, and more streams
// keep more requests on their way.
template <bool Momentum, typename T, typename Buffer, typename Acc>
LARGEBATCH_HOST_DEVICE void sgd_loop(
    T* __restrict param,
    const T* __restrict grad,
    Buffer* __restrict buffer,
    Acc* __restrict master,
    int64_t length,
    Acc factor,
    const SgdScalars<Acc>& scalars) {
  const auto element = [&](int64_t i) __attribute__((always_inline)) {
    Acc value = master[i];
    Acc velocity = Momentum ? static_cast<Acc>(buffer[i]) : Acc(0);
    sgd_element<Momentum>(value, static_cast<Acc>(grad[i]), velocity, factor, scalars);
    master[i] = value;
    if constexpr (!std::is_same_v<T, Acc>) param[i] = static_cast<T>(value);
    if (Momentum) buffer[i] = static_cast<Buffer>(velocity);
  };
  const int64_t half = length / 2 / kLanes * kLanes;
  for (int64_t i = 0; i < half; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) element(i + lane);
    for (int lane = 0; lane < kLanes; ++lane) element(half + i + lane);
  }
  for (int64_t i = 2 * half; i < length; ++i) element(i);
}

template <typename T>
LARGEBATCH_HOST_DEVICE void widen_loop(
    const T* __restrict from, float* __restrict to, int64_t length) {
  for (int64_t i = 0; i < length; ++i) to[i] = static_cast<float>(from[i]);
}

// float64 holds the square of every float32 exactly in range.
template <typename T>
LARGEBATCH_HOST_DEVICE double square_sum_loop(const T* __restrict values, int64_t length) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= length; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const double value = static_cast<double>(static_cast<float>(values[i + lane]));
      lanes[lane] += value * value;
    }
  }
  for (int lane = 0; i < length; ++i, ++lane) {
    const double value = static_cast<double>(static_cast<float>(values[i]));
    lanes[lane] += value * value;
  }
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

template <>
LARGEBATCH_HOST_DEVICE double square_sum_loop(const double* __restrict values, int64_t length) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= length; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += values[i + lane] * values[i + lane];
  }
  for (int lane = 0; i < length; ++i, ++lane) lanes[lane] += values[i] * values[i];
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

}  // namespace

// Clones cannot be templates, hence one named overload a type.
#define LARGEBATCH_MOMENTUM(T, Buffer, Acc)                                                    \
  LARGEBATCH_CLONES void sgd_momentum(                                                         \
      T* param, const T* grad, Buffer* buffer, Acc* master, int64_t length, Acc factor,        \
      const SgdScalars<Acc>& scalars) {                                                        \
    sgd_loop<true>(param, grad, buffer, master, length, factor, scalars);                      \
  }
LARGEBATCH_MOMENT_TYPES(LARGEBATCH_MOMENTUM)
#undef LARGEBATCH_MOMENTUM

#define LARGEBATCH_TYPE(T, Acc)                                                                \
  LARGEBATCH_CLONES void sgd_plain(                                                            \
      T* param, const T* grad, Acc* master, int64_t length, Acc factor,                        \
      const SgdScalars<Acc>& scalars) {                                                        \
    sgd_loop<false>(                                                                           \
        param, grad, static_cast<Acc*>(nullptr), master, length, factor, scalars);             \
  }                                                                                            \
  LARGEBATCH_CLONES double square_sum(const T* values, int64_t length) {                       \
    return square_sum_loop(values, length);                                                    \
  }
LARGEBATCH_TYPES(LARGEBATCH_TYPE)
#undef LARGEBATCH_TYPE

LARGEBATCH_CLONES void widen(const Half* from, float* to, int64_t length) {
  widen_loop(from, to, length);
}
LARGEBATCH_CLONES void widen(const BFloat16* from, float* to, int64_t length) {
  widen_loop(from, to, length);
}

std::vector<HostRow> host_rows(const StepLists& lists) {
  std::vector<HostRow> rows;
  rows.reserve(lists.params.size());
  for (size_t index = 0; index < lists.params.size(); ++index) {
    const bool has_master = !lists.masters.empty() && lists.masters[index].numel() > 0;
    const bool has_first = !lists.first.empty();
    rows.push_back(
        {lists.params[index].scalar_type(),
         has_first ? lists.first[index].scalar_type() : ScalarType::Float,
         lists.params[index].mutable_data_ptr(),
         lists.grads[index].const_data_ptr(),
         has_first ? lists.first[index].mutable_data_ptr() : nullptr,
         lists.second.empty() ? nullptr : lists.second[index].mutable_data_ptr(),
         has_master ? lists.masters[index].mutable_data_ptr() : nullptr});
  }
  return rows;
}

double read_scalar(const Tensor& scalar) {
  STD_TORCH_CHECK(scalar.is_cpu(), "largebatch: grad_factor and found_inf must be on the CPU");
  return scalar.scalar_type() == ScalarType::Double
      ? *static_cast<const double*>(scalar.const_data_ptr())
      : static_cast<double>(*static_cast<const float*>(scalar.const_data_ptr()));
}

namespace {

double norm_of(TensorList& tensors) {
  for (Tensor& tensor : tensors) {
    if (!is_dense(tensor)) tensor = torch::stable::contiguous(tensor);
  }
  const Chunks chunks(tensors);
  std::vector<double> partial(chunks.size());
  std::vector<ScalarType> types;
  std::vector<const void*> data;
  for (const Tensor& tensor : tensors) {
    types.push_back(tensor.scalar_type());
    data.push_back(tensor.const_data_ptr());
  }
  chunks.for_each([&](int64_t position, const Chunk& chunk) {
    dispatch(types[chunk.tensor], [&](auto* typed) {
      using T = std::remove_pointer_t<decltype(typed)>;
      const T* values = static_cast<const T*>(data[chunk.tensor]) + chunk.begin;
      partial[position] = square_sum(values, chunk.length);
    });
  });
  double sum = 0.0;
  for (const double value : partial) sum += value;
  return std::sqrt(sum);
}

Tensor scalar_tensor(double value, ScalarType type) {
  Tensor result = torch::stable::empty({}, type);
  if (type == ScalarType::Double) {
    *static_cast<double*>(result.mutable_data_ptr()) = value;
  } else {
    *static_cast<float*>(result.mutable_data_ptr()) = static_cast<float>(value);
  }
  return result;
}

}  // namespace

void sgd_step_cpu(StepLists lists, const StepScalars& scalars, const SgdOptions& options) {
  if (scalars.found_inf && read_scalar(*scalars.found_inf) != 0.0) return;
  const double factor = (options.maximize ? -1.0 : 1.0) *
      (scalars.grad_factor ? read_scalar(*scalars.grad_factor) : 1.0);
  Rows flat = flat_rows(lists);
  const std::vector<HostRow> rows = host_rows(lists);
  Chunks(lists.params).for_each([&](int64_t, const Chunk& chunk) {
    with_types(rows[chunk.tensor], chunk, [&](const auto& span) {
      using Acc = typename std::decay_t<decltype(span)>::Acc;
      sgd_chunk(span, static_cast<Acc>(factor), sgd_scalars<Acc>(options));
    });
  });
  flat.write_back();
}

Tensor global_norm_cpu(TensorList tensors) {
  const ScalarType type = norm_type(tensors);
  return scalar_tensor(norm_of(tensors), type);
}

std::tuple<Tensor, Tensor> clip_factor_cpu(
    TensorList tensors, double max_norm, double eps, std::optional<Tensor> scale) {
  const ScalarType type = norm_type(tensors);
  check_scalar(scale, "scale");
  const double factor = scale ? read_scalar(*scale) : 1.0;
  const double norm = factor * norm_of(tensors);
  return {
      scalar_tensor(norm, type), scalar_tensor(factor * clip_factor_of(norm, max_norm, eps), type)};
}

}  // namespace largebatch
