// CUDA kernels of LARS and LAMB: two launches a step, one for the sums of squares (LAMB: and the
// moments) and one for the update. A block of the second adds up its tensor's partial sums itself,
// which costs it a few hundred numbers from the second-level cache and saves a launch.

#include <cmath>

#include "optim/device.cuh"
#include "optim/layerwise_cuda.h"

namespace largebatch {
namespace {

// Tables of two sizes; the larger nearly fills a kernel's 32764 bytes of arguments.
constexpr int kSmall = 64;
constexpr int kLarge = 320;

template <int Capacity>
struct LayerTable {
  LayerRow rows[Capacity];
  int first_chunk[Capacity + 1];
  int count;
};

// The chunk a block works on.
struct Here {
  const LayerRow* row;
  int row_chunk;    // first chunk of its tensor
  int chunks;       // of its tensor
  int chunk;        // of the table
  int64_t begin;
  int length;
};

template <int Capacity>
__device__ __forceinline__ Here locate(const LayerTable<Capacity>& table) {
  const int chunk = static_cast<int>(blockIdx.x);
  const int index = find_row(table.first_chunk, table.count, chunk);
  const LayerRow& row = table.rows[index];
  const int first = table.first_chunk[index];
  const int64_t begin = (chunk - first) * kChunk;
  return {&row, first, table.first_chunk[index + 1] - first, chunk, begin,
          static_cast<int>(min(kChunk, row.length - begin))};
}

__device__ __forceinline__ double scalar_or_one(DeviceScalar scalar) {
  return scalar.data != nullptr ? read(scalar) : 1.0;
}

__device__ __forceinline__ LayerSetting setting_of(const LayerRow& row, const LayerCall& call) {
  LayerSetting setting = row.setting;
  setting.lr *= scalar_or_one(call.lr_factor);
  return setting;
}

// Writes a block's two sums to its place.
__device__ __forceinline__ void put_partial(double* partial, int chunk, double first, double second) {
  first = block_sum<kThreads>(first);
  __syncthreads();
  second = block_sum<kThreads>(second);
  if (threadIdx.x == 0) {
    partial[2 * chunk] = first;
    partial[2 * chunk + 1] = second;
  }
}

// The two sums of a tensor, in every thread: of its partial sums, or as ranks have added them.
__device__ __forceinline__ double2 tensor_sums(const Here& here, const LayerCall& call) {
  __shared__ double2 sums;
  if (!call.with_sums) {
    const double* const given = call.norms + 3 * here.row->index;
    return {given[0], given[1]};
  }
  double first = 0.0, second = 0.0;
  const double* const partial = call.partial + 2 * static_cast<int64_t>(here.row_chunk);
  for (int i = threadIdx.x; i < here.chunks; i += kThreads) {
    first += partial[2 * i];
    second += partial[2 * i + 1];
  }
  first = block_sum<kThreads>(first);
  __syncthreads();
  second = block_sum<kThreads>(second);
  if (threadIdx.x == 0) sums = {first, second};
  __syncthreads();
  return sums;
}

__device__ __forceinline__ void put_norms(
    const Here& here, const LayerCall& call, double2 sums, double ratio) {
  if (here.begin != 0 || threadIdx.x != 0) return;
  double* const norms = call.norms + 3 * here.row->index;
  if (call.with_sums) {
    norms[0] = sums.x;
    norms[1] = sums.y;
  }
  norms[2] = ratio;
}

// One block a tensor: its sums for the ranks that share it.
template <int Capacity>
__global__ void __launch_bounds__(kThreads) sums_kernel(
    const __grid_constant__ LayerTable<Capacity> table, const LayerCall call) {
  if (call.found_inf.data != nullptr && read(call.found_inf) != 0.0) return;
  const int index = static_cast<int>(blockIdx.x);
  const int first = table.first_chunk[index];
  const Here here = {&table.rows[index], first, table.first_chunk[index + 1] - first, first, 0, 0};
  const double2 sums = tensor_sums(here, call);
  if (threadIdx.x != 0) return;
  call.norms[3 * here.row->index] = sums.x;
  call.norms[3 * here.row->index + 1] = sums.y;
}

template <int Capacity>
__global__ void __launch_bounds__(kThreads) lars_sums_kernel(
    const __grid_constant__ LayerTable<Capacity> table,
    const LayerCall call,
    const LarsOptions options) {
  if (call.found_inf.data != nullptr && read(call.found_inf) != 0.0) return;
  const Here here = locate(table);
  const double factor = (options.maximize ? -1.0 : 1.0) * scalar_or_one(call.grad_factor);
  double weight_sum = 0.0, grad_sum = 0.0;
  if (here.row->setting.adapts) {
    with_types(*here.row, [&](auto* element, auto* moment) {
      using T = std::remove_pointer_t<decltype(element)>;
      using Moment = std::remove_pointer_t<decltype(moment)>;
      const Arrays<T, Moment> arrays(*here.row, here.begin);
      const double decay = options.joint ? here.row->setting.weight_decay : 0.0;
      for_elements<T>(here.length, arrays.aligned(), [&](auto count, int i) {
        constexpr int kLanes = decltype(count)::value;
        const auto weights = load_weights<kLanes>(arrays, i);
        Pack<T, kLanes> grads;
        load<kLanes>(arrays.grad + i, grads);
#pragma unroll
        for (int lane = 0; lane < kLanes; ++lane) {
          const double weight = weights.values[lane];
          const double grad = factor * static_cast<double>(widen(grads.values[lane])) +
              decay * weight;
          weight_sum += weight * weight;
          grad_sum += grad * grad;
        }
      });
    });
  }
  put_partial(call.partial, here.chunk, weight_sum, grad_sum);
}

template <int Capacity>
__global__ void __launch_bounds__(kThreads) lars_update_kernel(
    const __grid_constant__ LayerTable<Capacity> table,
    const LayerCall call,
    const LarsOptions options) {
  if (call.found_inf.data != nullptr && read(call.found_inf) != 0.0) return;
  const Here here = locate(table);
  const LayerSetting setting = setting_of(*here.row, call);
  const double2 sums = tensor_sums(here, call);
  const double weight = sqrt(sums.x), grad = sqrt(sums.y);
  const double ratio = lars_ratio(options, setting, weight, grad);
  const bool adapted = lars_adapts(setting, weight, grad);
  put_norms(here, call, sums, ratio);
  const double sign = options.maximize ? -1.0 : 1.0;
  with_types(*here.row, [&](auto* element, auto* moment) {
    using T = std::remove_pointer_t<decltype(element)>;
    using Moment = std::remove_pointer_t<decltype(moment)>;
    using Acc = typename Accumulate<T>::type;
    const Arrays<T, Moment> arrays(*here.row, here.begin);
    const Acc factor = static_cast<Acc>(sign * scalar_or_one(call.grad_factor));
    const auto scalars = lars_scalars<Acc>(options, setting, ratio, adapted);
    sgd_chunk(arrays, here.length, factor, scalars);
  });
}

__device__ __forceinline__ LambCorrection correction_at(const LambOptions& options, double number) {
  return {-expm1(number * log(options.beta1)), -expm1(number * log(options.beta2))};
}

// Writes the step number that the update counts with; blocks of one tensor must not see it change.
template <int Capacity>
__global__ void numbers_kernel(
    const __grid_constant__ LayerTable<Capacity> table, const LayerCall call) {
  const int index = static_cast<int>(threadIdx.x + blockIdx.x * blockDim.x);
  if (index >= table.count) return;
  call.numbers[table.rows[index].index] = static_cast<double>(*table.rows[index].step) + 1.0;
}

template <int Capacity>
__global__ void __launch_bounds__(kThreads) lamb_moments_kernel(
    const __grid_constant__ LayerTable<Capacity> table,
    const LayerCall call,
    const LambOptions options) {
  if (call.found_inf.data != nullptr && read(call.found_inf) != 0.0) return;
  const Here here = locate(table);
  const double number = static_cast<double>(*here.row->step) + 1.0;
  if (here.begin == 0 && threadIdx.x == 0) call.numbers[here.row->index] = number;
  const LambCorrection correction = correction_at(options, number);
  const double sign = options.maximize ? -1.0 : 1.0;
  double weight_sum = 0.0, update_sum = 0.0;
  with_types(*here.row, [&](auto* element, auto* moment) {
    using T = std::remove_pointer_t<decltype(element)>;
    using Moment = std::remove_pointer_t<decltype(moment)>;
    using Acc = typename Accumulate<T>::type;
    const Arrays<T, Moment> arrays(*here.row, here.begin);
    const Acc factor = static_cast<Acc>(sign * scalar_or_one(call.grad_factor));
    const auto scalars =
        lamb_scalars<Acc>(options, here.row->setting, correction, sqrt(correction.second));
    for_elements<T>(here.length, arrays.aligned(), [&](auto count, int i) {
      constexpr int kLanes = decltype(count)::value;
      const auto weights = load_weights<kLanes>(arrays, i);
      Pack<T, kLanes> grads;
      Pack<Moment, kLanes> first, second;
      load<kLanes>(arrays.grad + i, grads);
      load<kLanes>(static_cast<const Moment*>(arrays.first + i), first);
      load<kLanes>(static_cast<const Moment*>(arrays.second + i), second);
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) {
        Acc m = widen(first.values[lane]);
        Acc v = widen(second.values[lane]);
        lamb_moments(factor * Acc(widen(grads.values[lane])), m, v, scalars);
        narrow(m, first.values[lane]);
        narrow(v, second.values[lane]);
        // The update is computed again from what was stored: the norm has to be that one's.
        m = widen(first.values[lane]);
        v = widen(second.values[lane]);
        const double weight = weights.values[lane];
        const double update = lamb_update(weights.values[lane], m, Acc(sqrt(v)), scalars);
        weight_sum += weight * weight;
        update_sum += update * update;
      }
      store<kLanes>(arrays.first + i, first);
      store<kLanes>(arrays.second + i, second);
    });
  });
  put_partial(call.partial, here.chunk, weight_sum, update_sum);
}

template <int Capacity>
__global__ void __launch_bounds__(kThreads) lamb_apply_kernel(
    const __grid_constant__ LayerTable<Capacity> table,
    const LayerCall call,
    const LambOptions options) {
  if (call.found_inf.data != nullptr && read(call.found_inf) != 0.0) return;
  const Here here = locate(table);
  const LayerSetting setting = setting_of(*here.row, call);
  const double2 sums = tensor_sums(here, call);
  const double ratio = lamb_ratio(options, setting, sqrt(sums.x), sqrt(sums.y));
  put_norms(here, call, sums, ratio);
  const double number = call.numbers[here.row->index];
  const LambCorrection correction = correction_at(options, number);
  const double root = sqrt(correction.second);
  if (here.begin == 0 && threadIdx.x == 0) *here.row->step = static_cast<float>(number);
  with_types(*here.row, [&](auto* element, auto* moment) {
    using T = std::remove_pointer_t<decltype(element)>;
    using Moment = std::remove_pointer_t<decltype(moment)>;
    using Acc = typename Accumulate<T>::type;
    const Arrays<T, Moment> arrays(*here.row, here.begin);
    const Acc rate = static_cast<Acc>(ratio * lamb_rate(options, setting, correction, root));
    const auto scalars = lamb_scalars<Acc>(options, setting, correction, root);
    const bool aligned = arrays.aligned();
    for_elements<T>(here.length, aligned, [&](auto count, int i) {
      constexpr int kLanes = decltype(count)::value;
      auto weights = load_weights<kLanes>(arrays, i);
      Pack<Moment, kLanes> first, second;
      load<kLanes>(static_cast<const Moment*>(arrays.first + i), first);
      load<kLanes>(static_cast<const Moment*>(arrays.second + i), second);
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) {
        const Acc m = widen(first.values[lane]);
        const Acc v_root = Acc(sqrt(Acc(widen(second.values[lane]))));
        weights.values[lane] -= rate * lamb_update(weights.values[lane], m, v_root, scalars);
      }
      store_weights<kLanes>(arrays, i, weights);
    });
  });
}

