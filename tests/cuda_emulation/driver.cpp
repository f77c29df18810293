// Runs every kernel on small shapes, without torch. On the emulated machine: for sanitizers (under
// ThreadSanitizer CUDA threads are its threads, and two accesses of one address, one of them a write,
// that no barrier orders are reported, in a block and between the blocks of a launch) and for orders of
// threads. On a GPU, compiled by nvcc: for compute-sanitizer (benchmarks/sanitize.py). Prints a hash of
// all results for each family, and the barriers that the emulated machine has met.
//
//   driver [norms] [spreads] [slabs] [optimizers] [others]

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "linear/cuda.h"
#include "norm/cuda.h"
#include "optim/cuda.h"
#include "optim/layerwise_cuda.h"
#include "shards/cuda.h"

using namespace largebatch;

extern "C" const char* emulation_barriers() __attribute__((weak));  // not on a GPU

#if defined(__SANITIZE_THREAD__) || defined(__CUDACC__)  // sanitizers are slow
constexpr int64_t kMoreThanBlocks = 4, kLong = 20000;
constexpr int kStagesOfMany = 1;
#else
constexpr int64_t kMoreThanBlocks = 65540, kLong = 300000;
constexpr int kStagesOfMany = 3;
#endif

static std::mt19937 engine(1);
static uint64_t hash = 14695981039346656037u;

static void check(const char* error) {
  const cudaError_t found = cudaDeviceSynchronize();
  if (error == nullptr && found != cudaSuccess) error = cudaGetErrorString(found);
  if (error != nullptr) {
    printf("%s\n", error);
    exit(1);
  }
}

// Memory of the device, no byte more than is asked for, so that sanitizers see its ends.
template <typename T>
class Array {
 public:
  explicit Array(const std::vector<T>& values) : Array(values.size(), nullptr) {
    copy(data_, values.data());
  }
  explicit Array(size_t size) : Array(std::vector<T>(size)) {}
  Array(const Array& other) : Array(other.size_, nullptr) { copy(data_, other.data_); }
  Array(Array&& other) noexcept : size_(other.size_), data_(other.data_) { other.data_ = nullptr; }
  ~Array() { cudaFree(data_); }

  // Not yet written, as scratch memory is.
  static Array scratch(size_t size) { return Array(size, nullptr); }

  T* data() const { return data_; }

  std::vector<T> values() const {
    std::vector<T> found(size_);
    copy(found.data(), data_);
    return found;
  }

 private:
  Array(size_t size, void*) : size_(size) {
    if (cudaMalloc(reinterpret_cast<void**>(&data_), size * sizeof(T)) != cudaSuccess) {
      check("no memory");
    }
  }

  void copy(T* to, const T* from) const {
    if (size_ > 0 && cudaMemcpy(to, from, size_ * sizeof(T), cudaMemcpyDefault) != cudaSuccess) {
      check("no copy");
    }
  }

  size_t size_;
  T* data_ = nullptr;
};

using Bytes = Array<uint8_t>;

template <typename T>
static void keep(const Array<T>& results) {
  const std::vector<T> values = results.values();
  const auto* const bytes = reinterpret_cast<const unsigned char*>(values.data());
  for (size_t i = 0; i < values.size() * sizeof(T); ++i) hash = (hash ^ bytes[i]) * 1099511628211u;
}

static std::vector<float> numbers(int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(engine);
  return values;
}

// Bytes that are finite numbers of the element type.
static Bytes elements(int type, int64_t count) {
  std::vector<uint8_t> bytes(count * (type == 0 ? 4 : type == 1 ? 8 : 2));
  const auto values = numbers(count);
  for (int64_t i = 0; i < count; ++i) {
    if (type == 0) reinterpret_cast<float*>(bytes.data())[i] = values[i];
    if (type == 1) reinterpret_cast<double*>(bytes.data())[i] = values[i];
    if (type == 2) reinterpret_cast<uint16_t*>(bytes.data())[i] = 0x3000 + (i * 37) % 3000;
    if (type == 3) memcpy(&bytes[2 * i], reinterpret_cast<const char*>(&values[i]) + 2, 2);
  }
  return Bytes(bytes);
}

