// CPU kernels of the batch norm family. The work is cut by the shapes alone and partial sums are
// added in the order of the samples, so the number of threads changes no bit.

#include <algorithm>
#include <atomic>
#include <vector>

#include "common/tensors.h"
#include "norm/cpu_kernels.h"
#include "norm/layout.h"
#include "norm/norm.h"

namespace largebatch {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Below this many elements in all, waking other threads costs more than it saves.
constexpr int64_t kSerialElements = 32768;
// Elements of a chunk of rows: 256 KiB of float32, a part of a core's second-level cache.
constexpr int64_t kRowElements = 65536;
// Rows that one float32 sum runs over: longer sums, of chunks, are float64.
constexpr int64_t kRows = 512;
// A ghost batch up to this size is one thread's: it stays in that core's second-level cache.
constexpr int64_t kGhostBytes = 512 * 1024;
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
const NormKernels<T>& kernels() {
  if constexpr (std::is_same_v<T, float>) return kernel_set().of_float;
  if constexpr (std::is_same_v<T, double>) return kernel_set().of_double;
  if constexpr (std::is_same_v<T, Half>) return kernel_set().of_half;
  if constexpr (std::is_same_v<T, BFloat16>) return kernel_set().of_bfloat16;
}

// Calls `body` with a null pointer of the tensor's element type.
template <class Body>
void dispatch(ScalarType type, const Body& body) {
  switch (type) {
    case ScalarType::Float: return body(static_cast<float*>(nullptr));
    case ScalarType::Double: return body(static_cast<double*>(nullptr));
    case ScalarType::Half: return body(static_cast<Half*>(nullptr));
    default: return body(static_cast<BFloat16*>(nullptr));
  }
}

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

int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Whole cache lines alone: one that is written both ways costs more than it saves.
template <typename T>
bool may_stream(const NormLayout& at, const void* first, const void* second) {
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 64 == 0; };
  const int64_t bytes = at.samples * at.channels * at.length * static_cast<int64_t>(sizeof(T));
  return bytes >= kStreamBytes && at.row_length() * sizeof(T) % 64 == 0 && aligned(first) &&
      aligned(second);
}

// What a call of either direction works on.
template <typename T>
struct Forward {
  NormLayout at;
  const T *x, *residual;
  T* y;
  uint8_t* mask;
  const Wide<T>*weight, *bias;
  Wide<T>* statistics;
  NormPolicy policy;
  int64_t top;
  double eps;
};

template <typename T>
struct Backward {
  NormLayout at;
  const T *grad, *x;
  const uint8_t* mask;
  T *dx, *dresidual;
  const Wide<T>* weight;
  const Wide<T>* statistics;
  Wide<T>* sums;  // (2, ghosts, channels): of weight, of bias
  NormPolicy policy;
  int64_t top;
  double eps;
};

// Cuts a planar call into blocks of a ghost and some channels; calls body(ghost, first, channels).
template <typename T, class Body>
void for_planar_blocks(const NormLayout& at, const Body& body) {
  const int64_t width = std::clamp<int64_t>(kPlanarElements / at.length, 1, kPlanarChannels);
  const int64_t blocks = (at.channels + width - 1) / width;
  const bool parallel = at.samples * at.channels * at.length > kSerialElements;
  run(parallel, at.ghosts() * blocks, [&](int64_t index) {
    const int64_t ghost = index / blocks, first = index % blocks * width;
    body(ghost, first, static_cast<int>(std::min(width, at.channels - first)));
  });
}

