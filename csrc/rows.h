// The arithmetic of rows: weighted sums across rows, and the blur or its transpose along one.
#pragma once

#include "cpu_kernels.h"
#include "prologue.h"
#include "vector.h"

namespace aablur::AABLUR_ISA {

// Calls f with the number of taps (or rows) as a constant: 1 to 7, or 0 for `read it at run time`.
template <class F>
inline void with_count(int64_t count, F&& f) {
  switch (count) {
    case 1: return f(std::integral_constant<int, 1>{});
    case 2: return f(std::integral_constant<int, 2>{});
    case 3: return f(std::integral_constant<int, 3>{});
    case 4: return f(std::integral_constant<int, 4>{});
    case 5: return f(std::integral_constant<int, 5>{});
    case 6: return f(std::integral_constant<int, 6>{});
    case 7: return f(std::integral_constant<int, 7>{});
    default: return f(std::integral_constant<int, 0>{});
  }
}

template <class A>
inline Vector<A> broadcast(A value) {
  return Vector<A>{} + value;
}

// ---- across rows ---------------------------------------------------------------------------------

// out[i] = sum_r weights[r] * rows[r][offset + i] for i < n; weights[r] is a scalar, or with PerLane a row.
template <bool PerLane, class T, class O, class A = accumulator<T>>
inline void weighted_sum(const T* const* rows, int64_t offset, const A* const* weights, int64_t count, int64_t n, O* out) {
  with_count(count, [&](auto constant) {
    constexpr int fixed = decltype(constant)::value;
    const int64_t terms = fixed ? fixed : count;
    Vector<A> broadcasts[fixed ? fixed : 1];
    if constexpr (!PerLane && fixed != 0) {
      for (int r = 0; r < fixed; ++r) broadcasts[r] = broadcast(*weights[r]);
    }
    auto sum = [&](int64_t i, auto... partial) {
      Vector<A> total{};
#pragma GCC unroll 7
      for (int64_t r = 0; r < terms; ++r) {
        Vector<A> w;
        if constexpr (PerLane) w = load(weights[r] + i, partial...);
        else if constexpr (fixed != 0) w = broadcasts[r];
        else w = broadcast(*weights[r]);
        const Vector<A> product = w * load(rows[r] + offset + i, partial...);
        total = r == 0 ? product : total + product;
      }
      return total;
    };
    int64_t i = 0;
    for (; i + 2 * lanes<A> <= n; i += 2 * lanes<A>) {
      const Vector<A> low = sum(i), high = sum(i + lanes<A>);
      store(out + i, low);
      store(out + i + lanes<A>, high);
    }
    if (i + lanes<A> <= n) {
      store(out + i, sum(i));
      i += lanes<A>;
    }
    if (i < n) store(out + i, sum(i, n - i), n - i);
  });
}

// The same with the sums of even i in `even` and of odd i in `odd`, which have room for whole vectors.
template <class T, class A = accumulator<T>>
inline void weighted_sum_split(const T* const* rows, const A* const* weights, int64_t count, int64_t n, A* even, A* odd) {
  with_count(count, [&](auto constant) {
    constexpr int fixed = decltype(constant)::value;
    const int64_t terms = fixed ? fixed : count;
    Vector<A> broadcasts[fixed ? fixed : 1];
    if constexpr (fixed != 0) {
      for (int r = 0; r < fixed; ++r) broadcasts[r] = broadcast(*weights[r]);
    }
    auto sum = [&](int64_t i, auto... partial) {
      Pair<A> total{};
#pragma GCC unroll 7
      for (int64_t r = 0; r < terms; ++r) {
        const Vector<A> w = fixed ? broadcasts[fixed ? r : 0] : broadcast(*weights[r]);
        const Pair<A> row = load_pair(rows[r] + i, partial...);
        total = r == 0 ? Pair<A>{w * row.first, w * row.second}
                       : Pair<A>{total.first + w * row.first, total.second + w * row.second};
      }
      if constexpr (!loads_split<T>) total = deinterleave<A>(total);
      store(even + i / 2, total.first);
      store(odd + i / 2, total.second);
    };
    int64_t i = 0;
    for (; i + 2 * lanes<A> <= n; i += 2 * lanes<A>) sum(i);
    if (i < n) sum(i, n - i);
  });
}

// ---- along a row ---------------------------------------------------------------------------------

// out[o] = sum_t taps[t] * phase[t % Stride][o + t / Stride] for begin <= o < end.
template <int Stride, class O, class A>
inline void correlate(const A* const (&phase)[Stride], const A* taps, int64_t count, int64_t begin, int64_t end, O* out) {
  with_count(count, [&](auto constant) {
    constexpr int fixed = decltype(constant)::value;
    const int64_t terms = fixed ? fixed : count;
    Vector<A> broadcasts[fixed ? fixed : 1];
    for (int t = 0; t < fixed; ++t) broadcasts[t] = broadcast(taps[t]);
    auto sum = [&](int64_t o) {
      Vector<A> total{};
#pragma GCC unroll 7
      for (int64_t t = 0; t < terms; ++t) {
        const Vector<A> w = fixed ? broadcasts[fixed ? t : 0] : broadcast(taps[t]);
        const Vector<A> product = w * load(phase[t % Stride] + o + t / Stride);
        total = t == 0 ? product : total + product;
      }
      return total;
    };
    int64_t o = begin;
    for (; o + lanes<A> <= end; o += lanes<A>) store(out + o, sum(o));
    if (o < end) store(out + o, sum(o), end - o);
  });
}

template <class O, class A>
inline void store_split(O* p, Pair<A> even_odd) {
  if constexpr (loads_split<O>) {
    auto round = [](Vector<A> v) {
      const Words bits = bit_cast<Words>(v);
      return v != v ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
    };
    const Words words = round(even_odd.first) >> 16 | (round(even_odd.second) & 0xffff0000u);
    std::memcpy(p, &words, sizeof words);
  } else {
    const Pair<A> pair = interleave<A>(even_odd);
    store(p, pair.first);
    store(p + lanes<A>, pair.second);
  }
}

// The transpose: out[i] = sum_o taps[i + before - o * Stride] * v[o] for begin <= i < end, o in reach.
// Reads v up to a vector past what [begin, end) needs on either side.
template <int Stride, class O, class A>
inline void spread(const A* v, const A* taps, int64_t count, int64_t before, int64_t begin, int64_t end, O* out) {
  with_count(count, [&](auto constant) {
    constexpr int fixed = decltype(constant)::value;
    const int64_t terms = fixed ? fixed : count;
    // Sum for lane l: the taps congruent to `position` reach v[position / Stride + l - t / Stride].
    auto sum = [&](int64_t position) {
      const int64_t first = modulo(position, Stride);
      const A* source = v + floor_div(position, Stride);
      Vector<A> total{};
#pragma GCC unroll 7
      for (int64_t m = 0; m < (terms + Stride - 1) / Stride; ++m) {
        const int64_t t = m * Stride + first;
        if (t < terms) total = total + broadcast(taps[t]) * load(source - m);
      }
      return total;
    };
    if constexpr (Stride == 1) {
      int64_t i = begin;
      for (; i + lanes<A> <= end; i += lanes<A>) store(out + i, sum(i + before));
      if (i < end) store(out + i, sum(i + before), end - i);
    } else {
      int64_t i = begin;
      for (; i + 2 * lanes<A> <= end; i += 2 * lanes<A>)
        store_split(out + i, Pair<A>{sum(i + before), sum(i + 1 + before)});
      if (i < end) {
        O padded[2 * lanes<A>];
        store_split(padded, Pair<A>{sum(i + before), sum(i + 1 + before)});
        const int64_t low = end - i < lanes<A> ? end - i : lanes<A>;
        if (low == lanes<A>) std::memcpy(out + i, padded, sizeof(O) * lanes<A>);
        else store(out + i, load(padded), low);
        if (end - i > lanes<A>) store(out + i + lanes<A>, load(padded + lanes<A>), end - i - lanes<A>);
      }
    }
  });
}

// ---- the max and its codes -----------------------------------------------------------------------

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
