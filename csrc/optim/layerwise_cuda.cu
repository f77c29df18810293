// CUDA kernels of LARS and LAMB: two launches a step for tensors of one combination of types, one for
// the sums of squares (LAMB: and the moments) and one for the update. The block that finishes a tensor
// last in the first adds up its partial sums, and leaves what the second needs: no block of the second
// computes anything but elements.

#include <cmath>

#include "optim/layerwise_cuda.h"
#include "optim/tables.cuh"

namespace largebatch {
namespace {

template <int Capacity>
using LayerTable = Table<LayerRow, Capacity>;

// What the first pass finds of a tensor for the second.
struct LambFound {
  double rate;
  LambScalars<double> scalars;
};
constexpr size_t kFoundBytes = 80;
static_assert(sizeof(LambFound) <= kFoundBytes && sizeof(SgdScalars<double>) <= kFoundBytes);

struct LayerPass {
  DeviceScalar lr_factor;
  DeviceScalar grad_factor;
  DeviceScalar found_inf;
  double* norms;
  double* partial;        // 2 a chunk of the launch
  unsigned int* arrived;  // a count of blocks for each tensor, all zero
  unsigned char* found;   // kFoundBytes a tensor
  bool with_update;
  double sign;  // of gradients

  template <class Found>
  __device__ __forceinline__ Found& of(const LayerRow& row) const {
    return *reinterpret_cast<Found*>(found + kFoundBytes * row.index);
  }

  __device__ __forceinline__ bool is_skipped() const {
    return found_inf.data != nullptr && read(found_inf) != 0.0;
  }

  __device__ __forceinline__ double factor() const { return sign * read_or_one(grad_factor); }
};

__device__ __forceinline__ LayerSetting setting_of(const LayerRow& row, const LayerPass& pass) {
  return {row.lr * read_or_one(pass.lr_factor), row.weight_decay, row.adapts != 0};
}

// What the sums of a tensor make of its update, once a tensor.
struct Lars {
  LarsOptions options;

  struct Start {};
  __device__ __forceinline__ Start start(const LayerRow&) const { return {}; }

  __device__ __forceinline__ void finish(
      const LayerRow& row, const LayerPass& pass, const Start&, double2 sums) const {
    const LayerSetting setting = setting_of(row, pass);
    const double weight = sqrt(sums.x), grad = sqrt(sums.y);
    const double ratio = lars_ratio(options, setting, weight, grad);
    pass.norms[3 * row.index + 2] = ratio;
    pass.of<SgdScalars<double>>(row) =
        lars_scalars<double>(options, setting, ratio, lars_adapts(setting, weight, grad));
  }
};

struct Lamb {
  LambOptions options;
  double log_beta1, log_beta2;

  struct Start {
    double number;  // of this step, from 1
    LambCorrection correction;
  };

  __device__ __forceinline__ Start start(const LayerRow& row) const {
    const double number = static_cast<double>(*row.step) + 1.0;
    return {number, {-expm1(number * log_beta1), -expm1(number * log_beta2)}};
  }

  // Computed by two threads: where float64 is slow, all of a block would take longer than the
  // block's memory.
  __device__ __forceinline__ Start start_of_block(const LayerRow& row) const {
    __shared__ double of_beta[2];
    const double number = static_cast<double>(*row.step) + 1.0;
    if (threadIdx.x < 2) {
      of_beta[threadIdx.x] = -expm1(number * (threadIdx.x == 0 ? log_beta1 : log_beta2));
    }
    __syncthreads();
    return {number, {of_beta[0], of_beta[1]}};
  }

