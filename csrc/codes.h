// The max over a window, its argmax codes, and the gradient that follows them.
#pragma once

#include "prologue.h"
#include "vector.h"

namespace aablur::AABLUR_ISA {

// out[i] = max over candidates of candidate[i], first one first; codes[i] = the code of the one that won.
template <bool WithCodes, class T, class A = accumulator<T>>
inline void select_max(const T* const* candidates, const uint16_t* candidate_codes, int64_t count, int64_t n, T* out,
                       uint16_t* codes) {
  auto body = [&](auto constant) {
    constexpr int fixed = decltype(constant)::value;
    const int64_t terms = fixed ? fixed : count;
    auto select = [&](int64_t i, auto... partial) {
      Vector<A> best = load(candidates[0] + i, partial...);
      Index<A> code = Index<A>{} + candidate_codes[0];
#pragma GCC unroll 9
      for (int64_t e = 1; e < terms; ++e) {
        const Vector<A> candidate = load(candidates[e] + i, partial...);
        const auto replaces = Max::replaces(candidate, best);
        best = replaces ? candidate : best;
        if constexpr (WithCodes) code = replaces ? Index<A>{} + candidate_codes[e] : code;
      }
      store(out + i, best, partial...);
      if constexpr (WithCodes) {
        const Codes<A> narrow = __builtin_convertvector(code, Codes<A>);
        std::memcpy(codes + i, &narrow, sizeof narrow);  // the row of codes has room for whole vectors
      }
    };
    int64_t i = 0;
    for (; i + lanes<A> <= n; i += lanes<A>) select(i);
    if (i < n) select(i, n - i);
  };
  if (count == 4) body(std::integral_constant<int, 4>{});
  else if (count == 9) body(std::integral_constant<int, 9>{});
  else body(std::integral_constant<int, 0>{});
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
  auto body = [&](auto constant) {
    constexpr int fixed = decltype(constant)::value;
    const int64_t terms = fixed ? fixed : count;
    auto sum = [&](int64_t i) {
      Vector<A> total{};
#pragma GCC unroll 9
      for (int64_t e = 0; e < terms; ++e) {
        const auto codes = __builtin_convertvector(load_as<Codes<A>>(readers[e].codes + i), Index<A>);
        total = codes == Index<A>{} + readers[e].code ? total + load(readers[e].grad + i) : total;
      }
      return total;
    };
    int64_t i = 0;
    for (; i + lanes<A> <= n; i += lanes<A>) store(out + i, sum(i));
    if (i < n) store(out + i, sum(i), n - i);
  };
  if (count == 4) body(std::integral_constant<int, 4>{});
  else if (count == 9) body(std::integral_constant<int, 9>{});
  else body(std::integral_constant<int, 0>{});
}

// Codes [start, start + n) of a plane, `bits` each. Neighbours in a shared byte are kept.
inline void pack_codes(const uint16_t* codes, int64_t n, int64_t bits, int64_t start, uint8_t* plane) {
  if (bits == 16) {
    std::memcpy(plane + 2 * start, codes, 2 * n);
    return;
  }
  const int64_t per_byte = 8 / bits;
  auto put = [&](int64_t j) {
    const int64_t position = start + j, shift = position % per_byte * bits;
    uint8_t& byte = plane[position / per_byte];
    byte = uint8_t((byte & ~(((1 << bits) - 1) << shift)) | codes[j] << shift);
  };
  int64_t j = 0;
  for (; j < n && (start + j) % per_byte != 0; ++j) put(j);
#if defined(__BMI2__)
  const uint64_t mask = ((uint64_t(1) << bits) - 1) * 0x0001000100010001ull;  // four codes at a time
  for (; j + 4 * per_byte <= n; j += 4 * per_byte) {
    uint32_t word = 0;
    for (int64_t part = 0; part < per_byte; ++part)
      word |= uint32_t(_pext_u64(load_as<uint64_t>(codes + j + 4 * part), mask)) << (4 * bits * part);
    std::memcpy(plane + (start + j) / per_byte, &word, 4);
  }
#endif
  for (; j < n; ++j) put(j);
}

inline void unpack_codes(const uint8_t* plane, int64_t start, int64_t n, int64_t bits, uint16_t* codes) {
  if (bits == 16) {
    std::memcpy(codes, plane + 2 * start, 2 * n);
    return;
  }
  const int64_t per_byte = 8 / bits;
  auto get = [&](int64_t j) {
    const int64_t position = start + j;
    codes[j] = plane[position / per_byte] >> (position % per_byte * bits) & ((1 << bits) - 1);
  };
  int64_t j = 0;
  for (; j < n && (start + j) % per_byte != 0; ++j) get(j);
#if defined(__BMI2__)
  const uint64_t mask = ((uint64_t(1) << bits) - 1) * 0x0001000100010001ull;
  for (; j + 4 * per_byte <= n; j += 4 * per_byte) {
    const uint32_t word = load_as<uint32_t>(plane + (start + j) / per_byte);
    for (int64_t part = 0; part < per_byte; ++part) {
      const uint64_t four = _pdep_u64(word >> (4 * bits * part), mask);
      std::memcpy(codes + j + 4 * part, &four, 8);
    }
  }
#endif
  for (; j < n; ++j) get(j);
}

}  // namespace aablur::AABLUR_ISA
