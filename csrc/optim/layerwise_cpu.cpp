// LARS and LAMB on the CPU: norms and update of a wave of tensors one after the other, so that the
// update finds in cache what the norms have read.

#include <cmath>

#include "common/chunks.h"
#include "common/clones.h"
#include "optim/cpu.h"
#include "optim/layerwise.h"

namespace largebatch {
namespace {

// Elements of a wave: parameters and gradients of it (float32) fill the second-level caches of a
// few cores; a larger tensor is a wave of its own.
constexpr int64_t kWaveElements = 524288;

// Elements whose squares are added in their own precision before float64 takes over.
constexpr int kBlock = 1024;

// The sum that lanes hold of a block's squares, added in a fixed order. Lanes in the elements' own
// precision are twice as fast as in float64; near the ends of float32's range it is taken again.
template <typename T, typename Acc>
LARGEBATCH_HOST_DEVICE double finish_lanes(Acc* lanes, const T* __restrict block, int count) {
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  if (std::is_same_v<Acc, double> || (lanes[0] > Acc(1e-25) && lanes[0] < Acc(1e30))) {
    return static_cast<double>(lanes[0]);
  }
  double sum = 0.0;
  for (int i = 0; i < count; ++i) {
    const double value = static_cast<double>(static_cast<Acc>(block[i]));
    sum += value * value;
  }
  return sum;
}

template <typename Acc>
LARGEBATCH_HOST_DEVICE double block_square_sum(const Acc* __restrict block, int count) {
  Acc lanes[kLanes] = {};
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += block[i + lane] * block[i + lane];
  }
  for (int lane = 0; i < count; ++i, ++lane) lanes[lane] += block[i] * block[i];
  return finish_lanes(lanes, block, count);
}

// The sums of squares of parameters and gradients. Four streams, both halves of each array side by
// side: a core waits for memory, and more streams keep more requests on their way.
template <typename T, typename Acc>
LARGEBATCH_HOST_DEVICE void square_sums_loop(
    const Acc* __restrict param, const T* __restrict grad, int64_t length, double* sums) {
  const int64_t half = length / 2 / kBlock * kBlock;
  for (int64_t begin = 0; begin < half; begin += kBlock) {
    Acc low_w[kLanes] = {}, high_w[kLanes] = {}, low_g[kLanes] = {}, high_g[kLanes] = {};
    for (int64_t i = begin; i < begin + kBlock; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        low_w[lane] += param[i + lane] * param[i + lane];
        high_w[lane] += param[half + i + lane] * param[half + i + lane];
        const Acc low = static_cast<Acc>(grad[i + lane]);
        const Acc high = static_cast<Acc>(grad[half + i + lane]);
        low_g[lane] += low * low;
        high_g[lane] += high * high;
      }
    }
    sums[0] += finish_lanes(low_w, param + begin, kBlock) +
        finish_lanes(high_w, param + half + begin, kBlock);
    sums[1] += finish_lanes(low_g, grad + begin, kBlock) +
        finish_lanes(high_g, grad + half + begin, kBlock);
  }
  Acc block[kBlock];
  for (int64_t begin = 2 * half; begin < length; begin += kBlock) {
    const int count = static_cast<int>(std::min<int64_t>(kBlock, length - begin));
    sums[0] += block_square_sum(param + begin, count);
    for (int i = 0; i < count; ++i) block[i] = static_cast<Acc>(grad[begin + i]);
    sums[1] += block_square_sum(block, count);
  }
}

template <typename T, typename Acc>
LARGEBATCH_HOST_DEVICE double joint_square_sum_loop(
    const T* __restrict grad, const Acc* __restrict param, int64_t length, Acc factor, Acc decay) {
  double sum = 0.0;
  Acc block[kBlock];
  for (int64_t begin = 0; begin < length; begin += kBlock) {
    const int count = static_cast<int>(std::min<int64_t>(kBlock, length - begin));
    for (int i = 0; i < count; ++i) {
      block[i] = factor * static_cast<Acc>(grad[begin + i]) + decay * param[begin + i];
    }
    sum += block_square_sum(block, count);
  }
  return sum;
}