  __device__ __forceinline__ void finish(
      const LayerRow& row, const LayerPass& pass, const Start& start, double2 sums) const {
    const LayerSetting setting = setting_of(row, pass);
    const double root = sqrt(start.correction.second);
    const double ratio = lamb_ratio(options, setting, sqrt(sums.x), sqrt(sums.y));
    pass.norms[3 * row.index + 2] = ratio;
    pass.of<LambFound>(row) = {
        ratio * lamb_rate(options, setting, start.correction, root),
        lamb_scalars<double>(options, setting, start.correction, root)};
    *row.step = static_cast<float>(start.number);
  }
};

// The end of a block of the first pass: the last block of a tensor adds up what all have found, in
// one order whichever it is.
template <class Rule>
__device__ __forceinline__ void finish_block(
    const Here<LayerRow>& here, const LayerPass& pass, const Rule& rule,
    const typename Rule::Start& start, double first, double second) {
  __shared__ bool is_last;
  const LayerRow& row = here.row;
  const int chunks = static_cast<int>((row.length + kChunk - 1) / kChunk);
  double2 sums = block_sums<kThreads>(first, second);
  if (chunks > 1) {
    double* const partial = pass.partial + 2 * static_cast<int64_t>(row.first_chunk);
    if (threadIdx.x == 0) {
      partial[2 * (here.begin / kChunk)] = sums.x;
      partial[2 * (here.begin / kChunk) + 1] = sums.y;
      __threadfence();
      is_last = atomicAdd(&pass.arrived[row.index], 1u) + 1 == chunks;
      __threadfence();
    }
    __syncthreads();
    if (!is_last) return;
    first = second = 0.0;
#pragma unroll 4
    for (int i = threadIdx.x; i < chunks; i += kThreads) {
      first += partial[2 * i];
      second += partial[2 * i + 1];
    }
    sums = block_sums<kThreads>(first, second);
  }
  if (threadIdx.x != 0) return;
  pass.norms[3 * row.index] = sums.x;
  pass.norms[3 * row.index + 1] = sums.y;
  if (pass.with_update) rule.finish(row, pass, start, sums);
}

// The same from sums that ranks have added, a thread a tensor.
template <class Rule, int Capacity>
__global__ void __launch_bounds__(kThreads) given_sums_kernel(
    const __grid_constant__ LayerTable<Capacity> table, const LayerPass pass, const Rule rule) {
  const int index = static_cast<int>(threadIdx.x + blockIdx.x * blockDim.x);
  if (index >= table.count || pass.is_skipped()) return;
  const LayerRow& row = table.rows[index];
  const double* const sums = pass.norms + 3 * row.index;
  rule.finish(row, pass, rule.start(row), {sums[0], sums[1]});
}

template <typename T, typename Moment, int Capacity>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) lars_sums_kernel(
    const __grid_constant__ LayerTable<Capacity> table, const LayerPass pass, const Lars rule) {
  if (pass.is_skipped()) return;
  const auto here = locate(table);
  const double factor = pass.factor();
  const double decay = rule.options.joint ? here.row.weight_decay : 0.0;
  double weight_sum = 0.0, grad_sum = 0.0;
  if (here.row.adapts) {
    const Arrays<T, Moment> arrays(here.row, here.begin);
    with_master(arrays, [&](auto has_master) {
      const auto* const from = weights_of<decltype(has_master)::value>(arrays);
      for_elements<T>(here.length, arrays.aligned(), [&](auto count, int i) {
        constexpr int kLanes = decltype(count)::value;
        const auto weights = load<kLanes>(from + i);
        const auto grads = load<kLanes>(arrays.grad + i);
#pragma unroll
        for (int lane = 0; lane < kLanes; ++lane) {
          const double weight = static_cast<double>(widen(weights.values[lane]));
          const double grad = factor * static_cast<double>(widen(grads.values[lane])) +
              decay * weight;
          weight_sum += weight * weight;
          grad_sum += grad * grad;
        }
      });
    });
  }
  finish_block(here, pass, rule, {}, weight_sum, grad_sum);
}

template <typename T, typename Moment, int Capacity>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) lars_update_kernel(
    const __grid_constant__ LayerTable<Capacity> table, const LayerPass pass) {
  using Acc = typename Accumulate<T>::type;
  if (pass.is_skipped()) return;
  const auto here = locate(table);
  const auto scalars = rounded<Acc>(pass.of<SgdScalars<double>>(here.row));
  sgd_chunk(
      Arrays<T, Moment>(here.row, here.begin), here.length, static_cast<Acc>(pass.factor()),
      scalars);
}

