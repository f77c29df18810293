// Vectors of 64 bytes, whatever the machine's registers are: the compiler splits them where these
// are narrower. Element i of a stretch is in lane i mod kCount on every instruction set, so sums
// have one order and one set of bits.
//
// GCC splits vectors before it clones functions, so LARGEBATCH_CLONES does not help here. A source
// that includes this file sets its instruction set by a pragma, and LARGEBATCH_ISA to a namespace of
// its own, and may set LARGEBATCH_ISA_AVX2 or _AVX512 (a pragma does not define the compiler's own
// macros); what it includes from elsewhere comes before the pragma. Intrinsics stand in this file
// alone, guarded, where compiler vectors have no word for it: streaming stores, masks to bits,
// parts of vectors and float16.

#pragma once

#ifndef LARGEBATCH_ISA
#error "set LARGEBATCH_ISA before including common/lanes.h"
#endif

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

// Instrumented code would swell without bound.
#if defined(LARGEBATCH_SANITIZE)
#define LARGEBATCH_ALWAYS_INLINE
#else
#define LARGEBATCH_ALWAYS_INLINE __attribute__((always_inline))
#endif
#define LARGEBATCH_INLINE inline LARGEBATCH_ALWAYS_INLINE

// GCC warns about the calling convention of wide vectors, which matters between compilers alone.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

