// The arithmetic of rows: weighted sums across rows, and the blur or its transpose along one.
#pragma once

#include <algorithm>

#include "core/static_switch.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace aablur::AABLUR_ISA {

// Calls f with a number of taps or rows as a constant, 0 for `read it at run time`.
template <class F>
inline void with_count(int64_t count, F&& f) {
  static_switch<1, 2, 3, 4, 5, 6, 7, 0>(count, f);
}

template <class A>
inline Vector<A> broadcast(A value) {
  return Vector<A>{} + value;
}

// The first n elements as accumulators.
template <class T, class A = accumulator<T>>
inline void widen_row(const T* from, int64_t n, A* to) {
  int64_t i = 0;
  for (; i + lanes<A> <= n; i += lanes<A>) store(to + i, load(from + i));
  if (i < n) store(to + i, load(from + i, n - i), n - i);
}

// ---- across rows ---------------------------------------------------------------------------------

// out[i] = sum_r weights[r] * rows[r][offset + i] for i < n; weights[r] is a scalar, or a pointer to a row.
template <class T, class W, class O, class A = accumulator<T>>
inline void weighted_sum(const T* const* rows, int64_t offset, const W* weights, int64_t count, int64_t n, O* out) {
  constexpr bool PerLane = std::is_pointer_v<W>;
  with_count(count, [&](auto constant) {
    constexpr int fixed = decltype(constant)::value;
    const int64_t terms = fixed ? fixed : count;
    Vector<A> broadcasts[fixed ? fixed : 1];
    if constexpr (!PerLane && fixed != 0) {
      for (int r = 0; r < fixed; ++r) broadcasts[r] = broadcast(weights[r]);
    }
    auto sum = [&](int64_t i, auto... partial) {
      Vector<A> total{};
#pragma GCC unroll 7
      for (int64_t r = 0; r < terms; ++r) {
        Vector<A> w;
        if constexpr (PerLane) w = load(weights[r] + i, partial...);
        else if constexpr (fixed != 0) w = broadcasts[r];
        else w = broadcast(weights[r]);
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
inline void weighted_sum_split(const T* const* rows, const A* weights, int64_t count, int64_t n, A* even, A* odd) {
  with_count(count, [&](auto constant) {
    constexpr int fixed = decltype(constant)::value;
    const int64_t terms = fixed ? fixed : count;
    Vector<A> broadcasts[fixed ? fixed : 1];
    if constexpr (fixed != 0) {
      for (int r = 0; r < fixed; ++r) broadcasts[r] = broadcast(weights[r]);
    }
    auto sum = [&](int64_t i, auto... partial) {
      Pair<A> total{};
#pragma GCC unroll 7
      for (int64_t r = 0; r < terms; ++r) {
        const Vector<A> w = fixed ? broadcasts[fixed ? r : 0] : broadcast(weights[r]);
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
inline void correlate(const A* const (&phase)[Stride], const A* taps, int64_t count, int64_t begin, int64_t end,
                      O* out) {
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

// The same for pixels of `tile` lanes, a `step` apart for neighbouring outputs and `pixel` apart in out:
// out[o * pixel + c] = sum_t taps[t] * source[o * step + t * tile + c].
template <class O, class A>
inline void correlate_pixels(const A* source, int64_t step, int64_t tile, const A* taps, int64_t count, int64_t outputs,
                             O* out, int64_t pixel) {
  with_count(count, [&](auto constant) {
    constexpr int fixed = decltype(constant)::value;
    const int64_t terms = fixed ? fixed : count;
    Vector<A> broadcasts[fixed ? fixed : 1];
    for (int t = 0; t < fixed; ++t) broadcasts[t] = broadcast(taps[t]);
    for (int64_t o = 0; o < outputs; ++o) {
      const A* first = source + o * step;
      O* to = out + o * pixel;
      for (int64_t c = 0; c < tile; c += lanes<A>) {
        Vector<A> total{};
#pragma GCC unroll 7
        for (int64_t t = 0; t < terms; ++t) {
          const Vector<A> w = fixed ? broadcasts[fixed ? t : 0] : broadcast(taps[t]);
          const Vector<A> product = w * load(first + t * tile + c);  // the row has room for whole vectors
          total = t == 0 ? product : total + product;
        }
        if (c + lanes<A> <= tile) store(to + c, total);
        else store(to + c, total, tile - c);
      }
    }
  });
}

// What correlate_pixels(row sum) gives, with the row sum of a pixel made when the first output asks for it and kept for
// the others, in `columns` (taps - Stride pixels): a row of it would not stay in the nearest cache. Taps are 2 to 7.
template <int Stride, class T, class A>
inline void roll_pixels(const T* const* rows, const A* weights, int64_t row_count, int64_t step, int64_t tile,
                        const A* taps, int64_t tap_count, int64_t outputs, A* columns, T* out, int64_t pixel) {
  constexpr int64_t ahead =
      1024 / sizeof(T);  // of the rows' reading: what the caches fetch by themselves comes too late
  constexpr int64_t both = 2 * lanes<A>;
  with_count(tap_count, [&](auto constant) {
    constexpr int fixed = decltype(constant)::value, kept = fixed > Stride ? fixed - Stride : 0;
    if constexpr (fixed > 1) {
      auto roll = [&](auto same) {
        constexpr int fixed_rows = decltype(same)::value ? fixed : 0;
        const int64_t terms = fixed_rows ? fixed_rows : row_count;
        Vector<A> weigh[fixed_rows ? fixed_rows : 1], correlate[fixed];
        for (int r = 0; r < fixed_rows; ++r) weigh[r] = broadcast(weights[r]);
        for (int t = 0; t < fixed; ++t) correlate[t] = broadcast(taps[t]);
        auto sum = [&](int64_t at, auto... partial) {
          Pair<A> total{};
#pragma GCC unroll 7
          for (int64_t r = 0; r < terms; ++r) {
            const Vector<A> w = fixed_rows ? weigh[fixed_rows ? r : 0] : broadcast(weights[r]);
            const Pair<A> row = load_pair(rows[r] + at, partial...);
            total = r == 0 ? Pair<A>{w * row.first, w * row.second}
                           : Pair<A>{total.first + w * row.first, total.second + w * row.second};
          }
          return total;
        };
        auto keep = [](A* p, Pair<A> v) {
          store(p, v.first);
          store(p + lanes<A>, v.second);
        };
        auto each_pair = [&](auto&& f) {  // f(lane), or f(lane, how many where they are fewer than a pair's)
          int64_t c = 0;
          for (; c + both <= tile; c += both) f(c);
          if (c < tile) f(c, tile - c);
        };
        const int64_t room = ceil_div(tile, both) * both;
        A* column[fixed];
        for (int t = 0; t < fixed; ++t) column[t] = columns + t * room;
        for (int t = 0; t < kept; ++t)
          each_pair([&](int64_t c, auto... partial) { keep(column[t] + c, sum(t * step + c, partial...)); });
        for (int64_t o = 0; o < outputs; ++o) {
          const int64_t first = o * Stride * step;
          T* to = out + o * pixel;
          each_pair([&](int64_t c, auto... partial) {
            if constexpr (sizeof...(partial) == 0) {
              for (int64_t r = 0; r < terms; ++r)
                for (int64_t at = 0; at < Stride * both; at += 64 / int64_t(sizeof(T)))
                  __builtin_prefetch(rows[r] + first + kept * step + Stride * c + ahead + at);
            }
            Pair<A> total{};
#pragma GCC unroll 7
            for (int t = 0; t < fixed; ++t) {
              Pair<A> v;
              if (t < kept) {
                v = {load(column[t] + c), load(column[t] + c + lanes<A>)};
              } else {
                v = sum(first + t * step + c, partial...);
                if (t >= Stride) keep(column[t] + c, v);
              }
              total = t == 0 ? Pair<A>{correlate[t] * v.first, correlate[t] * v.second}
                             : Pair<A>{total.first + correlate[t] * v.first, total.second + correlate[t] * v.second};
            }
            store_pair(to + c, total, partial...);
          });
          std::rotate(column, column + Stride % fixed, column + fixed);
        }
      };
      if (row_count == fixed) roll(std::true_type{});
      else roll(std::false_type{});
    }
  });
}

template <class O, class A>
inline void store_split(O* p, Pair<A> even_odd) {
  store_pair(p, loads_split<O> ? even_odd : interleave<A>(even_odd));
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

}  // namespace aablur::AABLUR_ISA