// Fills tables of rows and runs `body(table, blocks, call)` on each.
template <int Capacity, class Body>
const char* for_tables(
    const LayerRow* rows, size_t count, LayerCall call, const Body& body) {
  LayerTable<Capacity> table;
  for (size_t start = 0; start < count; start += Capacity) {
    table.count = static_cast<int>(std::min<size_t>(Capacity, count - start));
    int64_t blocks = 0;
    for (int index = 0; index < table.count; ++index) {
      table.rows[index] = rows[start + index];
      table.first_chunk[index] = static_cast<int>(blocks);
      blocks += layer_chunks(table.rows[index].length);
    }
    table.first_chunk[table.count] = static_cast<int>(blocks);
    body(table, static_cast<unsigned>(blocks), call);
    if (const char* error = launch_error()) return error;
    call.partial += 2 * blocks;
  }
  return nullptr;
}

template <int Capacity>
const char* run_lars(
    const LayerRow* rows, size_t count, const LayerCall& call, const LarsOptions& options,
    cudaStream_t stream) {
  return for_tables<Capacity>(
      rows, count, call,
      [&](const LayerTable<Capacity>& table, unsigned blocks, const LayerCall& of_table) {
        if (call.with_sums) {
          launch(lars_sums_kernel<Capacity>, {blocks, kThreads, stream}, table, of_table, options);
        }
        if (call.with_update) {
          launch(
              lars_update_kernel<Capacity>, {blocks, kThreads, stream}, table, of_table, options);
        } else {
          launch(
              sums_kernel<Capacity>, {static_cast<unsigned>(table.count), kThreads, stream},
              table, of_table);
        }
      });
}

