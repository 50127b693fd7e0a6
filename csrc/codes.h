// The max over a window, its argmax codes, and the gradient that follows them.
#pragma once

#include <algorithm>

#include "prologue.h"
#include "vector.h"

namespace aablur::AABLUR_ISA {

// Calls f with the positions of a window as a constant: 4 or 9, or 0 for `read it at run time`.
template <class F>
inline void with_volume(int64_t count, F&& f) {
  if (count == 4) f(std::integral_constant<int, 4>{});
  else if (count == 9) f(std::integral_constant<int, 9>{});
  else f(std::integral_constant<int, 0>{});
}

// out[i] = max over candidates of candidate[i], first one first; codes[i] = the code of the one that won.
template <bool WithCodes, class T, class A = accumulator<T>>
inline void select_max(const T* const* candidates, const uint16_t* candidate_codes, int64_t count, int64_t n, T* out,
                       uint16_t* codes) {
  with_volume(count, [&](auto constant) {
    constexpr int fixed = decltype(constant)::value;
    const int64_t terms = fixed ? fixed : count;
    const T* copied[fixed ? fixed : 1];
    uint16_t copied_codes[fixed ? fixed : 1];
    if constexpr (fixed != 0) {
      std::copy(candidates, candidates + fixed, copied);
      std::copy(candidate_codes, candidate_codes + fixed, copied_codes);
    }
    const T* const* const candidate = fixed ? copied : candidates;
    const uint16_t* const code_of = fixed ? copied_codes : candidate_codes;
    constexpr int64_t ahead = 2048 / sizeof(T);  // what the caches fetch by themselves comes too late
    auto select = [&](int64_t i, auto... partial) {
      __builtin_prefetch(candidate[terms - 1] + i + ahead);
      Vector<A> best = load(candidate[0] + i, partial...);
      Index<A> code = Index<A>{} + code_of[0];
#pragma GCC unroll 9
      for (int64_t e = 1; e < terms; ++e) {
        const Vector<A> next = load(candidate[e] + i, partial...);
        const auto replaces = Max::replaces(next, best);
        best = replaces ? next : best;
        if constexpr (WithCodes) code = replaces ? Index<A>{} + code_of[e] : code;
      }
      store(out + i, best, partial...);
      if constexpr (WithCodes) store_codes<A>(codes + i, code);  // the row of codes has room for whole vectors
    };
    int64_t i = 0;
    for (; i + lanes<A> <= n; i += lanes<A>) select(i);
    if (i < n) select(i, n - i);
  });
}

// One pooled row that a row of the input was read by: with this code it was the maximum.
template <class A>
struct Reader {
  const A* grad;
  const uint16_t* codes;
  int32_t code;
};

// out[i] = sum over readers of grad[i] where codes[i] == code.
template <class O, class A>
inline void selected_sum(const Reader<A>* readers, int64_t count, int64_t n, O* out) {
  with_volume(count, [&](auto constant) {
    constexpr int fixed = decltype(constant)::value;
    const int64_t terms = fixed ? fixed : count;
    // A copy whose address nobody has: the compiler need not read it again after every store.
    Reader<A> copied[fixed ? fixed : 1];
    if constexpr (fixed != 0) std::copy(readers, readers + fixed, copied);
    const Reader<A>* const reader = fixed ? copied : readers;
    auto sum = [&](int64_t i) {
      Vector<A> total{};
#pragma GCC unroll 9
      for (int64_t e = 0; e < terms; ++e) {
        const Index<A> codes = load_codes<A>(reader[e].codes + i);
        total = codes == Index<A>{} + reader[e].code ? total + load(reader[e].grad + i) : total;
      }
      return total;
    };
    int64_t i = 0;
    for (; i + lanes<A> <= n; i += lanes<A>) store(out + i, sum(i));
    if (i < n) store(out + i, sum(i), n - i);
  });
}

// A row of n codes of `bits` each, with room for 4 more, to the byte that it begins with.
inline void pack_codes(const uint16_t* codes, int64_t n, int64_t bits, uint8_t* to) {
  if (bits == 16) {
    std::memcpy(to, codes, 2 * n);
    return;
  }
  const int64_t per_byte = 8 / bits;
  int64_t j = 0;
#if defined(__BMI2__)
  const uint64_t mask = ((uint64_t(1) << bits) - 1) * 0x0001000100010001ull;  // four codes at a time
  for (; j + 4 * per_byte <= n; j += 4 * per_byte) {
    uint32_t word = 0;
    for (int64_t part = 0; part < per_byte; ++part)
      word |= uint32_t(_pext_u64(load_as<uint64_t>(codes + j + 4 * part), mask)) << (4 * bits * part);
    std::memcpy(to, &word, 4);
    to += 4;
  }
  for (; j < n; j += 4) {
    const int64_t left = std::min<int64_t>(4, n - j);
    const uint32_t word = uint32_t(_pext_u64(load_as<uint64_t>(codes + j), mask >> (64 - 16 * left)));
    for (int64_t byte = 0; byte < ceil_div(left * bits, 8); ++byte) *to++ = uint8_t(word >> (8 * byte));
  }
#endif
  for (; j < n; j += per_byte) {
    int64_t byte = 0;
    for (int64_t c = 0; c < per_byte && j + c < n; ++c) byte |= codes[j + c] << (c * bits);
    *to++ = uint8_t(byte);
  }
}

#if defined(__AVX2__)
// A vector's worth of codes of `bits` each, from the byte they begin in.
template <int bits>
inline Index<float> split_codes(const uint8_t* packed) {
  constexpr int per_word = 32 / bits;
  uint32_t words[2] = {};
  std::memcpy(words, packed, lanes<float> * bits / 8);
  Index<float> lane;
  for (int l = 0; l < lanes<float>; ++l) lane[l] = l;
  const Index<float> low = Index<float>{} + int32_t(words[0]);
  const Index<float> all = lanes<float> <= per_word ? low : lane < per_word ? low : Index<float>{} + int32_t(words[1]);
  return all >> (lane % per_word * bits) & ((1 << bits) - 1);
}
#endif

// To a row with room for 4 more.
inline void unpack_codes(const uint8_t* from, int64_t n, int64_t bits, uint16_t* codes) {
  if (bits == 16) {
    std::memcpy(codes, from, 2 * n);
    return;
  }
  const int64_t per_byte = 8 / bits;
  int64_t j = 0;
#if defined(__AVX2__)
  auto whole = [&](auto split) {
    for (; j + lanes<float> <= n; j += lanes<float>) store_codes<float>(codes + j, split(from + j / per_byte));
  };
  if (bits == 2) whole(split_codes<2>);
  else if (bits == 4) whole(split_codes<4>);
#endif
#if defined(__BMI2__)
  const uint64_t mask = ((uint64_t(1) << bits) - 1) * 0x0001000100010001ull;
  for (; j < n; j += per_byte) {
    const uint64_t some = _pdep_u64(from[j / per_byte], mask);
    std::memcpy(codes + j, &some, 8);
  }
#endif
  for (; j < n; ++j) codes[j] = from[j / per_byte] >> (j % per_byte * bits) & ((1 << bits) - 1);
}

}  // namespace aablur::AABLUR_ISA
