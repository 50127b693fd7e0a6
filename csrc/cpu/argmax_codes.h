// The max over a window, its argmax codes, and the gradient that follows them.
#pragma once

#include <algorithm>

#include "core/argmax.h"
#include "core/static_switch.h"
#include "cpu/simd.h"

namespace aablur::AABLUR_ISA {

// out[i] = max over candidates of candidate[i], first one first; codes[i] = the code of the one that won.
template <bool WithCodes, class T, class A = accumulator<T>>
inline void select_max(const T* const* candidates, const uint16_t* candidate_codes, int64_t count, int64_t n, T* out,
                       uint16_t* codes) {
  static_switch<4, 9, 0>(count, [&](auto constant) {
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
  static_switch<4, 9, 0>(count, [&](auto constant) {
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

// A row of n codes, to the byte that it begins with: of `room` bytes there, those behind the row's may be cleared. What
// lies up to 16 codes behind the row is read.
template <int Bits>
inline void pack_codes(const uint16_t* codes, int64_t n, uint8_t* to, int64_t room) {
  if constexpr (Bits == 16) {
    std::memcpy(to, codes, 2 * n);
  } else {
    constexpr int per_byte = 8 / Bits, at_once = 4 * per_byte;
    for (int64_t j = 0; j < n; j += at_once, to += 4, room -= 4) {
      uint32_t word = 0;
      for (int part = 0; part < per_byte; ++part) word |= pack_four<Bits>(codes + j + 4 * part) << (4 * Bits * part);
      if (n - j < at_once) word &= (uint32_t(1) << ((n - j) * Bits)) - 1;
      if (room >= 4) std::memcpy(to, &word, 4);
      else
        for (int64_t byte = 0; byte < room && byte < 4; ++byte) to[byte] = uint8_t(word >> (8 * byte));
    }
  }
}

// A row of n codes from the byte that it begins with, of which and of what follows `room` bytes are there to read. What
// lies up to two vectors behind the row is written.
template <int Bits>
inline void unpack_codes(const uint8_t* from, int64_t room, int64_t n, uint16_t* codes) {
  if constexpr (Bits == 16) {
    std::memcpy(codes, from, 2 * n);
  } else if constexpr (Bits == 8) {
    for (int64_t j = 0; j < n; ++j) codes[j] = from[j];
  } else {
    constexpr int per_word = 32 / Bits, bytes = lanes<float> * Bits / 8;
    static_assert(bytes <= 8);
    Index<float> lane;
    for (int l = 0; l < lanes<float>; ++l) lane[l] = l;
    for (int64_t j = 0; j < n; j += lanes<float>, from += bytes, room -= bytes) {
      uint64_t packed = 0;
      if (room >= bytes) std::memcpy(&packed, from, bytes);
      else
        for (int64_t byte = 0; byte < room; ++byte) packed |= uint64_t(from[byte]) << (8 * byte);
      const Index<float> low = Index<float>{} + int32_t(packed), high = Index<float>{} + int32_t(packed >> 32);
      const Index<float> all = lanes<float> <= per_word ? low : lane < per_word ? low : high;
      store_codes<float>(codes + j, all >> (lane % per_word * Bits) & ((1 << Bits) - 1));
    }
  }
}

}  // namespace aablur::AABLUR_ISA