template <typename T>
void forward_planar(const Forward<T>& call) {
  const NormLayout& at = call.at;
  const bool stream = may_stream<T>(at, call.y, call.y);
  const int64_t all = at.ghosts() * at.channels;
  for_planar_blocks<T>(at, [&](int64_t ghost, int64_t first, int channels) {
    const int64_t top = std::min(call.top, at.values(ghost));
    std::vector<Wide<T>> heap(call.policy == NormPolicy::kTopK ? top : 0);
    const int64_t row = at.first(ghost) * at.channels + first, begin = row * at.length;
    Wide<T>* const mean = call.statistics + ghost * at.channels + first;
    kernels<T>().planar_forward(PlanarForward<T>{
        call.x + begin, call.residual == nullptr ? nullptr : call.residual + begin,
        call.y + begin, call.mask == nullptr ? nullptr : call.mask + row * at.mask_row(),
        call.weight == nullptr ? nullptr : call.weight + first,
        call.bias == nullptr ? nullptr : call.bias + first, mean, mean + all,
        call.policy == NormPolicy::kTopK ? mean + 2 * all : nullptr, heap.data(), at.size(ghost),
        at.channels * at.length, at.length, at.mask_row(), at.channels * at.mask_row(), channels,
        call.policy, top, call.eps, stream});
  });
}

template <typename T>
void backward_planar(const Backward<T>& call) {
  const NormLayout& at = call.at;
  const bool stream = may_stream<T>(at, call.dx, call.dresidual);
  const int64_t all = at.ghosts() * at.channels;
  for_planar_blocks<T>(at, [&](int64_t ghost, int64_t first, int channels) {
    const int64_t row = at.first(ghost) * at.channels + first, begin = row * at.length;
    const int64_t of_ghost = ghost * at.channels + first;
    const Wide<T>* const mean = call.statistics + of_ghost;
    const PlanarBackward<T> block{
        call.grad + begin, call.x + begin,
        call.mask == nullptr ? nullptr : call.mask + row * at.mask_row(), call.dx + begin,
        call.dresidual == nullptr ? nullptr : call.dresidual + begin,
        call.weight == nullptr ? nullptr : call.weight + first, mean, mean + all,
        call.policy == NormPolicy::kTopK ? mean + 2 * all : mean, call.sums + of_ghost,
        call.sums + all + of_ghost, at.size(ghost), at.channels * at.length, at.length,
        at.mask_row(), at.channels * at.mask_row(), channels, call.policy,
        std::min(call.top, at.values(ghost)), call.eps, stream};
    kernels<T>().planar_backward(block);
  });
}

// The rows of one ghost batch, in chunks.
template <typename T>
struct GhostRows {
  int64_t begin, rows, per_chunk, chunks, channels, padded;
  bool parallel;

  GhostRows(const NormLayout& at, int64_t ghost, bool threads)
      : begin(at.first(ghost) * at.length),
        rows(at.values(ghost)),
        per_chunk(std::clamp<int64_t>(kRowElements / at.channels, 1, kRows)),
        chunks((rows + per_chunk - 1) / per_chunk),
        channels(at.channels),
        padded(round_up(at.channels, 16)),
        parallel(threads && rows * at.channels > kSerialElements) {}

  // Calls body(chunk, first row in the tensor, rows).
  template <class Body>
  void for_chunks(const Body& body) const {
    run(parallel, chunks, [&](int64_t chunk) {
      const int64_t first = chunk * per_chunk;
      body(chunk, begin + first, std::min(per_chunk, rows - first));
    });
  }

  // Calls body(first channel, channels) for vectors of channels.
  template <class Body>
  void for_vectors(const Body& body) const {
    constexpr int64_t kCount = 64 / sizeof(Wide<T>);
    run(parallel, (channels + kCount - 1) / kCount, [&](int64_t index) {
      body(index * kCount, static_cast<int>(std::min(kCount, channels - index * kCount)));
    });
  }

  // Adds up `partial`, (chunks, padded), chunk after chunk.
  void add_up(const std::vector<Wide<T>>& partial, double* total) const {
    std::fill(total, total + channels, 0.0);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const Wide<T>* const row = partial.data() + chunk * padded;
      for (int64_t c = 0; c < channels; ++c) total[c] += static_cast<double>(row[c]);
    }
  }
};

