// The unit of work of the CUDA kernels of the batch norm family: eight adjacent values, and where
// they lie. Included by the .cu files alone, as nearly all cuda_*.h are.
//
// Channels repeat after a *period*: a pixel where the channels vary fastest, else a sample. A
// thread keeps to one place in the periods of a ghost, so that its channels, and what it has to
// know about them, stay the same.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/widen.cuh"
#include "norm/cuda.h"
#include "norm/math.h"

namespace largebatch {

constexpr int kThreads = 256;
constexpr int kUnit = 8;

enum class Access {
  kValues,  // one by one: a unit is up to eight values of a row of the layout
  kUnits,   // rows of multiples of eight: a unit is 16 or 32 aligned bytes, and a byte of the mask
  kAcross,  // planar, samples of multiples of eight: units are such bytes, and cross the rows
};

// Blocks that a multiprocessor is to hold: what registers allow without spilling. float64 takes
// what it needs.
template <typename T>
constexpr int resident(int blocks) {
  return sizeof(T) == 8 ? 1 : blocks;
}

template <typename T>
struct alignas(16) Unit {
  T values[kUnit];
};

// Where units are: by their number in the memory, or, with kValues, by that of their first value.
// Fewer bits make for fewer instructions.
template <Access By>
using Index = std::conditional_t<By == Access::kValues, int64_t, uint32_t>;

template <Access By>
__host__ __device__ __forceinline__ Index<By> index_of(int64_t value) {
  return static_cast<Index<By>>(By == Access::kValues ? value : value / kUnit);
}

template <Access By, typename T>
__device__ __forceinline__ Unit<T> load_unit(const T* data, Index<By> index, int count) {
  if constexpr (By != Access::kValues) {
    return reinterpret_cast<const Unit<T>*>(data)[index];
  } else {
    Unit<T> unit;
#pragma unroll
    for (int e = 0; e < kUnit; ++e) {
      if (e < count) unit.values[e] = data[index + e];
    }
    return unit;
  }
}

template <Access By, typename T>
__device__ __forceinline__ void store_unit(
    T* data, Index<By> index, int count, const Unit<T>& unit) {
  if constexpr (By != Access::kValues) {
    reinterpret_cast<Unit<T>*>(data)[index] = unit;
  } else {
#pragma unroll
    for (int e = 0; e < kUnit; ++e) {
      if (e < count) data[index + e] = unit.values[e];
    }
  }
}

template <typename T, typename Acc>
__device__ __forceinline__ void widen_unit(const Unit<T>& unit, Acc (&values)[kUnit]) {
#pragma unroll
  for (int e = 0; e < kUnit; ++e) values[e] = widen(unit.values[e]);
}
// One instruction a value, where taking the upper half by itself takes two.
__device__ __forceinline__ void widen_unit(
    const Unit<__nv_bfloat16>& unit, float (&values)[kUnit]) {
  uint32_t words[kUnit / 2];
  memcpy(words, &unit, sizeof(words));
#pragma unroll
  for (int pair = 0; pair < kUnit / 2; ++pair) {
    values[2 * pair] = __uint_as_float(words[pair] << 16);
    values[2 * pair + 1] = __uint_as_float(words[pair] & 0xffff0000u);
  }
}

template <typename T, typename Acc>
__device__ __forceinline__ void narrow_unit(const Acc (&values)[kUnit], Unit<T>& unit) {
#pragma unroll
  for (int e = 0; e < kUnit; ++e) narrow(values[e], unit.values[e]);
}

// Words whose halves, or all of them, are filled with the sign of a byte each: PTX's prmt, of which
// CUDA's __byte_perm knows no more than the copying of bytes.
__device__ __forceinline__ uint32_t fill_by_signs(uint32_t bytes, uint32_t selector) {
  uint32_t word = 0;
#ifdef __CUDA_ARCH__
  asm("prmt.b32 %0, %1, 0, %2;" : "=r"(word) : "r"(bytes), "r"(selector));
#else
  for (int byte = 0; byte < 4; ++byte) {
    const uint32_t sign = bytes >> (8 * (selector >> 4 * byte & 3) + 7) & 1;
    word |= sign * 0xffu << 8 * byte;
  }
#endif
  return word;
}

// A unit without the values whose bit of the mask is not set. Four bits at a time become the signs of
// four bytes; to test each bit would take twice as many instructions.
template <typename T>
__device__ __forceinline__ Unit<T> masked(const Unit<T>& unit, int bits) {
  Unit<T> kept;
  if constexpr (sizeof(T) > 4) {
#pragma unroll
    for (int e = 0; e < kUnit; ++e) kept.values[e] = bits >> e & 1 ? unit.values[e] : T(0);
  } else {
    constexpr uint32_t kSelectors[] = {0x9988, 0xbbaa, 0x8888, 0x9999, 0xaaaa, 0xbbbb};
    constexpr int kWords = sizeof(T);  // of four values
    uint32_t words[2 * kWords];
    memcpy(words, &unit, sizeof(words));
#pragma unroll
    for (int word = 0; word < 2 * kWords; ++word) {
      const uint32_t signs = (word < kWords ? bits & 15 : bits >> 4 & 15) * 0x10204080u;
      words[word] &= fill_by_signs(signs, kSelectors[word % kWords + (kWords == 2 ? 0 : 2)]);
    }
    memcpy(&kept, words, sizeof(words));
  }
  return kept;
}

// Whether values pass a ReLU, as bits. A NaN does, as in torch.
template <typename Acc>
__device__ __forceinline__ int passing(const Acc (&values)[kUnit]) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(Acc) == 4) {
    // Ones and zeros add up to the bits of a number: fewer instructions than by predicates.
    float sum = 8388608.0f;  // 2^23
#pragma unroll
    for (int e = 0; e < kUnit; ++e) {
      float one;
      asm("set.gtu.f32.f32 %0, %1, 0f00000000;" : "=f"(one) : "f"(values[e]));
      sum += one * static_cast<float>(1 << e);
    }
    return static_cast<int>(__float_as_uint(sum) & 255);
  }
