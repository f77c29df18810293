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

template <bool Momentum, typename T, typename Acc>
LARGEBATCH_HOST_DEVICE void sgd_loop(
    T* __restrict param,
    const T* __restrict grad,
    Acc* __restrict buffer,
    int64_t length,
    Acc factor,
    const SgdScalars<Acc>& scalars) {
  for (int64_t i = 0; i < length; ++i) {
    Acc value = static_cast<Acc>(param[i]);
    Acc velocity = Momentum ? buffer[i] : Acc(0);
    sgd_element<Momentum>(value, static_cast<Acc>(grad[i]), velocity, factor, scalars);
    param[i] = static_cast<T>(value);
    if (Momentum) buffer[i] = velocity;
  }
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
#define LARGEBATCH_CPU_KERNELS(T, Acc)                                                         \
  LARGEBATCH_CLONES void sgd_momentum(                                                         \
      T* param, const T* grad, Acc* buffer, int64_t length, Acc factor,                        \
      const SgdScalars<Acc>& scalars) {                                                        \
    sgd_loop<true>(param, grad, buffer, length, factor, scalars);                              \
  }                                                                                            \
  LARGEBATCH_CLONES void sgd_plain(                                                            \
      T* param, const T* grad, int64_t length, Acc factor, const SgdScalars<Acc>& scalars) {   \
    sgd_loop<false>(param, grad, static_cast<Acc*>(nullptr), length, factor, scalars);         \
  }                                                                                            \
  LARGEBATCH_CLONES double square_sum(const T* values, int64_t length) {                       \
    return square_sum_loop(values, length);                                                    \
  }

LARGEBATCH_CPU_KERNELS(float, float)
LARGEBATCH_CPU_KERNELS(double, double)
LARGEBATCH_CPU_KERNELS(Half, float)
LARGEBATCH_CPU_KERNELS(BFloat16, float)
#undef LARGEBATCH_CPU_KERNELS

double read_scalar(const Tensor& scalar) {
  STD_TORCH_CHECK(scalar.is_cpu(), "largebatch::sgd_: grad_factor and found_inf must be on the CPU");
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

void sgd_cpu(
    TensorList params,
    TensorList grads,
    TensorList momentum_buffers,
    std::optional<Tensor> grad_factor,
    std::optional<Tensor> found_inf,
    double lr,
    double momentum,
    double dampening,
    double weight_decay,
    bool decoupled,
    bool nesterov,
    bool maximize,
    bool lr_inside_momentum,
    double buffer_factor) {
  check_sgd(params, grads, momentum_buffers, momentum);
  check_scalar(grad_factor, "grad_factor");
  check_scalar(found_inf, "found_inf");
  if (found_inf && read_scalar(*found_inf) != 0.0) return;
  const double factor = (maximize ? -1.0 : 1.0) * (grad_factor ? read_scalar(*grad_factor) : 1.0);
  const bool has_buffers = momentum != 0.0;

  std::vector<TensorList*> lists = {&params};
  if (has_buffers) lists.push_back(&momentum_buffers);
  lists.push_back(&grads);
  Rows rows(lists, has_buffers ? 2 : 1);

  struct Row {
    ScalarType type;
    void* param;
    const void* grad;
    void* buffer;
  };
  std::vector<Row> table;
  table.reserve(params.size());
  for (size_t index = 0; index < params.size(); ++index) {
    table.push_back(
        {params[index].scalar_type(), params[index].mutable_data_ptr(),
         grads[index].const_data_ptr(),
         has_buffers ? momentum_buffers[index].mutable_data_ptr() : nullptr});
  }

  Chunks(params).for_each([&](int64_t, const Chunk& chunk) {
    const Row& row = table[chunk.tensor];
    dispatch(row.type, [&](auto* typed) {
      using T = std::remove_pointer_t<decltype(typed)>;
      using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;
      const auto scalars = sgd_scalars<Acc>(
          lr, momentum, dampening, weight_decay, decoupled, nesterov, lr_inside_momentum,
          buffer_factor);
      T* param = static_cast<T*>(row.param) + chunk.begin;
      const T* grad = static_cast<const T*>(row.grad) + chunk.begin;
      if (has_buffers) {
        Acc* buffer = static_cast<Acc*>(row.buffer) + chunk.begin;
        sgd_momentum(param, grad, buffer, chunk.length, static_cast<Acc>(factor), scalars);
      } else {
        sgd_plain(param, grad, chunk.length, static_cast<Acc>(factor), scalars);
      }
    });
  });
  rows.write_back();
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