// Whole ghosts go to threads where they are small, or where there are enough to keep all threads
// busy: that costs one wait for the slowest thread in all. Otherwise one ghost follows another and
// the threads share its rows. The sums are the same either way.
template <typename T, class Body>
void for_ghosts(const NormLayout& at, const Body& body) {
  const int64_t elements = at.channels * at.length, ghosts = at.ghosts();
  const int64_t largest = std::max(at.full > 0 ? at.ghost_size : 0, at.size(ghosts - 1));
  const int64_t threads = torch::stable::get_num_threads();
  const bool small = largest * elements * static_cast<int64_t>(sizeof(T)) <= kGhostBytes;
  const bool even = largest == at.size(ghosts - 1) && ghosts % threads == 0;
  const bool whole = ghosts > 1 && (small || even || ghosts >= 4 * threads);
  run(whole && at.samples * elements > kSerialElements, ghosts,
      [&](int64_t ghost) { body(ghost, GhostRows<T>(at, ghost, !whole)); });
}

template <typename T>
void forward_rows(const Forward<T>& call) {
  using Acc = Wide<T>;
  const NormLayout& at = call.at;
  const NormKernels<T>& kernel = kernels<T>();
  const bool stream = may_stream<T>(at, call.y, call.y);
  const int64_t channels = at.channels, all = at.ghosts() * channels;
  for_ghosts<T>(at, [&](int64_t ghost, const GhostRows<T>& rows) {
    const int64_t padded = rows.padded;
    const double n = static_cast<double>(rows.rows);
    const double constant = norm_constant(call.policy, rows.rows);
    const T* const x = call.x + rows.begin * channels;
    std::vector<Acc> shift(padded), mean(padded), scale(padded), bias(padded);
    std::vector<Acc> sums(rows.chunks * padded), squares;
    std::vector<double> sum(channels), square(channels);

    // A shift by the mean of the first rows, as good as any against cancellation.
    const int64_t some = std::min<int64_t>(rows.rows, std::min<int64_t>(rows.per_chunk, 64));
    for (int64_t c = 0; c < channels; ++c) mean[c] = static_cast<Acc>(x[c]);
    kernel.moments(x, some, channels, mean.data(), shift.data(), nullptr);
    for (int64_t c = 0; c < channels; ++c) shift[c] = mean[c] + shift[c] / static_cast<Acc>(some);

    if (call.policy == NormPolicy::kL2) squares.resize(rows.chunks * padded);
    rows.for_chunks([&](int64_t chunk, int64_t first, int64_t count) {
      const T* const begin = call.x + first * channels;
      Acc* const of_sum = sums.data() + chunk * padded;
      Acc* const of_square = squares.empty() ? nullptr : squares.data() + chunk * padded;
      kernel.moments(begin, count, channels, shift.data(), of_sum, of_square);
    });
    Acc* const out_mean = call.statistics + ghost * channels;
    Acc* const out_spread = out_mean + all;
    rows.add_up(sums, sum.data());
    if (call.policy == NormPolicy::kL2) rows.add_up(squares, square.data());
    for (int64_t c = 0; c < channels; ++c) {
      const double offset = sum[c] / n;
      mean[c] = out_mean[c] = static_cast<Acc>(static_cast<double>(shift[c]) + offset);
      const double variance = square[c] / n - offset * offset;
      out_spread[c] = static_cast<Acc>(variance < 0 ? 0 : variance);
    }
    if (call.policy == NormPolicy::kL1) {
      rows.for_chunks([&](int64_t chunk, int64_t first, int64_t count) {
        kernel.absolute(
            call.x + first * channels, count, channels, mean.data(), sums.data() + chunk * padded);
      });
      rows.add_up(sums, sum.data());
      for (int64_t c = 0; c < channels; ++c) out_spread[c] = static_cast<Acc>(sum[c] / n);
    } else if (call.policy == NormPolicy::kTopK) {
      const int64_t top = std::min(call.top, rows.rows);
      rows.for_vectors([&](int64_t c, int count) {
        std::vector<Acc> heaps(count * top);
        kernel.offer(
            x + c, rows.rows, channels, count, mean.data() + c, heaps.data(), top,
            out_mean + 2 * all + c, out_spread + c);
      });
    }
    for (int64_t c = 0; c < channels; ++c) {
      const double r =
          inverse_scale(call.policy, static_cast<double>(out_spread[c]), constant, call.eps);
      scale[c] = static_cast<Acc>(
          r * (call.weight == nullptr ? 1.0 : static_cast<double>(call.weight[c])));
      bias[c] = call.bias == nullptr ? Acc(0) : call.bias[c];
    }
    rows.for_chunks([&](int64_t, int64_t first, int64_t count) {
      const int64_t begin = first * channels;
      kernel.normalize(
          call.x + begin, call.residual == nullptr ? nullptr : call.residual + begin,
          call.y + begin, call.mask == nullptr ? nullptr : call.mask + first * at.mask_row(),
          count, channels, at.mask_row(), mean.data(), scale.data(), bias.data(), stream);
    });
  });
}