#endif
  int bits = 0;
#pragma unroll
  for (int e = 0; e < kUnit; ++e) bits |= int(!(values[e] <= 0)) << e;
  return bits;
}

// narrow_unit() behind a ReLU, which comes with the conversion where that gives 16 bits.
template <typename T, typename Acc>
__device__ __forceinline__ void narrow_passing(const Acc (&values)[kUnit], Unit<T>& unit) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (sizeof(T) == 2) {
    uint32_t words[kUnit / 2];
#pragma unroll
    for (int pair = 0; pair < kUnit / 2; ++pair) {
      const float low = values[2 * pair], high = values[2 * pair + 1];
      if constexpr (std::is_same_v<T, __half>) {
        asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(words[pair]) : "f"(high), "f"(low));
      } else {
        asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(words[pair]) : "f"(high), "f"(low));
      }
    }
    memcpy(&unit, words, sizeof(words));
    return;
  }
#endif
#pragma unroll
  for (int e = 0; e < kUnit; ++e) narrow(values[e] <= 0 ? Acc(0) : values[e], unit.values[e]);
}

// How a kernel is cut into blocks; a function of the shape alone, see cuda_cut.h. A block has
// `lanes` threads along a period and the rest along periods; `tiles` blocks are a period, `parts` a
// ghost.
struct Cut {
  int lanes, tiles, parts;
};

__host__ __device__ __forceinline__ int64_t period_of(const NormLayout& at) {
  return at.planar ? at.channels * at.length : at.channels;
}
__host__ __device__ __forceinline__ int64_t periods_of(const NormLayout& at, int64_t samples) {
  return at.planar ? samples : samples * at.length;
}
__host__ __device__ __forceinline__ int64_t mask_period_of(const NormLayout& at) {
  return at.planar ? at.channels * at.mask_row() : at.mask_row();
}
// Units of a row of the layout, and of a period.
__host__ __device__ __forceinline__ int64_t row_units_of(const NormLayout& at) {
  return (at.row_length() + kUnit - 1) / kUnit;
}
__host__ __device__ __forceinline__ int64_t units_of(const NormLayout& at, Access by) {
  if (by == Access::kAcross) return period_of(at) / kUnit;
  return (at.planar ? at.channels : 1) * row_units_of(at);
}

// Where a block's share of the periods is.
struct Share {
  int64_t ghost, tile;
  int part, begin, end;  // the last two in the ghost

  __device__ __forceinline__ Share(const NormLayout& at, const Cut& cut, unsigned int number) {
    const auto parts = static_cast<unsigned int>(cut.parts);
    const auto tiles = static_cast<unsigned int>(cut.tiles);
    const unsigned int block = number / parts;
    part = static_cast<int>(number - block * parts);
    ghost = block / tiles;
    tile = block % tiles;
    const auto all = static_cast<int>(periods_of(at, at.size(ghost)));
    const int length = (all + cut.parts - 1) / cut.parts;
    begin = min(all, part * length);
    end = min(all, begin + length);
  }
};

// A place in a period: values, channels, bits of the mask.
template <Access By>
struct Place {
  int64_t offset;   // of the first value
  int64_t channel;  // its
  int count;        // of values, 0 outside of the period
  int position;     // of the first value in its row