// Moments of a chunk, in place, and the sums of squares of its parameters and its update.
template <typename T, typename Moment, typename Acc>
LARGEBATCH_HOST_DEVICE void lamb_moments_loop(
    const Acc* __restrict param,
    const T* __restrict grad,
    Moment* __restrict first,
    Moment* __restrict second,
    int64_t length,
    Acc factor,
    const LambScalars<Acc>& scalars,
    double* sums) {
  const auto element = [&](int64_t at) __attribute__((always_inline)) {
    Acc m = static_cast<Acc>(first[at]);
    Acc v = static_cast<Acc>(second[at]);
    lamb_moments(factor * static_cast<Acc>(grad[at]), m, v, scalars);
    first[at] = static_cast<Moment>(m);
    second[at] = static_cast<Moment>(v);
    // The update is computed again from what was stored: the norm has to be that one's.
    m = static_cast<Acc>(static_cast<Moment>(m));
    v = static_cast<Acc>(static_cast<Moment>(v));
    return lamb_update(param[at], m, std::sqrt(v), scalars);
  };
  Acc low[kBlock], high[kBlock];
  const int64_t half = length / 2 / kBlock * kBlock;
  for (int64_t begin = 0; begin < half; begin += kBlock) {
    for (int i = 0; i < kBlock; i += kLanes) {
      for (int lane = i; lane < i + kLanes; ++lane) low[lane] = element(begin + lane);
      for (int lane = i; lane < i + kLanes; ++lane) high[lane] = element(half + begin + lane);
    }
    sums[0] += block_square_sum(param + begin, kBlock);
    sums[0] += block_square_sum(param + half + begin, kBlock);
    sums[1] += block_square_sum(low, kBlock);
    sums[1] += block_square_sum(high, kBlock);
  }
  for (int64_t begin = 2 * half; begin < length; begin += kBlock) {
    const int count = static_cast<int>(std::min<int64_t>(kBlock, length - begin));
    for (int i = 0; i < count; ++i) low[i] = element(begin + i);
    sums[0] += block_square_sum(param + begin, count);
    sums[1] += block_square_sum(low, count);
  }
}

template <typename T, typename Moment, typename Acc>
LARGEBATCH_HOST_DEVICE void lamb_apply_loop(
    T* __restrict param,
    Acc* __restrict master,
    const Moment* __restrict first,
    const Moment* __restrict second,
    int64_t length,
    Acc rate,
    const LambScalars<Acc>& scalars) {
  const auto element = [&](int64_t i) __attribute__((always_inline)) {
    const Acc root = std::sqrt(static_cast<Acc>(second[i]));
    const Acc value =
        master[i] - rate * lamb_update(master[i], static_cast<Acc>(first[i]), root, scalars);
    master[i] = value;
    if constexpr (!std::is_same_v<T, Acc>) param[i] = static_cast<T>(value);
  };
  const int64_t half = length / 2 / kLanes * kLanes;
  for (int64_t i = 0; i < half; i += kLanes) {
    for (int lane = i; lane < i + kLanes; ++lane) element(lane);
    for (int lane = i; lane < i + kLanes; ++lane) element(half + lane);
  }
  for (int64_t i = 2 * half; i < length; ++i) element(i);
}

// Clones cannot be templates, hence one named overload a combination of types.
#define LARGEBATCH_LAMB(T, Moment, Acc)                                                        \
  LARGEBATCH_CLONES void lamb_first_pass(                                                      \
      const Acc* param, const T* grad, Moment* first, Moment* second, int64_t length,          \
      Acc factor, const LambScalars<Acc>& scalars, double* sums) {                             \
    lamb_moments_loop(param, grad, first, second, length, factor, scalars, sums);              \
  }                                                                                            \
  LARGEBATCH_CLONES void lamb_apply(                                                           \
      T* param, Acc* master, const Moment* first, const Moment* second, int64_t length,        \
      Acc rate, const LambScalars<Acc>& scalars) {                                             \
    lamb_apply_loop(param, master, first, second, length, rate, scalars);                      \
  }
LARGEBATCH_MOMENT_TYPES(LARGEBATCH_LAMB)
#undef LARGEBATCH_LAMB