template <typename T>
void backward_rows(const Backward<T>& call) {
  using Acc = Wide<T>;
  const NormLayout& at = call.at;
  const NormKernels<T>& kernel = kernels<T>();
  const bool stream = may_stream<T>(at, call.dx, call.dresidual);
  const int64_t channels = at.channels, all = at.ghosts() * channels, mask_row = at.mask_row();
  for_ghosts<T>(at, [&](int64_t ghost, const GhostRows<T>& rows) {
    const int64_t padded = rows.padded, top = std::min(call.top, rows.rows);
    const double constant = norm_constant(call.policy, rows.rows);
    const Acc* const of_ghost = call.statistics + ghost * channels;
    const bool signs = call.policy == NormPolicy::kL1;
    // Copies, because a vector may read past the last channel.
    std::vector<Acc> mean(padded), kth(padded), share(padded), grad(padded), constants(padded);
    std::vector<Acc> spread(padded);
    std::copy_n(of_ghost, channels, mean.begin());
    std::vector<Acc> of_grad(rows.chunks * padded), of_product(rows.chunks * padded);
    std::vector<Acc> of_sign(signs ? rows.chunks * padded : 0);
    rows.for_chunks([&](int64_t chunk, int64_t first, int64_t count) {
      const int64_t begin = first * channels, part = chunk * padded;
      const uint8_t* const mask = call.mask == nullptr ? nullptr : call.mask + first * mask_row;
      kernel.gradient_sums(
          call.grad + begin, call.x + begin, mask, count, channels, mask_row, mean.data(),
          of_grad.data() + part, of_product.data() + part,
          signs ? of_sign.data() + part : nullptr);
    });
    std::vector<double> grads(channels), products(channels), sign(channels);
    rows.add_up(of_grad, grads.data());
    rows.add_up(of_product, products.data());
    if (signs) rows.add_up(of_sign, sign.data());
    if (call.policy == NormPolicy::kTopK) {
      std::copy_n(of_ghost + 2 * all, channels, kth.begin());
      rows.for_vectors([&](int64_t c, int count) {
        TopCounts counts[64 / sizeof(Acc)];
        kernel.count_top(
            call.x + rows.begin * channels + c, rows.rows, channels, count, mean.data() + c,
            kth.data() + c, counts);
        for (int lane = 0; lane < count; ++lane) {
          const TopCounts& of = counts[lane];
          share[c + lane] = static_cast<Acc>(tie_share(top, of.above, of.equal));
          sign[c + lane] = of.above_sign + static_cast<double>(share[c + lane]) * of.equal_sign;
        }
      });
    }
    for (int64_t c = 0; c < channels; ++c) {
      const double r =
          inverse_scale(call.policy, static_cast<double>(of_ghost[all + c]), constant, call.eps);
      const auto terms = gradient_terms<Acc>(
          call.policy, {grads[c], products[c], sign[c]}, rows.rows, top, r, constant,
          call.weight == nullptr ? 1.0 : static_cast<double>(call.weight[c]));
      grad[c] = terms.grad;
      constants[c] = terms.constant;
      spread[c] = terms.spread;
      call.sums[ghost * channels + c] = static_cast<Acc>(products[c] * r);
      call.sums[all + ghost * channels + c] = static_cast<Acc>(grads[c]);
    }
    const GradientCoefficients<Acc> by{mean.data(),   grad.data(), constants.data(),
                                       spread.data(), kth.data(),  share.data()};
    rows.for_chunks([&](int64_t, int64_t first, int64_t count) {
      const int64_t begin = first * channels;
      const uint8_t* const mask = call.mask == nullptr ? nullptr : call.mask + first * mask_row;
      T* const dresidual = call.dresidual == nullptr ? nullptr : call.dresidual + begin;
      kernel.gradient(
          call.policy, call.grad + begin, call.x + begin, mask, call.dx + begin, dresidual, count,
          channels, mask_row, by, stream);
    });
  });
}