namespace largebatch::LARGEBATCH_ISA {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <typename Acc>
struct Lanes;

template <>
struct Lanes<float> {
  typedef float Vector __attribute__((vector_size(64)));
  typedef int32_t Mask __attribute__((vector_size(64)));  // -1 where true, else 0
  static constexpr int kCount = 16;
};

template <>
struct Lanes<double> {
  typedef double Vector __attribute__((vector_size(64)));
  typedef int64_t Mask __attribute__((vector_size(64)));
  static constexpr int kCount = 8;
};

template <typename Acc>
using Vector = typename Lanes<Acc>::Vector;
template <typename Acc>
using Mask = typename Lanes<Acc>::Mask;

template <typename Acc>
LARGEBATCH_INLINE Vector<Acc> splat(Acc value) {
  return value - Vector<Acc>{};
}

template <typename T>
LARGEBATCH_INLINE Vector<Wide<T>> load(const T* data) {
  Vector<Wide<T>> result;
  if constexpr (std::is_same_v<T, Wide<T>>) {
    std::memcpy(&result, data, sizeof(result));
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    typedef uint16_t Narrow __attribute__((vector_size(32)));
    typedef uint32_t Words __attribute__((vector_size(64)));
    Narrow bits;
    std::memcpy(&bits, data, sizeof(bits));
    const Words words = __builtin_convertvector(bits, Words) << 16;
    std::memcpy(&result, &words, sizeof(result));
  } else {
#if defined(LARGEBATCH_ISA_AVX512)
    __m256i bits;
    std::memcpy(&bits, data, sizeof(bits));
    const __m512 wide = _mm512_maskz_cvtph_ps(0xffff, bits);
    std::memcpy(&result, &wide, sizeof(result));
#elif defined(LARGEBATCH_ISA_AVX2)
    __m128i bits[2];
    std::memcpy(bits, data, sizeof(bits));
    const __m256 wide[2] = {_mm256_cvtph_ps(bits[0]), _mm256_cvtph_ps(bits[1])};
    std::memcpy(&result, wide, sizeof(result));
#else
    float values[16];
    for (int lane = 0; lane < 16; ++lane) values[lane] = static_cast<float>(data[lane]);
    std::memcpy(&result, values, sizeof(result));
#endif
  }
  return result;
}

// The first `count` lanes; the others are `rest`.
template <typename T>
LARGEBATCH_INLINE Vector<Wide<T>> load_some(const T* data, int count, Wide<T> rest = 0) {
#if defined(LARGEBATCH_ISA_AVX512)
  if constexpr (std::is_same_v<T, float>) {
    const auto mask = static_cast<__mmask16>((1u << count) - 1);
    const __m512 values = _mm512_mask_loadu_ps(_mm512_set1_ps(rest), mask, data);
    Vector<float> result;
    std::memcpy(&result, &values, sizeof(result));
    return result;
  }
#endif
  Wide<T> values[Lanes<Wide<T>>::kCount];
  for (int lane = 0; lane < Lanes<Wide<T>>::kCount; ++lane) {
    values[lane] = lane < count ? static_cast<Wide<T>>(data[lane]) : rest;
  }
  return load(values);
}

// Asks the second-level cache for what will be read soon; any address will do.
LARGEBATCH_INLINE void prefetch(const void* data) { __builtin_prefetch(data, 0, 2); }

// A store that goes past the caches, for outputs too large to be found there later.
LARGEBATCH_INLINE void stream_bytes(void* target, const void* source, int bytes) {
#if defined(LARGEBATCH_ISA_AVX512)
  if (bytes == 64) {  // a whole line at once
    __m512i line;
    std::memcpy(&line, source, sizeof(line));
    _mm512_stream_si512(static_cast<__m512i*>(target), line);
    return;
  }
#endif
#if defined(__SSE2__)
#pragma GCC unroll 4
  for (int at = 0; at < bytes; at += 16) {
    __m128i part;
    std::memcpy(&part, static_cast<const char*>(source) + at, 16);
    _mm_stream_si128(reinterpret_cast<__m128i*>(static_cast<char*>(target) + at), part);
  }
#else
  std::memcpy(target, source, bytes);
#endif
}

// After streaming stores, before another thread may read them.
LARGEBATCH_INLINE void stream_end() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Rounds to nearest even, like a conversion of single values.
template <typename T>
LARGEBATCH_INLINE void store_narrow(T* data, const Vector<float>& values) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    typedef uint32_t Words __attribute__((vector_size(64)));
    typedef uint16_t Narrow __attribute__((vector_size(32)));
    Words words;
    std::memcpy(&words, &values, sizeof(words));
    const Words rounded = (words + ((words >> 16 & 1) + 0x7fff)) >> 16;
    const Words nan = Words{} + 0x7fc0;
    const Narrow bits = __builtin_convertvector(values == values ? rounded : nan, Narrow);
    std::memcpy(data, &bits, sizeof(bits));
  } else {
#if defined(LARGEBATCH_ISA_AVX512)
    __m512 wide;
    std::memcpy(&wide, &values, sizeof(wide));
    const __m256i bits = _mm512_maskz_cvtps_ph(0xffff, wide, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    std::memcpy(data, &bits, sizeof(bits));
#elif defined(LARGEBATCH_ISA_AVX2)
    __m256 wide[2];
    std::memcpy(wide, &values, sizeof(wide));
    const __m128i bits[2] = {
        _mm256_cvtps_ph(wide[0], _MM_FROUND_TO_NEAREST_INT),
        _mm256_cvtps_ph(wide[1], _MM_FROUND_TO_NEAREST_INT)};
    std::memcpy(data, bits, sizeof(bits));
#else
    for (int lane = 0; lane < 16; ++lane) data[lane] = static_cast<T>(values[lane]);
#endif
  }
}

template <typename T>
LARGEBATCH_INLINE void store(T* data, const Vector<Wide<T>>& values, bool stream = false) {
  if constexpr (std::is_same_v<T, Wide<T>>) {
    if (stream) {
      stream_bytes(data, &values, sizeof(values));
    } else {
      std::memcpy(data, &values, sizeof(values));
    }
  } else {
    if (stream) {
      alignas(32) char narrow[32];
      store_narrow(reinterpret_cast<T*>(narrow), values);
      stream_bytes(data, narrow, sizeof(narrow));
    } else {
      store_narrow(data, values);
    }
  }
}

