// SIMD vectors of the instruction set this translation unit is compiled for, on the compilers' vector
// extension: loads widen to the accumulator type, stores round to nearest even. No torch.
//
// Included by kernels.cpp only, which is compiled once an instruction set with AABLUR_ISA naming it.
#pragma once

#include <utility>

#include "core/dtype.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace aablur::AABLUR_ISA {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

template <class A>
constexpr int lanes = vector_bytes / sizeof(A);

template <class A>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(vector_bytes)));
  typedef int32_t index __attribute__((vector_size(vector_bytes)));
  typedef uint16_t codes __attribute__((vector_size(vector_bytes / 2)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(vector_bytes)));
  typedef int64_t index __attribute__((vector_size(vector_bytes)));
  typedef uint16_t codes __attribute__((vector_size(vector_bytes / 4)));
};
template <class A>
using Vector = typename VectorOf<A>::type;
template <class A>
using Index = typename VectorOf<A>::index;  // integers of the same width, as comparisons give
template <class A>
using Codes = typename VectorOf<A>::codes;  // as many argmax codes

typedef uint32_t Words __attribute__((vector_size(vector_bytes)));
typedef uint16_t Halves __attribute__((vector_size(vector_bytes / 2)));

template <class V, class T>
inline V load_as(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// ---- vectors of lanes<A> elements ----------------------------------------------------------------

// 16 bits <-> 32. GCC 12 makes several instructions of __builtin_convertvector where the ISA has one.
inline Words widen_words(const void* p) {
#if defined(__AVX512F__)
  return bit_cast<Words>(_mm512_cvtepu16_epi32(load_as<__m256i>(p)));
#elif defined(__AVX2__)
  return bit_cast<Words>(_mm256_cvtepu16_epi32(load_as<__m128i>(p)));
#else
  return __builtin_convertvector(load_as<Halves>(p), Words);
#endif
}
inline Halves narrow_words(Words words) {
#if defined(__AVX512F__)
  return bit_cast<Halves>(_mm512_cvtepi32_epi16(bit_cast<__m512i>(words)));
#else
  return __builtin_convertvector(words, Halves);
#endif
}

template <class T, class A = accumulator<T>>
inline Vector<A> load(const T* p) {
  if constexpr (std::is_same_v<T, A>) {
    return load_as<Vector<A>>(p);
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    return bit_cast<Vector<A>>(widen_words(p) << 16);
  } else {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(load_as<__m256i>(p));
#elif defined(__F16C__)
    return _mm256_cvtph_ps(load_as<__m128i>(p));
#else
    Vector<A> v;
    for (int i = 0; i < lanes<A>; ++i) v[i] = widen(p[i]);
    return v;
#endif
  }
}

template <class T, class A = accumulator<T>>
inline void store(T* p, Vector<A> v) {
  if constexpr (std::is_same_v<T, A>) {
    std::memcpy(p, &v, sizeof v);
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    const Words bits = bit_cast<Words>(v), rounded = bits + 0x7fff + (bits >> 16 & 1);
    const Words kept = v != v ? bits | 0x400000 : rounded;
    const Halves halves = narrow_words(kept >> 16);
    std::memcpy(p, &halves, sizeof halves);
  } else {
#if defined(__AVX512F__)
    const __m256i halves = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    std::memcpy(p, &halves, sizeof halves);
#elif defined(__F16C__)
    const __m128i halves = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    std::memcpy(p, &halves, sizeof halves);
#else
    for (int i = 0; i < lanes<A>; ++i) p[i] = narrow<T>(v[i]);
#endif
  }
}

// The first n < lanes<A> elements, the rest zero; nothing past them is read or written.
template <class T, class A = accumulator<T>>
inline Vector<A> load(const T* p, int64_t n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 8) return bit_cast<Vector<A>>(_mm512_maskz_loadu_epi64((1u << n) - 1, p));
  if constexpr (sizeof(T) == 4) return bit_cast<Vector<A>>(_mm512_maskz_loadu_epi32((1u << n) - 1, p));
  if constexpr (sizeof(T) == 2) {
    const __m256i halves = _mm256_maskz_loadu_epi16((1u << n) - 1, p);
    return load(reinterpret_cast<const T*>(&halves));
  }
#else
  T padded[lanes<A>] = {};
  for (int64_t i = 0; i < n; ++i) padded[i] = p[i];
  return load(padded);
#endif
}

template <class T, class A = accumulator<T>>
inline void store(T* p, Vector<A> v, int64_t n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 8) _mm512_mask_storeu_epi64(p, (1u << n) - 1, bit_cast<__m512i>(v));
  if constexpr (sizeof(T) == 4) _mm512_mask_storeu_epi32(p, (1u << n) - 1, bit_cast<__m512i>(v));
  if constexpr (sizeof(T) == 2) {
    __m256i halves;
    store(reinterpret_cast<T*>(&halves), v);
    _mm256_mask_storeu_epi16(p, (1u << n) - 1, halves);
  }
#else
  T padded[lanes<A>];
  store(padded, v);
  for (int64_t i = 0; i < n; ++i) p[i] = padded[i];
#endif
}

// ---- permutations of two vectors -----------------------------------------------------------------

