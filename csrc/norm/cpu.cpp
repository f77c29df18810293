// CPU back end of the batch norm family: what is done with each section of a call.

#include <vector>

#include "common/dispatch.h"
#include "common/tensors.h"
#include "norm/calls.h"
#include "norm/cpu_sections.h"

namespace largebatch {
namespace {

// Outputs from this size on are not read again from the caches: they are stored past them.
constexpr int64_t kStreamBytes = 16 * 1024 * 1024;

// The kernels of the best instruction set that this machine has.
const NormKernelSet& kernel_set() {
  static const NormKernelSet& chosen = []() -> const NormKernelSet& {
#ifdef LARGEBATCH_NORM_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("x86-64-v4")) return norm_kernels_avx512();
    if (__builtin_cpu_supports("x86-64-v3")) return norm_kernels_avx2();
#endif
    return norm_kernels_base();
  }();
  return chosen;
}

template <typename T>
const T* data_of(const Tensor& tensor) {
  return tensor.numel() == 0 ? nullptr : static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
const T* data_of(const std::optional<Tensor>& tensor) {
  return tensor ? data_of<T>(*tensor) : nullptr;
}

template <typename T>
T* result_of(const Tensor& tensor) {
  return tensor.numel() == 0 ? nullptr : static_cast<T*>(tensor.mutable_data_ptr());
}

// The memory of a mask to be written: zeros, because the last byte of a row may hold no value.
uint8_t* cleared(const Tensor& mask) {
  auto* const data = result_of<uint8_t>(mask);
  std::fill_n(data, mask.numel(), uint8_t(0));
  return data;
}

// Whole cache lines alone: one that is written both ways costs more than it saves.
template <typename T>
bool may_stream(const NormLayout& at, const T* first, const T* second = nullptr) {
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 64 == 0; };
  const int64_t bytes = at.samples * at.channels * at.length * static_cast<int64_t>(sizeof(T));
  return bytes >= kStreamBytes && at.row_length() * sizeof(T) % 64 == 0 && aligned(first) &&
      aligned(second);
}

// Reads and writes the section's part of tables with `channels` values a row.
template <class Section, typename Acc>
void read_row(const Section& of, const Acc* row, Acc* to) {
  std::copy_n(row + of.first, of.channels, to);
}

template <class Section, typename Acc>
void write_row(const Section& of, const Acc* from, Acc* row) {
  std::copy_n(from, of.channels, row + of.first);
}

}  // namespace

template <>
const NormKernels<float>& norm_kernels<float>() { return kernel_set().of_float; }
template <>
const NormKernels<double>& norm_kernels<double>() { return kernel_set().of_double; }
template <>
const NormKernels<Half>& norm_kernels<Half>() { return kernel_set().of_half; }
template <>
const NormKernels<BFloat16>& norm_kernels<BFloat16>() { return kernel_set().of_bfloat16; }

void ghost_norm_cpu(const GhostNorm& call) {
  dispatch(call.x.scalar_type(), [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    using Acc = Wide<T>;
    const NormLayout& at = call.at;
    const auto *x = data_of<T>(call.x), *residual = data_of<T>(call.residual);
    const auto *weight = data_of<Acc>(call.weight), *bias = data_of<Acc>(call.bias);
    auto* const y = result_of<T>(call.y);
    auto* const mask = cleared(call.mask);
    const int64_t all = at.ghosts() * at.channels;
    const bool stream = may_stream(at, y);
    for_sections<T>(at, [&](const auto& of) {
      Columns<Acc> columns(of.channels, 5);
      Acc *const mean = columns[0], *const spread = columns[1], *const kth = columns[2];
      Acc *const scale = columns[3], *const shift = columns[4];
      const bool l2 = call.policy == NormPolicy::kL2, top = call.policy == NormPolicy::kTopK;
      of.moments(x, mean, l2 ? spread : nullptr);
      if (call.policy == NormPolicy::kL1) of.absolute(x, mean, spread);
      if (top) of.offer(x, mean, std::min(call.top, of.values), kth, spread);
      const double constant = norm_constant(call.policy, of.values);
      for (int64_t c = 0; c < of.channels; ++c) {
        const double w = weight == nullptr ? 1.0 : static_cast<double>(weight[of.first + c]);
        const double s = static_cast<double>(spread[c]);
        scale[c] = static_cast<Acc>(inverse_scale(call.policy, s, constant, call.eps) * w);
        shift[c] = bias == nullptr ? Acc(0) : bias[of.first + c];
      }
      Acc* const row = result_of<Acc>(call.statistics) + of.ghost * at.channels;
      write_row(of, mean, row);
      write_row(of, spread, row + all);
      if (top) write_row(of, kth, row + 2 * all);
      of.normalize(x, residual, y, mask, mean, scale, shift, stream);
    });
  });
}

void ghost_norm_backward_cpu(const GhostNormBackward& call) {
  dispatch(call.x.scalar_type(), [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    using Acc = Wide<T>;
    const NormLayout& at = call.at;
    const auto *grad = data_of<T>(call.grad), *x = data_of<T>(call.x);
    const auto* const mask = data_of<uint8_t>(call.mask);
    const auto *weight = data_of<Acc>(call.weight), *statistics = data_of<Acc>(call.statistics);
    auto *const dx = result_of<T>(call.dx), *const dresidual = result_of<T>(call.dresidual);
    const int64_t all = at.ghosts() * at.channels;
    const bool stream = may_stream(at, dx, dresidual);
    for_sections<T>(at, [&](const auto& of) {
      Columns<Acc> columns(of.channels, 6);
      Acc *const mean = columns[0], *const of_grad = columns[1], *const constant = columns[2];
      Acc *const spread = columns[3], *const kth = columns[4], *const share = columns[5];
      const int64_t top = std::min(call.top, of.values);
      const Acc* const row = statistics + of.ghost * at.channels;
      read_row(of, row, mean);
      std::vector<GradientSums> sums(of.channels);
      of.gradient_sums(grad, x, mask, mean, call.policy == NormPolicy::kL1, sums.data());
      if (call.policy == NormPolicy::kTopK) {
        read_row(of, row + 2 * all, kth);
        std::vector<TopCounts> counts(of.channels);
        of.count_top(x, mean, kth, counts.data());
        for (int64_t c = 0; c < of.channels; ++c) {
          share[c] = static_cast<Acc>(tie_share(top, counts[c].above, counts[c].equal));
          sums[c].sign =
              counts[c].above_sign + static_cast<double>(share[c]) * counts[c].equal_sign;
        }
      }
      const double factor = norm_constant(call.policy, of.values);
      Acc* const of_weight = result_of<Acc>(call.sums) + of.ghost * at.channels + of.first;
      for (int64_t c = 0; c < of.channels; ++c) {
        const double r = inverse_scale(
            call.policy, static_cast<double>(row[all + of.first + c]), factor, call.eps);
        const auto terms = gradient_terms<Acc>(
            call.policy, sums[c], of.values, top, r, factor,
            weight == nullptr ? 1.0 : static_cast<double>(weight[of.first + c]));
        of_grad[c] = terms.grad;
        constant[c] = terms.constant;
        spread[c] = terms.spread;
        of_weight[c] = static_cast<Acc>(sums[c].grad_deviation * r);
        of_weight[all + c] = static_cast<Acc>(sums[c].grad);
      }
      of.gradient(
          call.policy, grad, x, mask, dx, dresidual, {mean, of_grad, constant, spread, kth, share},
          stream);
    });
  });
}

void norm_moments_cpu(const NormMoments& call) {
  dispatch(call.x.scalar_type(), [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    using Acc = Wide<T>;
    const auto* const x = data_of<T>(call.x);
    const auto* const center = data_of<Acc>(call.center);
    auto* const statistics = result_of<Acc>(call.statistics);
    for_sections<T>(call.at, [&](const auto& of) {
      Columns<Acc> columns(of.channels, 2);
      Acc *const mean = columns[0], *const spread = columns[1];
      if (center == nullptr) {
        of.moments(x, mean, spread);
      } else {
        read_row(of, center, mean);
        of.absolute(x, mean, spread);
      }
      write_row(of, mean, statistics);
      write_row(of, spread, statistics + call.at.channels);
    });
  });
}

void norm_apply_cpu(const NormApply& call) {
  dispatch(call.x.scalar_type(), [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    using Acc = Wide<T>;
    const auto *x = data_of<T>(call.x), *residual = data_of<T>(call.residual);
    const auto* const coefficients = data_of<Acc>(call.coefficients);
    auto* const y = result_of<T>(call.y);
    auto* const mask = cleared(call.mask);
    const bool stream = may_stream(call.at, y);
    for_sections<T>(call.at, [&](const auto& of) {
      Columns<Acc> columns(of.channels, 3);
      for (int row = 0; row < 3; ++row) {
        read_row(of, coefficients + row * call.at.channels, columns[row]);
      }
      of.normalize(x, residual, y, mask, columns[0], columns[1], columns[2], stream);
    });
  });
}

void norm_gradient_sums_cpu(const NormGradientSums& call) {
  dispatch(call.x.scalar_type(), [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    using Acc = Wide<T>;
    const int64_t channels = call.at.channels;
    const auto *grad = data_of<T>(call.grad), *x = data_of<T>(call.x);
    const auto* const statistics = data_of<Acc>(call.statistics);
    auto* const out = result_of<Acc>(call.sums);
    for_sections<T>(call.at, [&](const auto& of) {
      Columns<Acc> columns(of.channels, 2);
      Acc *const mean = columns[0], *const kth = columns[1];
      read_row(of, statistics, mean);
      std::vector<GradientSums> sums(of.channels);
      std::vector<TopCounts> counts(of.channels);
      of.gradient_sums(
          grad, x, data_of<uint8_t>(call.mask), mean, call.policy == NormPolicy::kL1,
          sums.data());
      if (call.policy == NormPolicy::kTopK) {
        read_row(of, statistics + 2 * channels, kth);
        of.count_top(x, mean, kth, counts.data());
      }
      for (int64_t c = 0; c < of.channels; ++c) {
        Acc* const column = out + of.first + c;
        column[0] = static_cast<Acc>(sums[c].grad);
        column[channels] = static_cast<Acc>(sums[c].grad_deviation);
        if (call.policy == NormPolicy::kL1) column[2 * channels] = static_cast<Acc>(sums[c].sign);
        if (call.policy != NormPolicy::kTopK) continue;
        column[2 * channels] = static_cast<Acc>(counts[c].above);
        column[3 * channels] = static_cast<Acc>(counts[c].equal);
        column[4 * channels] = static_cast<Acc>(counts[c].above_sign);
        column[5 * channels] = static_cast<Acc>(counts[c].equal_sign);
      }
    });
  });
}

void norm_gradient_cpu(const NormGradient& call) {
  dispatch(call.x.scalar_type(), [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    using Acc = Wide<T>;
    const auto *grad = data_of<T>(call.grad), *x = data_of<T>(call.x);
    const auto* const coefficients = data_of<Acc>(call.coefficients);
    auto *const dx = result_of<T>(call.dx), *const dresidual = result_of<T>(call.dresidual);
    const bool stream = may_stream(call.at, dx, dresidual);
    for_sections<T>(call.at, [&](const auto& of) {
      Columns<Acc> columns(of.channels, 6);
      for (int row = 0; row < 6; ++row) {
        read_row(of, coefficients + row * call.at.channels, columns[row]);
      }
      of.gradient(
          call.policy, grad, x, data_of<uint8_t>(call.mask), dx, dresidual,
          {columns[0], columns[1], columns[2], columns[3], columns[4], columns[5]}, stream);
    });
  });
}

}  // namespace largebatch