template <typename T>
const T* data_of(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> ghost_norm_cpu(
    Tensor x,
    std::optional<Tensor> weight,
    std::optional<Tensor> bias,
    std::optional<Tensor> residual,
    int64_t policy,
    int64_t top,
    int64_t ghost_size,
    int64_t full,
    double eps,
    bool relu) {
  const NormLayout at = norm_layout(x, weight, bias, policy, top, ghost_size, full);
  if (residual) residual = in_layout_of(*residual, x, "residual");
  Tensor y = torch::stable::empty_like(x);
  const auto norm = static_cast<NormPolicy>(policy);
  const Tensor statistics = torch::stable::new_empty(
      x, {norm == NormPolicy::kTopK ? 3 : 2, at.ghosts(), at.channels},
      accumulate_type(x.scalar_type()));
  // Zeros, because the last byte of a row may hold no value.
  const Tensor mask =
      torch::stable::new_zeros(x, {relu ? at.mask_rows() * at.mask_row() : 0}, ScalarType::Byte);
  dispatch(x.scalar_type(), [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    const Forward<T> call{
        at, static_cast<const T*>(x.const_data_ptr()), data_of<T>(residual),
        static_cast<T*>(y.mutable_data_ptr()),
        relu ? static_cast<uint8_t*>(mask.mutable_data_ptr()) : nullptr,
        data_of<Wide<T>>(weight), data_of<Wide<T>>(bias),
        static_cast<Wide<T>*>(statistics.mutable_data_ptr()), norm, top, eps};
    if (at.planar) {
      forward_planar(call);
    } else {
      forward_rows(call);
    }
  });
  return {y, statistics, mask};
}

std::tuple<Tensor, Tensor, Tensor> ghost_norm_backward_cpu(
    Tensor grad,
    Tensor x,
    std::optional<Tensor> weight,
    Tensor statistics,
    Tensor mask,
    int64_t policy,
    int64_t top,
    int64_t ghost_size,
    int64_t full,
    double eps,
    bool residual) {
  const NormLayout at = norm_layout(x, weight, std::nullopt, policy, top, ghost_size, full);
  check_saved(x, statistics, mask, at, policy);
  grad = in_layout_of(grad, x, "grad");
  Tensor dx = torch::stable::empty_like(x);
  const bool relu = mask.numel() > 0;
  const bool masked = residual && relu;
  Tensor dresidual =
      masked ? torch::stable::empty_like(x) : torch::stable::new_empty(x, {0}, x.scalar_type());
  const Tensor sums = torch::stable::new_empty(
      x, {2, at.ghosts(), at.channels}, accumulate_type(x.scalar_type()));
  dispatch(x.scalar_type(), [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    const Backward<T> call{
        at, static_cast<const T*>(grad.const_data_ptr()),
        static_cast<const T*>(x.const_data_ptr()),
        relu ? static_cast<const uint8_t*>(mask.const_data_ptr()) : nullptr,
        static_cast<T*>(dx.mutable_data_ptr()),
        masked ? static_cast<T*>(dresidual.mutable_data_ptr()) : nullptr,
        data_of<Wide<T>>(weight), static_cast<const Wide<T>*>(statistics.const_data_ptr()),
        static_cast<Wide<T>*>(sums.mutable_data_ptr()), static_cast<NormPolicy>(policy), top,
        eps};
    if (at.planar) {
      backward_planar(call);
    } else {
      backward_rows(call);
    }
  });
  return {dx, sums, dresidual};
}

}  // namespace largebatch