template <typename T, typename Moment, int Capacity>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) lamb_moments_kernel(
    const __grid_constant__ LayerTable<Capacity> table, const LayerPass pass, const Lamb rule) {
  using Acc = typename Accumulate<T>::type;
  if (pass.is_skipped()) return;
  const auto here = locate(table);
  const auto start = rule.start_of_block(here.row);
  const Acc factor = static_cast<Acc>(pass.factor());
  const auto scalars = lamb_scalars<Acc>(
      rule.options, {0.0, here.row.weight_decay, false}, start.correction,
      sqrt(start.correction.second));
  double weight_sum = 0.0, update_sum = 0.0;
  const Arrays<T, Moment> arrays(here.row, here.begin);
  with_master(arrays, [&](auto has_master) {
    const auto* const from = weights_of<decltype(has_master)::value>(arrays);
    // As many elements at a time as of the wide type: eight would not fit 64 registers.
    for_elements<Acc>(here.length, arrays.aligned(), [&](auto count, int i) {
      constexpr int kLanes = decltype(count)::value;
      const auto stored = load<kLanes>(from + i);
      const auto grads = load<kLanes>(arrays.grad + i);
      auto first = load<kLanes>(arrays.first + i);
      auto second = load<kLanes>(arrays.second + i);
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) {
        const Acc weight = widen(stored.values[lane]);
        Acc m = widen(first.values[lane]);
        Acc v = widen(second.values[lane]);
        lamb_moments(factor * Acc(widen(grads.values[lane])), m, v, scalars);
        narrow(m, first.values[lane]);
        narrow(v, second.values[lane]);
        // The update is computed again from what was stored: the norm has to be that one's.
        m = widen(first.values[lane]);
        v = widen(second.values[lane]);
        const double update = lamb_update(weight, m, Acc(sqrt(v)), scalars);
        weight_sum += static_cast<double>(weight) * static_cast<double>(weight);
        update_sum += update * update;
      }
      store<kLanes>(arrays.first + i, first);
      store<kLanes>(arrays.second + i, second);
    });
  });
  finish_block(here, pass, rule, start, weight_sum, update_sum);
}

template <typename T, typename Moment, int Capacity>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) lamb_apply_kernel(
    const __grid_constant__ LayerTable<Capacity> table, const LayerPass pass) {
  using Acc = typename Accumulate<T>::type;
  if (pass.is_skipped()) return;
  const auto here = locate(table);
  const LambFound& found = pass.of<LambFound>(here.row);
  const Acc rate = static_cast<Acc>(found.rate);
  const auto scalars = rounded<Acc>(found.scalars);
  const Arrays<T, Moment> arrays(here.row, here.begin);
  with_master(arrays, [&](auto has_master) {
    constexpr bool kMaster = decltype(has_master)::value;
    const auto* const from = weights_of<kMaster>(arrays);
    for_elements<T>(here.length, arrays.aligned(), [&](auto count, int i) {
      constexpr int kLanes = decltype(count)::value;
      const auto stored = load<kLanes>(from + i);
      const auto first = load<kLanes>(arrays.first + i);
      const auto second = load<kLanes>(arrays.second + i);
      Pack<Acc, kLanes> weights = widened(stored);
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) {
        const Acc m = widen(first.values[lane]);
        const Acc v_root = Acc(sqrt(Acc(widen(second.values[lane]))));
        weights.values[lane] -= rate * lamb_update(weights.values[lane], m, v_root, scalars);
      }
      store_weights<kMaster>(arrays, i, weights);
    });
  });
}