template <typename T>
LARGEBATCH_INLINE void store_some(T* data, const Vector<Wide<T>>& values, int count) {
#if defined(LARGEBATCH_ISA_AVX512)
  if constexpr (std::is_same_v<T, float>) {
    __m512 wide;
    std::memcpy(&wide, &values, sizeof(wide));
    _mm512_mask_storeu_ps(data, static_cast<__mmask16>((1u << count) - 1), wide);
    return;
  }
#endif
  for (int lane = 0; lane < count; ++lane) data[lane] = static_cast<T>(values[lane]);
}

// Lanes added in one fixed order, halves onto halves.
template <typename Acc>
LARGEBATCH_INLINE double lane_sum(const Vector<Acc>& values) {
  Acc lanes[Lanes<Acc>::kCount];
  std::memcpy(lanes, &values, sizeof(values));
  for (int half = Lanes<Acc>::kCount / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return static_cast<double>(lanes[0]);
}

template <typename Acc>
LARGEBATCH_INLINE Vector<Acc> absolute(const Vector<Acc>& values) {
  return values < 0 ? -values : values;
}

// 1, 0 or -1.
template <typename Acc>
LARGEBATCH_INLINE Vector<Acc> sign_of(const Vector<Acc>& values) {
  return __builtin_convertvector((values < 0) - (values > 0), Vector<Acc>);
}

template <typename Acc>
LARGEBATCH_INLINE bool any(const Mask<Acc>& mask) {
  int64_t words[8];
  std::memcpy(words, &mask, sizeof(words));
  int64_t all = 0;
  for (const int64_t word : words) all |= word;
  return all != 0;
}

// Bit `lane` of the result is lane `lane` of the mask; kCount bits at `bits`, lowest first.
template <typename Acc>
LARGEBATCH_INLINE void store_bits(uint8_t* bits, const Mask<Acc>& mask) {
  if constexpr (Lanes<Acc>::kCount == 8) {
    uint8_t byte = 0;
    for (int lane = 0; lane < 8; ++lane) byte |= static_cast<uint8_t>((mask[lane] & 1) << lane);
    *bits = byte;
  } else {
#if defined(__SSE2__)
    __m128i parts[4];
    std::memcpy(parts, &mask, sizeof(parts));
    const int packed = _mm_movemask_epi8(_mm_packs_epi16(
        _mm_packs_epi32(parts[0], parts[1]), _mm_packs_epi32(parts[2], parts[3])));
    const auto word = static_cast<uint16_t>(packed);
#else
    uint16_t word = 0;
    for (int lane = 0; lane < 16; ++lane) word |= static_cast<uint16_t>((mask[lane] & 1) << lane);
#endif
    bits[0] = static_cast<uint8_t>(word & 0xff);
    bits[1] = static_cast<uint8_t>(word >> 8);
  }
}

template <typename Acc>
LARGEBATCH_INLINE Mask<Acc> load_bits(const uint8_t* bits) {
  if constexpr (Lanes<Acc>::kCount == 8) {
    const Mask<Acc> powers = {1, 2, 4, 8, 16, 32, 64, 128};
    return ((static_cast<int64_t>(*bits) - Mask<Acc>{}) & powers) != 0;
  } else {
    const Mask<Acc> powers = {1,   2,   4,    8,    16,   32,   64,    128,
                              256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
    const int32_t word = bits[0] | (bits[1] << 8);
    return ((word - Mask<Acc>{}) & powers) != 0;
  }
}

// The values where the mask is set, else 0.
template <typename Acc>
LARGEBATCH_INLINE Vector<Acc> keep(const Vector<Acc>& values, const Mask<Acc>& mask) {
  Mask<Acc> bits;
  std::memcpy(&bits, &values, sizeof(bits));
  bits &= mask;
  Vector<Acc> result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

}  // namespace largebatch::LARGEBATCH_ISA
