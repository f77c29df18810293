// CUDA kernels of the optimizer family. One block takes one chunk of one tensor; the table of
// tensors travels in the kernel's arguments, so that a model of a few hundred tensors is one launch
// and nothing is copied to the device beforehand.

#include "optim/device.cuh"

namespace largebatch {
namespace {

// Tables of two sizes: small models do not pay for 30 KiB of arguments (the limit is 32764 bytes).
constexpr int kSmall = 64;
constexpr int kLargeSgd = 448;
constexpr int kLargeNorm = 768;

template <int Capacity>
struct SgdTable {
  DeviceRow rows[Capacity];
  int first_chunk[Capacity];
  int count;
};

template <int Capacity>
__global__ void __launch_bounds__(kThreads) sgd_kernel(
    const __grid_constant__ SgdTable<Capacity> table,
    const SgdOptions options,
    const DeviceScalar grad_factor,
    const DeviceScalar found_inf) {
  if (found_inf.data != nullptr && read(found_inf) != 0.0) return;
  const double sign = options.maximize ? -1.0 : 1.0;
  const double factor = sign * (grad_factor.data ? read(grad_factor) : 1.0);
  const int chunk = static_cast<int>(blockIdx.x);
  const int index = find_row(table.first_chunk, table.count, chunk);
  const DeviceRow& row = table.rows[index];
  const int64_t begin = (chunk - table.first_chunk[index]) * kChunk;
  const int length = static_cast<int>(min(kChunk, row.length - begin));
  with_types(row, [&](auto* element, auto* moment) {
    using T = std::remove_pointer_t<decltype(element)>;
    using Moment = std::remove_pointer_t<decltype(moment)>;
    using Acc = typename Accumulate<T>::type;
    const Arrays<T, Moment> arrays(row, begin);
    sgd_chunk(arrays, length, static_cast<Acc>(factor), sgd_scalars<Acc>(options));
  });
}

template <int Capacity>
struct NormTable {
  NormRow rows[Capacity];
  int first_chunk[Capacity];
  int count;
};

// Sums are float64, as on the CPU: the square of any float32 is in range and nothing is lost to
// cancellation in long sums; reading the gradients takes longer than adding them.
template <typename T, int Capacity>
__global__ void __launch_bounds__(kThreads) square_sum_kernel(
    const __grid_constant__ NormTable<Capacity> table, double* const partial) {
  constexpr int kVector = kVectorBytes / sizeof(T);
  const int chunk = static_cast<int>(blockIdx.x);
  const int index = find_row(table.first_chunk, table.count, chunk);
  const NormRow& row = table.rows[index];
  const int64_t begin = (chunk - table.first_chunk[index]) * kChunk;
  const int length = static_cast<int>(min(kChunk, row.length - begin));
  const T* const data = static_cast<const T*>(row.data) + begin;

  double sum = 0.0;
  int done = 0;
  if (is_aligned(data)) {
    done = length - length % kVector;
    for (int i = threadIdx.x * kVector; i < done; i += kThreads * kVector) {
      const auto pack = *reinterpret_cast<const Pack<T, kVector>*>(data + i);
#pragma unroll
      for (int lane = 0; lane < kVector; ++lane) {
        const double value = static_cast<double>(widen(pack.values[lane]));
        sum += value * value;
      }
    }
  }
  for (int i = done + threadIdx.x; i < length; i += kThreads) {
    const double value = static_cast<double>(widen(data[i]));
    sum += value * value;
  }
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) partial[chunk] = sum;
}

constexpr int kFinishThreads = 1024;

__global__ void __launch_bounds__(kFinishThreads) finish_norm_kernel(
    const double* const partial,
    const int64_t count,
    void* const norm,
    void* const factor,
    const bool is_double,
    const Clip clip) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += kFinishThreads) sum += partial[i];
  sum = block_sum<kFinishThreads>(sum);
  if (threadIdx.x != 0) return;
  const double scale = clip.scale.data != nullptr ? read(clip.scale) : 1.0;
  const double root = scale * sqrt(sum);
  const double clipped = scale * clip_factor_of(root, clip.max_norm, clip.eps);
  if (is_double) {
    *static_cast<double*>(norm) = root;
    if (factor != nullptr) *static_cast<double*>(factor) = clipped;
  } else {
    *static_cast<float*>(norm) = static_cast<float>(root);
    if (factor != nullptr) *static_cast<float*>(factor) = static_cast<float>(clipped);
  }
}

// Fills tables of rows and runs `body(table, blocks)` on each.
template <class Table, class Row, class Body>
const char* for_tables(const Row* rows, size_t count, const Body& body) {
  Table table;
  constexpr size_t kCapacity = sizeof(Table::rows) / sizeof(Row);
  for (size_t start = 0; start < count; start += kCapacity) {
    table.count = static_cast<int>(std::min(kCapacity, count - start));
    int64_t blocks = 0;
    for (int index = 0; index < table.count; ++index) {
      table.rows[index] = rows[start + index];
      table.first_chunk[index] = static_cast<int>(blocks);
      blocks += chunks_of(table.rows[index].length);
    }
    body(table, static_cast<unsigned>(blocks));
    if (const char* error = launch_error()) return error;
  }
  return nullptr;
}

template <int Capacity>
const char* run_sgd(
    const DeviceRow* rows, size_t count, const SgdOptions& options, DeviceScalar grad_factor,
    DeviceScalar found_inf, cudaStream_t stream) {
  return for_tables<SgdTable<Capacity>>(
      rows, count, [&](const SgdTable<Capacity>& table, unsigned blocks) {
        launch(
            sgd_kernel<Capacity>, {blocks, kThreads, stream}, table, options, grad_factor,
            found_inf);
      });
}

template <typename T, int Capacity>
const char* run_square_sums(
    const NormRow* rows, size_t count, double* partial, cudaStream_t stream) {
  return for_tables<NormTable<Capacity>>(
      rows, count, [&](const NormTable<Capacity>& table, unsigned blocks) {
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

const char* launch_sgd(
    const DeviceRow* rows, size_t count, const SgdOptions& options, DeviceScalar grad_factor,
    DeviceScalar found_inf, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  return count <= kSmall
      ? run_sgd<kSmall>(rows, count, options, grad_factor, found_inf, queue)
      : run_sgd<kLargeSgd>(rows, count, options, grad_factor, found_inf, queue);
}

int64_t square_sum_count(int64_t length) { return chunks_of(length); }

const char* launch_square_sums(
    Element element, const NormRow* rows, size_t count, double* partial, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  switch (element) {
    case Element::kFloat: return fit_square_sums<float>(rows, count, partial, queue);
    case Element::kDouble: return fit_square_sums<double>(rows, count, partial, queue);
    case Element::kHalf: return fit_square_sums<__half>(rows, count, partial, queue);
    default: return fit_square_sums<__nv_bfloat16>(rows, count, partial, queue);
  }
}

const char* launch_finish_norm(
    const double* partial,
    int64_t count,
    void* norm,
    void* factor,
    bool is_double,
    Clip clip,
    void* stream) {
  launch(
      finish_norm_kernel, {1, kFinishThreads, static_cast<cudaStream_t>(stream)}, partial, count,
      norm, factor, is_double, clip);
  return launch_error();
}

}  // namespace largebatch