// One at least: a tensor without elements counts its steps too.
int64_t layer_chunks(int64_t length) { return std::max<int64_t>(1, chunks_of(length)); }

template <typename T, typename Moment, int Capacity>
struct Kernels {
  static void first(const Grid& grid, const LayerTable<Capacity>& table, const LayerPass& pass,
                    const Lars& rule) {
    launch(lars_sums_kernel<T, Moment, Capacity>, grid, table, pass, rule);
  }
  static void first(const Grid& grid, const LayerTable<Capacity>& table, const LayerPass& pass,
                    const Lamb& rule) {
    launch(lamb_moments_kernel<T, Moment, Capacity>, grid, table, pass, rule);
  }
  static void second(const Grid& grid, const LayerTable<Capacity>& table, const LayerPass& pass,
                     const Lars&) {
    launch(lars_update_kernel<T, Moment, Capacity>, grid, table, pass);
  }
  static void second(const Grid& grid, const LayerTable<Capacity>& table, const LayerPass& pass,
                     const Lamb&) {
    launch(lamb_apply_kernel<T, Moment, Capacity>, grid, table, pass);
  }
};

template <int Capacity, class Rule>
const char* run(const LayerCall& call, LayerPass pass, const Rule& rule, cudaStream_t stream) {
  return for_types(call.types, call.count, [&](auto types, const auto& belongs) {
    using Of = Kernels<typename decltype(types)::Element, typename decltype(types)::Low, Capacity>;
    return for_tables<Capacity, LayerRow>(
        call.rows, call.count, belongs, layer_chunks,
        [&](const LayerTable<Capacity>& table, unsigned blocks) {
          if (call.with_sums) {
            Of::first({blocks, kThreads, stream}, table, pass, rule);
          } else {
            const unsigned groups = (table.count + kThreads - 1) / kThreads;
            launch(
                given_sums_kernel<Rule, Capacity>, {groups, kThreads, stream}, table, pass, rule);
          }
          if (call.with_update) Of::second({blocks, kThreads, stream}, table, pass, rule);
          pass.partial += 2 * blocks;
        });
  });
}

template <class Rule>
const char* run(const LayerCall& call, bool maximize, const Rule& rule, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  auto* const found = static_cast<unsigned char*>(call.scratch);
  auto* const arrived = reinterpret_cast<unsigned int*>(found + kFoundBytes * call.count);
  const size_t counts = (call.count + 3) / 4 * 4;  // so that the sums behind are aligned
  const LayerPass pass = {
      call.lr_factor, call.grad_factor, call.found_inf, call.norms,
      reinterpret_cast<double*>(arrived + counts), arrived, found, call.with_update,
      maximize ? -1.0 : 1.0};
  const bool meets = std::any_of(call.rows, call.rows + call.count, [](const LayerRow& row) {
    return row.length > kChunk;
  });
  if (call.with_sums && meets) {
    if (const char* error = clear(arrived, counts * sizeof(unsigned int), queue)) return error;
  }
  return call.count <= kSmall ? run<kSmall>(call, pass, rule, queue)
                              : run<kLargeLayerwise>(call, pass, rule, queue);
}

}  // namespace

size_t layer_scratch(const LayerRow* rows, size_t count) {
  int64_t chunks = 0;
  for (size_t index = 0; index < count; ++index) chunks += layer_chunks(rows[index].length);
  return kFoundBytes * count + (count + 3) / 4 * 16 + 2 * sizeof(double) * chunks;
}

const char* launch_lars(const LayerCall& call, const LarsOptions& options, void* stream) {
  return run(call, options.maximize, Lars{options}, stream);
}

const char* launch_lamb(const LayerCall& call, const LambOptions& options, void* stream) {
  const Lamb rule = {options, std::log(options.beta1), std::log(options.beta2)};
  return run(call, options.maximize, rule, stream);
}

}  // namespace largebatch