// Lane l of the result is element index[l] of (a, b).
#if defined(__AVX512F__)
template <class A>
constexpr bool has_permute = true;
inline Vector<float> choose(Vector<float> a, Vector<float> b, Index<float> index) {
  return _mm512_permutex2var_ps(a, bit_cast<__m512i>(index), b);
}
inline Vector<double> choose(Vector<double> a, Vector<double> b, Index<double> index) {
  return _mm512_permutex2var_pd(a, bit_cast<__m512i>(index), b);
}
#elif defined(__AVX2__)
template <class A>
constexpr bool has_permute = std::is_same_v<A, float>;
inline Vector<float> choose(Vector<float> a, Vector<float> b, Index<float> index) {
  const __m256i lanes_of = bit_cast<__m256i>(index);
  const __m256 high = _mm256_castsi256_ps(_mm256_slli_epi32(lanes_of, 28));  // bit 3 to the sign
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(a, lanes_of), _mm256_permutevar8x32_ps(b, lanes_of), high);
}
#else
template <class A>
constexpr bool has_permute = false;
#endif

// ---- argmax codes, a lane each -------------------------------------------------------------------

template <class A>
inline Index<A> load_codes(const uint16_t* p) {
  if constexpr (sizeof(A) == 4) return bit_cast<Index<A>>(widen_words(p));
  else return __builtin_convertvector(load_as<Codes<A>>(p), Index<A>);
}

template <class A>
inline void store_codes(uint16_t* p, Index<A> codes) {
  if constexpr (sizeof(A) == 4) {
    const Halves narrow = narrow_words(bit_cast<Words>(codes));
    std::memcpy(p, &narrow, sizeof narrow);
  } else {
    const Codes<A> narrow = __builtin_convertvector(codes, Codes<A>);
    std::memcpy(p, &narrow, sizeof narrow);
  }
}

// Four codes, side by side in the low bits.
template <int Bits>
inline uint32_t pack_four(const uint16_t* codes) {
#if defined(__BMI2__)
  constexpr uint64_t mask = ((uint64_t(1) << Bits) - 1) * 0x0001000100010001ull;
  return uint32_t(_pext_u64(load_as<uint64_t>(codes), mask));
#else
  uint32_t word = 0;
  for (int c = 0; c < 4; ++c) word |= uint32_t(codes[c]) << (c * Bits);
  return word;
#endif
}

// ---- pairs of vectors ----------------------------------------------------------------------------

template <class A>
struct Pair {
  Vector<A> first, second;
};

// Whether load_pair<T> yields (even, odd) elements rather than (low, high) ones: two bfloat16 in one
// 32-bit word are a shift and a mask away from two floats.
template <class T>
constexpr bool loads_split = std::is_same_v<T, bfloat16> && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__;

template <class T, class A = accumulator<T>>
inline Pair<A> load_pair(const T* p) {
  if constexpr (loads_split<T>) {
    const Words words = load_as<Words>(p);
    return {bit_cast<Vector<A>>(words << 16), bit_cast<Vector<A>>(words & 0xffff0000u)};
  } else {
    return {load(p), load(p + lanes<A>)};
  }
}

template <class T, class A = accumulator<T>>
inline Pair<A> load_pair(const T* p, int64_t n) {  // n < 2 * lanes<A>
#if defined(__AVX512F__)
  if constexpr (loads_split<T>) {
    const __m512i words = _mm512_maskz_loadu_epi16((uint32_t(1) << n) - 1, p);
    return load_pair(reinterpret_cast<const T*>(&words));
  }
  if (n <= lanes<A>) return {n == lanes<A> ? load(p) : load(p, n), Vector<A>{}};
  return {load(p), load(p + lanes<A>, n - lanes<A>)};
#else
  T padded[2 * lanes<A>] = {};
  for (int64_t i = 0; i < n; ++i) padded[i] = p[i];
  return load_pair(padded);
#endif
}

// The inverse of load_pair.
template <class T, class A = accumulator<T>>
inline void store_pair(T* p, Pair<A> pair) {
  if constexpr (loads_split<T>) {
    auto round = [](Vector<A> v) {
      const Words bits = bit_cast<Words>(v);
      return v != v ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
    };
    const Words words = round(pair.first) >> 16 | (round(pair.second) & 0xffff0000u);
    std::memcpy(p, &words, sizeof words);
  } else {
    store(p, pair.first);
    store(p + lanes<A>, pair.second);
  }
}
template <class T, class A = accumulator<T>>
inline void store_pair(T* p, Pair<A> pair, int64_t n) {  // n < 2 * lanes<A>
  T padded[2 * lanes<A>];
  store_pair(padded, pair);
  std::memcpy(p, padded, n * sizeof(T));
}

template <class A, int Step, int Offset, int... I>
inline Vector<A> pick(Vector<A> a, Vector<A> b, std::integer_sequence<int, I...>) {
  // Lane I of the result is element `Step * I + Offset` of (a, b).
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (Step * I + Offset)...);
#else
  return __builtin_shuffle(a, b, Index<A>{(Step * I + Offset)...});
#endif
}
template <class A, int Offset, int... I>
inline Vector<A> zip(Vector<A> a, Vector<A> b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (I / 2 + Offset + I % 2 * lanes<A>)...);
#else
  return __builtin_shuffle(a, b, Index<A>{(I / 2 + Offset + I % 2 * lanes<A>)...});
#endif
}
template <class A>
using lane_sequence = std::make_integer_sequence<int, lanes<A>>;

// (low, high) -> (even, odd), and back.
template <class A>
inline Pair<A> deinterleave(Pair<A> p) {
  return {pick<A, 2, 0>(p.first, p.second, lane_sequence<A>{}), pick<A, 2, 1>(p.first, p.second, lane_sequence<A>{})};
}
template <class A>
inline Pair<A> interleave(Pair<A> p) {
  return {zip<A, 0>(p.first, p.second, lane_sequence<A>{}),
          zip<A, lanes<A> / 2>(p.first, p.second, lane_sequence<A>{})};
}

}  // namespace aablur::AABLUR_ISA
