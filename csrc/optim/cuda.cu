// CUDA kernels of SGD and of the global norm.

#include "optim/tables.cuh"

namespace largebatch {
namespace {

struct SgdRow : DeviceRow {
  int first_chunk;
};
template <int Capacity>
using SgdTable = Table<SgdRow, Capacity>;

struct NormTableRow : NormRow {
  int first_chunk;
};
template <int Capacity>
using NormTable = Table<NormTableRow, Capacity>;

template <typename T, typename Moment, int Capacity>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) sgd_kernel(
    const __grid_constant__ SgdTable<Capacity> table,
    const SgdScalars<typename Accumulate<T>::type> scalars,
    const double sign,
    const DeviceScalar grad_factor,
    const DeviceScalar found_inf) {
  if (found_inf.data != nullptr && read(found_inf) != 0.0) return;
  const auto factor = static_cast<typename Accumulate<T>::type>(sign * read_or_one(grad_factor));
  const auto here = locate(table);
  sgd_chunk(Arrays<T, Moment>(here.row, here.begin), here.length, factor, scalars);
}

// Sums are float64, as on the CPU: the square of any float32 is in range and nothing is lost to
// cancellation in long sums; reading the gradients takes longer than adding them.
template <typename T, int Capacity>
__global__ void __launch_bounds__(kThreads) square_sum_kernel(
    const __grid_constant__ NormTable<Capacity> table, double* const partial) {
  const auto here = locate(table);
  const T* const data = static_cast<const T*>(here.row.data) + here.begin;
  double sum = 0.0;
  for_elements<T>(here.length, is_aligned(data), [&](auto count, int i) {
    constexpr int kLanes = decltype(count)::value;
    const auto pack = load<kLanes>(data + i);
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      const double value = static_cast<double>(widen(pack.values[lane]));
      sum += value * value;
    }
  });
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

constexpr int kFinishThreads = 1024;

__global__ void __launch_bounds__(kFinishThreads) finish_norm_kernel(const FinishNorm call) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < call.count; i += kFinishThreads) sum += call.partial[i];
  sum = block_sum<kFinishThreads>(sum);
  if (threadIdx.x != 0) return;
  const double scale = read_or_one(call.scale);
  const double root = scale * sqrt(sum);
  const double clipped = scale * clip_factor_of(root, call.max_norm, call.eps);
  if (call.is_double) {
    *static_cast<double*>(call.norm) = root;
    if (call.factor != nullptr) *static_cast<double*>(call.factor) = clipped;
  } else {
    *static_cast<float*>(call.norm) = static_cast<float>(root);
    if (call.factor != nullptr) *static_cast<float*>(call.factor) = static_cast<float>(clipped);
  }
}

template <int Capacity>
const char* run_sgd(const SgdCall& call, cudaStream_t stream) {
  return for_types(call.types, call.count, [&](auto types, const auto& belongs) {
    using T = typename decltype(types)::Element;
    using Moment = typename decltype(types)::Low;
    return for_tables<Capacity, SgdRow>(
        call.rows, call.count, belongs, chunks_of,
        [&](const SgdTable<Capacity>& table, unsigned blocks) {
          launch(
              sgd_kernel<T, Moment, Capacity>, {blocks, kThreads, stream}, table,
              sgd_scalars<typename Accumulate<T>::type>(call.options),
              call.options.maximize ? -1.0 : 1.0, call.grad_factor, call.found_inf);
        });
  });
}

template <typename T, int Capacity>
const char* run_square_sums(
    const NormRow* rows, size_t count, double* partial, cudaStream_t stream) {
  return for_tables<Capacity, NormTableRow>(
      rows, count, [](size_t) { return true; }, chunks_of,
      [&](const NormTable<Capacity>& table, unsigned blocks) {
        launch(square_sum_kernel<T, Capacity>, {blocks, kThreads, stream}, table, partial);
        partial += blocks;
      });
}

template <typename T>
const char* fit_square_sums(
    const NormRow* rows, size_t count, double* partial, cudaStream_t stream) {
  return count <= kSmall ? run_square_sums<T, kSmall>(rows, count, partial, stream)
                         : run_square_sums<T, kLargeNorm>(rows, count, partial, stream);
}

}  // namespace

const char* launch_sgd(const SgdCall& call, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  return call.count <= kSmall ? run_sgd<kSmall>(call, queue) : run_sgd<kLargeSgd>(call, queue);
}

int64_t square_sum_count(int64_t length) { return chunks_of(length); }

const char* launch_square_sums(
    Element element, const NormRow* rows, size_t count, double* partial, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  return dispatch(element, [&](auto of) {
    return fit_square_sums<decltype(of)>(rows, count, partial, queue);
  });
}

const char* launch_finish_norm(const FinishNorm& call, void* stream) {
  launch(finish_norm_kernel, {1, kFinishThreads, static_cast<cudaStream_t>(stream)}, call);
  return launch_error();
}

}  // namespace largebatch