static void norms() {
  const NormLayout shapes[] = {
      {true, 6, 3, 24, 4, 1},   {true, 5, 2, 7, 2, 2},     {true, 3, 2, 600, 3, 1},
      {true, 9, 16, 25, 4, 2},  {true, 10, 1, 600, 10, 1}, {true, 5, 1, 8200, 5, 1},
      {false, 6, 24, 4, 4, 1},  {false, 30, 5, 9, 20, 1},  {false, 8, 300, 1, 8, 1},
      {false, 12, 8, 150, 12, 1}, {false, 9, 8, 1030, 8, 1}};
  for (const NormLayout& at : shapes) {
    for (const int type : {0, 3}) {
      for (int kind = 0; kind < 4; ++kind) {
        const int policy = kind < 3 ? kind : 2, top = kind < 3 ? 3 : 1;
        const int64_t all = at.samples * at.channels * at.length, table = at.ghosts() * at.channels;
        const auto x = elements(type, all), residual = elements(type, all);
        auto y = x, dx = x, dresidual = x;
        const int wide = type == 1 ? 8 : 4;
        Bytes statistics(3 * table * wide), coefficients(5 * table * wide), sums(6 * table * wide),
            mask(at.mask_rows() * at.mask_row());
        const auto weight = elements(type == 1 ? 1 : 0, at.channels);
        const auto partial = Array<double>::scratch(norm_partials(at));
        const auto element = static_cast<Element>(type);
        const auto rule = static_cast<NormPolicy>(policy);
        check(launch_norm_forward(
            {element, at, rule, top, 1e-5, x.data(), residual.data(), weight.data(), weight.data(), y.data(),
             statistics.data(), mask.data(), partial.data(), coefficients.data()},
            nullptr));
        check(launch_norm_backward(
            {element, at, rule, top, 1e-5, residual.data(), x.data(), weight.data(), statistics.data(),
             mask.data(), dx.data(), dresidual.data(), sums.data(), partial.data(),
             coefficients.data()},
            nullptr));
        for (const auto& result : {y, dx, dresidual, statistics, sums, mask}) keep(result);
        if (at.ghosts() != 1) continue;
        for (const void* const center : {(const void*)nullptr, (const void*)weight.data()}) {
          check(launch_norm_moments(
              {element, at, x.data(), center, partial.data(), statistics.data()}, nullptr));
          keep(statistics);
        }
        check(launch_norm_apply(
            {element, at, x.data(), nullptr, coefficients.data(), y.data(), mask.data()}, nullptr));
        check(launch_norm_gradient_sums(
            {element, at, rule, residual.data(), x.data(), mask.data(), statistics.data(),
             partial.data(), sums.data()},
            nullptr));
        for (const auto& result : {y, mask, sums}) keep(result);
        const Bytes six(static_cast<size_t>(6 * table * wide));
        check(launch_norm_gradient(
            {element, at, rule, residual.data(), x.data(), mask.data(), six.data(), dx.data(),
             dresidual.data()},
            nullptr));
        for (const auto& result : {dx, dresidual}) keep(result);
      }
    }
  }
}

// What waits for other blocks in a launch of the usual kind: L1's and top-k's forward, cut in parts.
static void spreads() {
  const NormLayout shapes[] = {
      {false, 9, 8, 500, 9, 1}, {false, 6, 20, 4, 2, 3}, {true, 10, 2, 600, 10, 1},
      {true, 6, 9, 25, 3, 2}};
  for (const NormLayout& at : shapes) {
    for (const NormPolicy rule : {NormPolicy::kL1, NormPolicy::kTopK}) {
      const auto x = elements(3, at.samples * at.channels * at.length);
      const auto y = x;
      const Array<float> statistics(3 * at.ghosts() * at.channels),
          coefficients(kNormCoefficients * at.ghosts() * at.channels);
      const auto partial = Array<double>::scratch(norm_partials(at));
      check(launch_norm_forward(
          {Element::kBFloat16, at, rule, 3, 1e-5, x.data(), nullptr, nullptr, nullptr, y.data(),
           statistics.data(), nullptr, partial.data(), coefficients.data()},
          nullptr));
      keep(y);
      keep(statistics);
    }
  }
}