  __device__ __forceinline__ Place(const NormLayout& at, int64_t unit) {
    // Divisions of 32 bits, for they are much faster.
    if (!at.planar) {
      offset = channel = unit * kUnit;
      position = static_cast<int>(offset);
    } else if (By == Access::kAcross) {
      offset = unit * kUnit;
      channel = static_cast<uint32_t>(offset) / static_cast<uint32_t>(at.length);
      position = static_cast<int>(offset - channel * at.length);
    } else {
      const auto row_units = static_cast<uint32_t>(row_units_of(at));
      channel = static_cast<uint32_t>(unit) / row_units;
      position = static_cast<int>(unit - channel * row_units) * kUnit;
      offset = channel * at.length + position;
    }
    const int64_t left = By == Access::kAcross ? kUnit : at.row_length() - position;
    count = unit < units_of(at, By) ? static_cast<int>(left < kUnit ? left : kUnit) : 0;
  }

  // What a table of the ghost's channels says of each value.
  template <typename Acc>
  __device__ __forceinline__ void look_up(
      const NormLayout& at, const Acc* table, Acc (&values)[kUnit]) const {
    if (count == 0) return;
    if (By == Access::kUnits && !at.planar) {
      const auto unit = *reinterpret_cast<const Unit<Acc>*>(table + channel);
#pragma unroll
      for (int e = 0; e < kUnit; ++e) values[e] = unit.values[e];
      return;
    }
    int64_t c = channel;
    auto left = static_cast<int>(at.planar ? at.length - position : 1);
#pragma unroll
    for (int e = 0; e < kUnit; ++e) {
      values[e] = e < count ? table[c] : Acc(0);
      if (--left == 0 && (By == Access::kAcross || !at.planar)) {
        ++c;
        left = static_cast<int>(at.planar ? at.length : 1);
      }
    }
  }
};

// The bits of a place in the masks of its periods. Where units cross the rows, bytes do not begin
// with them: up to two begin in a unit, and may end in the next one's. `Byte` is const to load.
template <Access By, typename Byte>
struct MaskPlace {
  Byte* first;   // of the unit, or that begins in it (kAcross); null without one
  Byte* second;  // that begins in it (kAcross)
  int from, length;  // bits of `first` in the unit and the next, its number of bits
  int second_from;
  bool pads;     // a byte without bits follows `first`, for rows fill up to 16 bits
  Byte *low, *high, *next;  // bytes that hold bits of the unit (kAcross)
  int shift, in_row;

  // `mask` is that of all periods; without `owns` no byte is the place's to store.
  __device__ __forceinline__ MaskPlace(
      const NormLayout& at, const Place<By>& place, Byte* mask, bool owns = true) {
    const int64_t row = at.mask_row(), row_units = row_units_of(at);
    Byte* const base = mask + (at.planar ? place.channel * row : 0);
    if constexpr (By != Access::kAcross) {
      first = base + place.position / kUnit;
      pads = place.position / kUnit == row_units - 1 && row > row_units;
    } else {
      const auto length_of_row = static_cast<int>(at.length);
      const int left = length_of_row - place.position;  // of the row
      from = (kUnit - place.position % kUnit) % kUnit;
      first = from < left && owns ? base + (place.position + from) / kUnit : nullptr;
      length = min(kUnit, left - from);
      pads = first != nullptr && (place.position + from) / kUnit == row_units - 1 &&
          row > row_units;
      next = left < kUnit && place.channel + 1 < at.channels ? base + row : nullptr;
      second = owns ? next : nullptr;
      second_from = left;
      low = base + place.position / kUnit;
      high = place.position / kUnit + 1 < row ? low + 1 : low;
      shift = place.position % kUnit;
      in_row = min(kUnit, left);
    }
  }

  // `period` is where the mask of a period begins.
  __device__ __forceinline__ int load(uint32_t period) const {
    if constexpr (By != Access::kAcross) return first[period];
    const int here = (low[period] | high[period] << 8) >> shift & ((1 << in_row) - 1);
    return next == nullptr ? here : here | next[period] << in_row;
  }

  // `following` is the bits of the next unit.
  __device__ __forceinline__ void store(uint32_t period, int bits, int following) const {
    if constexpr (By == Access::kAcross) {
      bits += following * (1 << kUnit);
      if (second != nullptr) second[period] = static_cast<uint8_t>(bits >> second_from);
      bits = bits >> from & ((1 << length) - 1);
    }
    uint8_t* const byte = first + period;
    if (By != Access::kAcross || first != nullptr) *byte = static_cast<uint8_t>(bits);
    if (pads) byte[1] = 0;
  }
};

}  // namespace largebatch
