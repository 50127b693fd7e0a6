// The running argmax: maxima of the elements seen so far, and the codes of where in the window they lay.
//
//   registers: candidates, in the window's order --take(candidate, code)--> registers: maxima, fields of codes
//              fields of a tile's row -----------codes()------------------> global: whole bytes of packed codes
//
// The first of equals wins and NaN stays, so that the order of candidates decides and nothing else. Halves go by twos:
// a packed comparison, whose mask chooses both value and code. Where codes lie in memory, core/argmax.h says.
#pragma once

#include "gpu/tile.h"

namespace aablur::gpu {

// A word with a field of Bits for each of V lanes.
template <int V, int Bits>
using Fields = std::conditional_t<(V * Bits > 32), uint64_t, uint32_t>;

// The same code in each field.
template <int V, int Bits>
AABLUR_HOST_DEVICE constexpr Fields<V, Bits> repeated(uint32_t code) {
  Fields<V, Bits> word = 0;
  for (int l = 0; l < V; ++l) word |= Fields<V, Bits>(code) << (l * Bits);
  return word;
}

// Maxima of V lanes so far, and their codes.
template <class T, int V, int Bits, bool WithCodes>
class ScalarArgmax {
 public:
  using Codes = Fields<V, Bits>;

  AABLUR_HOST_DEVICE void start(const Pixel<T, V>& first, uint32_t code = 0) {
    AABLUR_UNROLL
    for (int l = 0; l < V; ++l) value_[l] = widen(first.element[l]);
    codes_ = Codes(code) * repeated<V, Bits>(1);
  }
  // A candidate, which has one code in all lanes.
  AABLUR_HOST_DEVICE void take(const Pixel<T, V>& candidate, uint32_t code) {
    float value[V];
    AABLUR_UNROLL
    for (int l = 0; l < V; ++l) value[l] = widen(candidate.element[l]);
    take(value, repeated<V, Bits>(code));
  }
  // Another's maxima, whose codes count from `code`.
  AABLUR_HOST_DEVICE void take(const ScalarArgmax& other, uint32_t code) {
    take(other.value_, other.codes_ + repeated<V, Bits>(code));
  }

  AABLUR_HOST_DEVICE float value(int l) const { return value_[l]; }
  // A field of Bits a lane.
  AABLUR_HOST_DEVICE Codes codes() const { return codes_; }
  // Maxima, or zeros: all bits of `mask`, or none; or those of each word of elements.
  AABLUR_HOST_DEVICE void keep(uint32_t mask) {
    AABLUR_UNROLL
    for (int l = 0; l < V; ++l) value_[l] = bit_cast<float>(bit_cast<uint32_t>(value_[l]) & mask);
  }
  template <int Words>
  AABLUR_HOST_DEVICE void keep(const uint32_t (&mask)[Words]) {
    constexpr int halves = V / Words;
    AABLUR_UNROLL
    for (int l = 0; l < V; ++l) {
      const uint32_t half = halves == 1 ? mask[l] : mask[l / halves] >> (16 * (l % halves)) & 0xffff;
      value_[l] = half ? value_[l] : 0;
    }
  }

 private:
  AABLUR_HOST_DEVICE void take(const float (&candidate)[V], Codes candidate_codes) {
    constexpr Codes field = (1u << Bits) - 1;
    Codes replaced = 0;
    AABLUR_UNROLL
    for (int l = 0; l < V; ++l) {
      const bool replaces = Max::replaces(candidate[l], value_[l]);
      value_[l] = replaces ? candidate[l] : value_[l];
      if (WithCodes && replaces) replaced |= field << (l * Bits);
    }
    if (WithCodes) codes_ = (codes_ & ~replaced) | (candidate_codes & replaced);
  }

  float value_[V];
  Codes codes_;
};

// Where a GPU has no instructions for pairs of halves, each is compared as a float.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define AABLUR_HALVES_BY_TWOS true
#else
#define AABLUR_HALVES_BY_TWOS false
#endif

// The larger of two halves, twice; a NaN if either is one.
template <class T>
AABLUR_HOST_DEVICE inline uint32_t larger_pair(uint32_t a, uint32_t b) {
  uint32_t larger = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (std::is_same_v<T, bfloat16>) asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
  else asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
#else
  for (int half = 0; half < 32; half += 16) {
    const uint16_t first = uint16_t(a >> half), second = uint16_t(b >> half);
    const float x = widen(bit_cast<T>(first)), y = widen(bit_cast<T>(second));
    const uint16_t chosen = x != x || y != y ? 0x7fff : y > x ? second : first;
    larger |= uint32_t(chosen) << half;
  }
#endif
  return larger;
}

// All ones in each half of two where Max::replaces(candidate, best) because it is greater, or a NaN: never both.
struct Replaced {
  uint32_t greater = 0, nan = 0;
};
template <class T>
AABLUR_HOST_DEVICE inline Replaced replaced_pair(uint32_t candidate, uint32_t best) {
  Replaced mask;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (std::is_same_v<T, bfloat16>) {
    asm("set.gt.u32.bf16x2 %0, %1, %2;" : "=r"(mask.greater) : "r"(candidate), "r"(best));
    asm("set.nan.u32.bf16x2 %0, %1, %1;" : "=r"(mask.nan) : "r"(candidate));
  } else {
    asm("set.gt.u32.f16x2 %0, %1, %2;" : "=r"(mask.greater) : "r"(candidate), "r"(best));
    asm("set.nan.u32.f16x2 %0, %1, %1;" : "=r"(mask.nan) : "r"(candidate));
  }
#else
  for (int half = 0; half < 32; half += 16) {
    const float value = widen(bit_cast<T>(uint16_t(candidate >> half)));
    if (!Max::replaces(value, widen(bit_cast<T>(uint16_t(best >> half))))) continue;
    (value == value ? mask.greater : mask.nan) |= 0xffffu << half;
  }
#endif
  return mask;
}

// The same of halves, compared two at a time as they lie in memory. A word has the codes of 16 / Bits lanes: of even
// ones in its lower half, of odd ones in its upper half, each with the room of two.
template <class T, int V, int Bits, bool WithCodes>
class PackedArgmax {
  static constexpr int pairs = V / 2, group = 16 / Bits, words = (V + group - 1) / group;
  static_assert(V % 2 == 0);