static void slabs() {
  const NormLayout shapes[] = {{false, 9, 24, 30, 4, 2}, {false, 70, 8, 9, 70, 1}};
  setenv("LARGEBATCH_NORM_SLABS", "1", 1);
  for (const NormLayout& at : shapes) {
    for (const int type : {0, 3}) {
      for (const NormPolicy rule : {NormPolicy::kL2, NormPolicy::kL1}) {
        const int64_t all = at.samples * at.channels * at.length, table = at.ghosts() * at.channels;
        const auto x = elements(type, all), residual = elements(type, all);
        auto y = x, dx = x, dresidual = x;
        Array<float> statistics(2 * table), sums(2 * table);
        const Bytes mask(at.mask_rows() * at.mask_row());
        const auto weight = elements(0, at.channels);
        const auto partial = Array<double>::scratch(norm_partials(at));
        const auto element = static_cast<Element>(type);
        check(launch_norm_forward(
            {element, at, rule, 1, 1e-5, x.data(), residual.data(), weight.data(), weight.data(), y.data(),
             statistics.data(), mask.data(), partial.data(), nullptr},
            nullptr));
        check(launch_norm_backward(
            {element, at, rule, 1, 1e-5, residual.data(), x.data(), weight.data(), statistics.data(),
             mask.data(), dx.data(), dresidual.data(), sums.data(), partial.data(), nullptr},
            nullptr));
        for (const auto& result : {y, dx, dresidual, mask}) keep(result);
        for (const auto& result : {statistics, sums}) keep(result);
      }
    }
  }
  unsetenv("LARGEBATCH_NORM_SLABS");
}

static void optimizers() {
  const int64_t sizes[] = {1, 5, 64, 1000, 8192, 8193, kLong};
  for (int many = 0; many < 2; ++many) {
    std::vector<Bytes> memory;
    std::vector<LayerRow> rows;
    std::vector<StepTypes> types;
    const auto room = [&](int type, int64_t size) {
      memory.push_back(elements(type, size));
      return static_cast<void*>(memory.back().data());
    };
    const int count = many ? 70 : 14;
    const Array<float> steps(std::vector<float>(count, 3.0f));
    for (int index = 0; index < count; ++index) {
      const int type = index % 4;
      const bool low = type != 1 && index % 3 == 0;
      const int64_t size = many ? 5 + index : sizes[index % 7];
      const int moment = low ? 3 : type == 1 ? 1 : 0;
      LayerRow row{};
      row.param = room(type, size);
      row.grad = room(type, size);
      row.first = room(moment, size);
      memory.push_back(Bytes(size * (moment == 1 ? 8 : moment == 0 ? 4 : 2)));
      row.second = memory.back().data();
      row.master = type >= 2 && index % 2 ? room(0, size) : nullptr;
      row.length = size;
      row.step = steps.data() + index;
      row.lr = 0.1;
      row.weight_decay = 0.01;
      row.adapts = index % 5 != 0;
      row.index = index;
      rows.push_back(row);
      types.push_back({static_cast<Element>(type), low});
    }
    const Array<float> factors(std::vector<float>{0.5f, 0.0f});
    const Array<double> norms(3 * count);
    const auto scratch = Bytes::scratch(layer_scratch(rows.data(), rows.size()));
    const DeviceScalar half = {factors.data(), false}, zero = {factors.data() + 1, false};
    for (int stage = 0; stage < (many ? kStagesOfMany : 3); ++stage) {
      const LayerCall call = {rows.data(), types.data(), rows.size(), half, half, zero,
                              norms.data(), scratch.data(), stage != 2, stage != 1};
      check(launch_lars(
          call, {0.9, 0.001, 0.0, false, true, true, true, false, false, false}, nullptr));
      check(launch_lamb(
          call, {0.9, 0.999, 1e-6, BiasCorrection::kMoments, true, false, 0.0, 10.0}, nullptr));
    }
    std::vector<DeviceRow> plain(rows.begin(), rows.end());
    check(launch_sgd(
        {plain.data(), types.data(), plain.size(),
         {0.1, 0.9, 0.0, 0.01, false, true, false, false, 1.0}, half, zero},
        nullptr));
    int64_t chunks = 0;
    for (const LayerRow& row : rows) chunks += square_sum_count(row.length);
    const auto partial = Array<double>::scratch(chunks);
    double* next = partial.data();
    for (int type = 0; type < 4; ++type) {
      std::vector<NormRow> of_type;
      for (const LayerRow& row : rows) {
        if (int(types[row.index].element) == type) of_type.push_back({row.grad, row.length});
      }
      check(launch_square_sums(
          static_cast<Element>(type), of_type.data(), of_type.size(), next, nullptr));
      for (const NormRow& row : of_type) next += square_sum_count(row.length);
    }
    const Array<float> found(2);
    check(launch_finish_norm(
        {partial.data(), next - partial.data(), found.data(), found.data() + 1, false, 1.0, 1e-6, half},
        nullptr));
    for (const auto& result : memory) keep(result);
    keep(found);
    keep(norms);
    keep(steps);
  }
}