template <int Capacity>
const char* run_lamb(
    const LayerRow* rows, size_t count, const LayerCall& call, const LambOptions& options,
    cudaStream_t stream) {
  return for_tables<Capacity>(
      rows, count, call,
      [&](const LayerTable<Capacity>& table, unsigned blocks, const LayerCall& of_table) {
        if (call.with_sums) {
          launch(
              lamb_moments_kernel<Capacity>, {blocks, kThreads, stream}, table, of_table, options);
        } else {
          const unsigned groups = (table.count + kThreads - 1) / kThreads;
          launch(numbers_kernel<Capacity>, {groups, kThreads, stream}, table, of_table);
        }
        if (call.with_update) {
          launch(
              lamb_apply_kernel<Capacity>, {blocks, kThreads, stream}, table, of_table, options);
        } else {
          launch(
              sums_kernel<Capacity>, {static_cast<unsigned>(table.count), kThreads, stream},
              table, of_table);
        }
      });
}

}  // namespace

int64_t layer_chunks(int64_t length) { return std::max<int64_t>(1, chunks_of(length)); }

const char* launch_lars(
    const LayerRow* rows, size_t count, const LayerCall& call, const LarsOptions& options,
    void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  return count <= kSmall ? run_lars<kSmall>(rows, count, call, options, queue)
                         : run_lars<kLarge>(rows, count, call, options, queue);
}

const char* launch_lamb(
    const LayerRow* rows, size_t count, const LayerCall& call, const LambOptions& options,
    void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  return count <= kSmall ? run_lamb<kSmall>(rows, count, call, options, queue)
                         : run_lamb<kLarge>(rows, count, call, options, queue);
}

}  // namespace largebatch
