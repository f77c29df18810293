// The tensors of a launch: one block takes one chunk of one tensor, and the table of tensors travels in
// the kernel's arguments, so that a model of a few hundred tensors is one launch and nothing is copied
// to the device beforehand.

#pragma once

#include <algorithm>

#include "common/dispatch.cuh"
#include "optim/device.cuh"

namespace largebatch {
namespace {

template <class Row, int Capacity>
struct Table {
  Row rows[Capacity];
  int count;
};

// The chunk that a block works on.
template <class Row>
struct Here {
  const Row& row;
  int64_t begin;
  int length;
};

// The row of a block is the last whose first chunk is not after it.
template <class Row, int Capacity>
__device__ __forceinline__ Here<Row> locate(const Table<Row, Capacity>& table) {
  const int chunk = static_cast<int>(blockIdx.x);
  int low = 0, high = table.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (table.rows[middle].first_chunk <= chunk) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const Row& row = table.rows[low];
  const int64_t begin = (chunk - row.first_chunk) * kChunk;
  return {row, begin, static_cast<int>(min(kChunk, row.length - begin))};
}

int64_t chunks_of(int64_t length) { return (length + kChunk - 1) / kChunk; }

// Calls `body(table, blocks)` with tables of the rows for which `belongs(index)`.
template <int Capacity, class Row, class Source, class Belongs, class Chunks, class Body>
const char* for_tables(
    const Source* rows, size_t count, const Belongs& belongs, const Chunks& chunks,
    const Body& body) {
  Table<Row, Capacity> table;
  for (size_t next = 0; next < count;) {
    int64_t blocks = 0;
    for (table.count = 0; next < count && table.count < Capacity; ++next) {
      if (!belongs(next)) continue;
      Row& row = table.rows[table.count++];
      static_cast<Source&>(row) = rows[next];
      row.first_chunk = static_cast<int>(blocks);
      blocks += chunks(row.length);
    }
    if (blocks == 0) continue;
    body(static_cast<const Table<Row, Capacity>&>(table), static_cast<unsigned>(blocks));
    if (const char* error = launch_error()) return error;
  }
  return nullptr;
}

// A combination of types that the kernels know.
template <typename T, typename Moment>
struct Types {
  using Element = T;
  using Low = Moment;
};

// Calls `body(types, belongs)` for each combination that rows have; `belongs(index)` tells whose it is.
template <class Body>
const char* for_types(const StepTypes* types, size_t count, const Body& body) {
  bool present[8] = {};
  const auto number = [types](size_t index) {
    return 2 * static_cast<int>(types[index].element) + (types[index].low_moments ? 1 : 0);
  };
  for (size_t index = 0; index < count; ++index) present[number(index)] = true;
  const char* error = nullptr;
  const auto run = [&](Element element, bool low, auto of) {
    const int wanted = 2 * static_cast<int>(element) + (low ? 1 : 0);
    if (error != nullptr || !present[wanted]) return;
    error = body(of, [&](size_t index) { return number(index) == wanted; });
  };
  run(Element::kFloat, false, Types<float, float>());
  run(Element::kFloat, true, Types<float, __nv_bfloat16>());
  run(Element::kDouble, false, Types<double, double>());
  run(Element::kHalf, false, Types<__half, float>());
  run(Element::kHalf, true, Types<__half, __nv_bfloat16>());
  run(Element::kBFloat16, false, Types<__nv_bfloat16, float>());
  run(Element::kBFloat16, true, Types<__nv_bfloat16, __nv_bfloat16>());
  return error;
}

}  // namespace
}  // namespace largebatch