static void others() {
  for (const int64_t length : {1, 1100, 20000}) {
    for (int type = 0; type < 10; type += 3) {
      const int bytes[] = {4, 8, 2, 2, 1, 1, 2, 4, 8, 1};
      std::vector<Bytes> shards;
      for (int shard = 0; shard < 3; ++shard) {
        shards.push_back(
            type < 4 ? elements(type, length)
                     : Bytes(std::vector<uint8_t>(length * bytes[type], 1)));
      }
      const void* data[] = {shards[0].data(), shards[1].data(), shards[2].data()};
      const auto partial = Array<double>::scratch(2 * shard_partials(length));
      const Array<double> squares(2);
      const auto element = static_cast<Element>(type);
      check(launch_sum_shards(
          {element, element, data, 3, shards[0].data(), length, 3,
           type < 4 ? partial.data() : nullptr, squares.data()},
          nullptr));
      keep(shards[0]);
      keep(squares);
    }
  }
  const int64_t sizes[][3] = {
      {3, 10, 7}, {2, 300, 64}, {2, 64, 300}, {1, 9, 5}, {kMoreThanBlocks, 1, 3},
      {1, 9000, 8200}};
  for (const auto& size : sizes) {
    for (const int type : {0, 1}) {
      int64_t features = 1, outputs = 1;
      while (features < size[1]) features *= 2;
      while (outputs < size[2]) outputs *= 2;
      const int64_t length = features < outputs ? features : outputs;
      const auto element = static_cast<Element>(type);
      const auto x = elements(type, size[0] * size[1]);
      const auto y = elements(type, size[0] * size[2]);
      const auto scratch = Array<double>::scratch(size[0] * length);
      check(launch_hadamard(
          {element, size[0], size[1], size[2], length, x.data(), y.data(),
           hadamard_needs_scratch(element, length) ? scratch.data() : nullptr},
          nullptr));
      keep(y);
    }
  }
}

int main(int count, char** arguments) {
  for (int index = 1; index < count; ++index) {
    const std::string family = arguments[index];
    if (family == "norms") norms();
    if (family == "spreads") spreads();
    if (family == "slabs") slabs();
    if (family == "optimizers") optimizers();
    if (family == "others") others();
    printf("%s %016llx\n", family.c_str(), static_cast<unsigned long long>(hash));
  }
  if (emulation_barriers != nullptr) printf("%s", emulation_barriers());
}