#define LARGEBATCH_SUMS(T, Acc)                                                                \
  LARGEBATCH_CLONES double joint_square_sum(                                                   \
      const T* grad, const Acc* param, int64_t length, Acc factor, Acc decay) {                \
    return joint_square_sum_loop(grad, param, length, factor, decay);                          \
  }                                                                                            \
  LARGEBATCH_CLONES void square_sums(                                                          \
      const Acc* param, const T* grad, int64_t length, double* sums) {                         \
    square_sums_loop(param, grad, length, sums);                                               \
  }
LARGEBATCH_TYPES(LARGEBATCH_SUMS)
#undef LARGEBATCH_SUMS

struct Row : HostRow {
  LayerSetting setting;
};

struct Call {
  std::vector<Row> rows;
  double factor;
  double* norms;
  Stage stage;
};

// Fills the table of rows; all lists are flat by now.
Call make_call(const StepLists& lists, const LayerwiseScalars& scalars, bool maximize) {
  Call call;
  const auto* settings = static_cast<const double*>(scalars.settings.const_data_ptr());
  const double lr_factor = scalars.lr_factor ? read_scalar(*scalars.lr_factor) : 1.0;
  call.factor = (maximize ? -1.0 : 1.0) *
      (scalars.grad_factor ? read_scalar(*scalars.grad_factor) : 1.0);
  call.norms = static_cast<double*>(scalars.norms.mutable_data_ptr());
  call.stage = scalars.stage;
  for (const HostRow& row : host_rows(lists)) {
    const double* const setting = settings + 3 * call.rows.size();
    call.rows.push_back({row, {setting[0] * lr_factor, setting[1], setting[2] != 0.0}});
  }
  return call;
}

// The tensors' first element counts and where their waves end.
template <class Wave>
void for_each_wave(const TensorList& params, const Wave& wave) {
  size_t begin = 0;
  int64_t elements = 0;
  for (size_t end = 0; end < params.size(); ++end) {
    const int64_t next = params[end].numel();
    if (end > begin && elements + next > kWaveElements) {
      wave(begin, end);
      begin = end;
      elements = 0;
    }
    elements += next;
  }
  if (begin < params.size()) wave(begin, params.size());
}

// The ratio beside the sums is the update's alone.
void clear_sums(double* norms, size_t begin, size_t end) {
  for (size_t index = begin; index < end; ++index) norms[3 * index] = norms[3 * index + 1] = 0.0;
}

// Adds the two sums of squares that `body(chunk, sums)` finds in every chunk of a wave, per tensor
// and in the order of chunks.
template <class Body>
void sum_chunks(const Chunks& chunks, double* norms, const Body& body) {
  std::vector<double> partial(2 * chunks.size());
  chunks.for_each(
      [&](int64_t position, const Chunk& chunk) { body(chunk, &partial[2 * position]); });
  for (size_t position = 0; position < chunks.size(); ++position) {
    double* const row = norms + 3 * chunks[position].tensor;
    row[0] += partial[2 * position];
    row[1] += partial[2 * position + 1];
  }
}

}  // namespace