 public:
  using Codes = Fields<V, Bits>;

  AABLUR_HOST_DEVICE void start(const Pixel<T, V>& first, uint32_t code = 0) {
    const Pairs candidate = bit_cast<Pairs>(first);
    AABLUR_UNROLL
    for (int w = 0; w < pairs; ++w) value_[w] = candidate.pair[w];
    AABLUR_UNROLL
    for (int i = 0; i < words; ++i) codes_[i] = code * in_both_halves(repeated<group / 2, 2 * Bits>(1));
  }
  AABLUR_HOST_DEVICE void take(const Pixel<T, V>& candidate, uint32_t code) {
    uint32_t codes[words];
    AABLUR_UNROLL
    for (int i = 0; i < words; ++i) codes[i] = in_both_halves(repeated<group / 2, 2 * Bits>(code));
    take(bit_cast<Pairs>(candidate).pair, codes);
  }
  AABLUR_HOST_DEVICE void take(const PackedArgmax& other, uint32_t code) {
    uint32_t codes[words];
    AABLUR_UNROLL
    for (int i = 0; i < words; ++i) codes[i] = other.codes_[i] + in_both_halves(repeated<group / 2, 2 * Bits>(code));
    take(other.value_, codes);
  }
  AABLUR_HOST_DEVICE float value(int l) const { return widen(bit_cast<T>(uint16_t(value_[l / 2] >> (l % 2 * 16)))); }
  AABLUR_HOST_DEVICE Codes codes() const {
    Codes all = 0;
    AABLUR_UNROLL
    for (int i = 0; i < words; ++i) all |= Codes((codes_[i] | codes_[i] >> (16 - Bits)) & 0xffff) << (i * 16);
    return all;
  }
  AABLUR_HOST_DEVICE void keep(uint32_t mask) {
    AABLUR_UNROLL
    for (int w = 0; w < pairs; ++w) value_[w] &= mask;
  }
  AABLUR_HOST_DEVICE void keep(const uint32_t (&mask)[pairs]) {
    AABLUR_UNROLL
    for (int w = 0; w < pairs; ++w) value_[w] &= mask[w];
  }

 private:
  struct Pairs {
    uint32_t pair[pairs];
  };
  AABLUR_HOST_DEVICE static constexpr uint32_t in_both_halves(uint32_t low) { return low | low << 16; }

  // The fields of replaced lanes are added up by multiplications, too: of -1, a half that is all ones, a field's
  // negative makes the field. What the lower half borrows of the upper one is given back in the end.
  AABLUR_HOST_DEVICE void take(const uint32_t (&candidate)[pairs], const uint32_t (&codes)[words]) {
    constexpr uint32_t field = (1u << Bits) - 1;
    uint32_t replaced[words] = {};
    AABLUR_UNROLL
    for (int w = 0; w < pairs; ++w) {
      if (WithCodes) {
        const Replaced mask = replaced_pair<T>(candidate[w], value_[w]);
        const uint32_t negative = 0 - (field << (w % (group / 2) * 2 * Bits));
        uint32_t& all = replaced[w * 2 / group];
        all = mask.nan * negative + (mask.greater * negative + all);
      }
      value_[w] = larger_pair<T>(value_[w], candidate[w]);
    }
    AABLUR_UNROLL
    for (int i = 0; i < words; ++i) {
      if (!WithCodes) continue;
      replaced[i] *= 0x10001;
      codes_[i] = (codes_[i] & ~replaced[i]) | (codes[i] & replaced[i]);
    }
  }

  uint32_t value_[pairs], codes_[words];
};

template <class T, int V, int Bits, bool WithCodes>
using RunningArgmax = std::conditional_t<AABLUR_HALVES_BY_TWOS && sizeof(T) == 2, PackedArgmax<T, V, Bits, WithCodes>,
                                         ScalarArgmax<T, V, Bits, WithCodes>>;

// Maxima over windows of 2 or 3 rows, one window below the other. Two such share the maximum of all rows but their
// first and last: of each pair, the first leaves it for the second.
template <class Argmax, int Window>
class RollingMaxima {
 public:
  // Of the first Window - 1 rows; is_second says whether the next window is the second of a pair.
  AABLUR_HOST_DEVICE void start(const Argmax (&rows)[Window - 1], bool is_second) {
    middle_ = rows[0];
    last_ = rows[Window - 2];
    if (Window == 3 && is_second) middle_.take(last_, uint32_t(Window));
  }
  // Of the next row, which is the last of its window.
  AABLUR_HOST_DEVICE Argmax next(const Argmax& row, bool is_second) {
    Argmax maxima;
    if constexpr (Window == 2) {
      maxima = last_;
      maxima.take(row, uint32_t(Window));
    } else {
      maxima = middle_;
      middle_ = last_;
      if (is_second) {
        maxima.take(row, uint32_t(2 * Window));
      } else {
        middle_.take(row, uint32_t(Window));
        maxima.take(middle_, uint32_t(Window));
      }
    }
    last_ = row;
    return maxima;
  }

 private:
  Argmax last_, middle_;
};

}  // namespace aablur::gpu