void lars_step_cpu(
    StepLists lists, const LayerwiseScalars& scalars, const LarsOptions& options) {
  if (scalars.found_inf && read_scalar(*scalars.found_inf) != 0.0) return;
  Rows flat = flat_rows(lists);
  const Call call = make_call(lists, scalars, options.maximize);

  for_each_wave(lists.params, [&](size_t begin, size_t end) {
    const Chunks chunks(lists.params, begin, end);
    if (call.stage != Stage::kUpdate) {
      clear_sums(call.norms, begin, end);
      sum_chunks(chunks, call.norms, [&](const Chunk& chunk, double* sums) {
        const Row& row = call.rows[chunk.tensor];
        if (!row.setting.adapts) return;
        with_types(row, chunk, [&](const auto& span) {
          using Acc = typename std::decay_t<decltype(span)>::Acc;
          square_sums(span.master, span.grad, span.length, sums);
          if (options.joint) {
            sums[1] = joint_square_sum(
                span.grad, span.master, span.length, static_cast<Acc>(call.factor),
                static_cast<Acc>(row.setting.weight_decay));
          }
        });
      });
      if (!options.joint) {
        for (size_t index = begin; index < end; ++index) {
          call.norms[3 * index + 1] *= call.factor * call.factor;
        }
      }
    }
    if (call.stage == Stage::kSums) return;

    std::vector<bool> adapted(end - begin);
    for (size_t index = begin; index < end; ++index) {
      double* const norms = call.norms + 3 * index;
      const double weight = std::sqrt(norms[0]), grad = std::sqrt(norms[1]);
      const LayerSetting& setting = call.rows[index].setting;
      adapted[index - begin] = lars_adapts(setting, weight, grad);
      norms[2] = lars_ratio(options, setting, weight, grad);
    }
    // Backwards, so that what was read last, and is in cache, comes first.
    chunks.for_each_reversed([&](const Chunk& chunk) {
      const Row& row = call.rows[chunk.tensor];
      with_types(row, chunk, [&](const auto& span) {
        using Acc = typename std::decay_t<decltype(span)>::Acc;
        const auto of_tensor = lars_scalars<Acc>(
            options, row.setting, call.norms[3 * chunk.tensor + 2], adapted[chunk.tensor - begin]);
        sgd_chunk(span, static_cast<Acc>(call.factor), of_tensor);
      });
    });
  });
  flat.write_back();
}

void lamb_step_cpu(
    StepLists lists, const LayerwiseScalars& scalars, const LambOptions& options) {
  if (scalars.found_inf && read_scalar(*scalars.found_inf) != 0.0) return;
  Rows flat = flat_rows(lists);
  const Call call = make_call(lists, scalars, options.maximize);
  std::vector<LambCorrection> corrections;
  for (const Tensor& step : lists.steps) {
    const double number = read_scalar(step) + 1.0;
    corrections.push_back(
        {1.0 - std::pow(options.beta1, number), 1.0 - std::pow(options.beta2, number)});
  }
  const auto scalars_of = [&](size_t tensor, auto* of_type) {
    return lamb_scalars<std::remove_pointer_t<decltype(of_type)>>(
        options, call.rows[tensor].setting, corrections[tensor],
        std::sqrt(corrections[tensor].second));
  };

  for_each_wave(lists.params, [&](size_t begin, size_t end) {
    const Chunks chunks(lists.params, begin, end);
    if (call.stage != Stage::kUpdate) {
      clear_sums(call.norms, begin, end);
      sum_chunks(chunks, call.norms, [&](const Chunk& chunk, double* sums) {
        with_types(call.rows[chunk.tensor], chunk, [&](const auto& span) {
          using Acc = typename std::decay_t<decltype(span)>::Acc;
          lamb_first_pass(
              span.master, span.grad, span.first, span.second, span.length,
              static_cast<Acc>(call.factor), scalars_of(chunk.tensor, static_cast<Acc*>(nullptr)),
              sums);
        });
      });
    }
    if (call.stage == Stage::kSums) return;

    for (size_t index = begin; index < end; ++index) {
      double* const norms = call.norms + 3 * index;
      norms[2] = lamb_ratio(
          options, call.rows[index].setting, std::sqrt(norms[0]), std::sqrt(norms[1]));
    }
    chunks.for_each_reversed([&](const Chunk& chunk) {
      const Row& row = call.rows[chunk.tensor];
      const LambCorrection& correction = corrections[chunk.tensor];
      with_types(row, chunk, [&](const auto& span) {
        using Acc = typename std::decay_t<decltype(span)>::Acc;
        const double rate = call.norms[3 * chunk.tensor + 2] *
            lamb_rate(options, row.setting, correction, std::sqrt(correction.second));
        lamb_apply(
            span.param, span.master, span.first, span.second, span.length, static_cast<Acc>(rate),
            scalars_of(chunk.tensor, static_cast<Acc*>(nullptr)));
      });
    });
  });
  if (call.stage != Stage::kSums) {
    for (Tensor& step : lists.steps) *static_cast<float*>(step.mutable_data_ptr()) += 1.0f;
  }
  flat.write_back();
}

}  // namespace largebatch
