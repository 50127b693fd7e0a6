// The max of tiles: pixels' maxima so far with the codes of where they lay, and where codes lie in memory.
#pragma once

#include "gpu_pixels.h"

namespace aablur::gpu {

// The same code in a field of Bits for each lane.
template <int V, int Bits>
AABLUR_HOST_DEVICE constexpr uint32_t repeated(uint32_t code) {
  uint32_t word = 0;
  for (int l = 0; l < V; ++l) word |= code << (l * Bits);
  return word;
}

// Maxima of a pixel so far, and their codes.
template <class T, int V, int Bits, bool WithCodes>
class Best {
 public:
  static constexpr uint32_t field = (1u << Bits) - 1;

  AABLUR_HOST_DEVICE void start(const Pixel<T, V>& first) {
    AABLUR_UNROLL
    for (int l = 0; l < V; ++l) value_[l] = widen(first.element[l]);
    codes_ = 0;
  }
  // A candidate, which has one code in all lanes.
  AABLUR_HOST_DEVICE void take(const Pixel<T, V>& candidate, uint32_t code) {
    float value[V];
    AABLUR_UNROLL
    for (int l = 0; l < V; ++l) value[l] = widen(candidate.element[l]);
    take(value, repeated<V, Bits>(code));
  }
  // Another's maxima, whose codes count from `code`.
  AABLUR_HOST_DEVICE void take(const Best& other, uint32_t code) {
    take(other.value_, other.codes_ + repeated<V, Bits>(code));
  }

  AABLUR_HOST_DEVICE float value(int l) const { return value_[l]; }
  AABLUR_HOST_DEVICE Pixel<T, V> pixel() const { return rounded<T, V>(value_); }
  // A field of Bits a lane.
  AABLUR_HOST_DEVICE uint32_t codes() const { return codes_; }
  AABLUR_HOST_DEVICE uint8_t code(int l) const { return uint8_t(codes_ >> (l * Bits) & field); }

 private:
  AABLUR_HOST_DEVICE void take(const float (&candidate)[V], uint32_t candidate_codes) {
    uint32_t replaced = 0;
    AABLUR_UNROLL
    for (int l = 0; l < V; ++l) {
      const bool replaces = Max::replaces(candidate[l], value_[l]);
      value_[l] = replaces ? candidate[l] : value_[l];
      if (WithCodes && replaces) replaced |= field << (l * Bits);
    }
    if (WithCodes) codes_ = (codes_ & ~replaced) | (candidate_codes & replaced);
  }

  float value_[V];
  uint32_t codes_;
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

// All ones in each half where Max::replaces(candidate, best).
template <class T>
AABLUR_HOST_DEVICE inline uint32_t replaced_pair(uint32_t candidate, uint32_t best) {
  uint32_t mask = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  uint32_t nan;
  if constexpr (std::is_same_v<T, bfloat16>) {
    asm("set.gt.u32.bf16x2 %0, %1, %2;" : "=r"(mask) : "r"(candidate), "r"(best));
    asm("set.nan.u32.bf16x2 %0, %1, %1;" : "=r"(nan) : "r"(candidate));
  } else {
    asm("set.gt.u32.f16x2 %0, %1, %2;" : "=r"(mask) : "r"(candidate), "r"(best));
    asm("set.nan.u32.f16x2 %0, %1, %1;" : "=r"(nan) : "r"(candidate));
  }
  mask |= nan;
#else
  for (int half = 0; half < 32; half += 16)
    if (Max::replaces(widen(bit_cast<T>(uint16_t(candidate >> half))), widen(bit_cast<T>(uint16_t(best >> half)))))
      mask |= 0xffffu << half;
#endif
  return mask;
}

// The same of halves, compared two at a time as they lie in memory; a code has 16 bits until it is asked for.
template <class T, int V, int Bits, bool WithCodes>
class BestOfHalves {
 public:
  AABLUR_HOST_DEVICE void start(const Pixel<T, V>& first) {
    const Words words = bit_cast<Words>(first);
    AABLUR_UNROLL
    for (int w = 0; w < V / 2; ++w) value_[w] = words.word[w], codes_[w] = 0;
  }
  AABLUR_HOST_DEVICE void take(const Pixel<T, V>& candidate, uint32_t code) {
    const Words words = bit_cast<Words>(candidate);
    AABLUR_UNROLL
    for (int w = 0; w < V / 2; ++w) take(w, words.word[w], code * 0x10001);
  }
  AABLUR_HOST_DEVICE void take(const BestOfHalves& other, uint32_t code) {
    AABLUR_UNROLL
    for (int w = 0; w < V / 2; ++w) take(w, other.value_[w], other.codes_[w] + code * 0x10001);
  }
  AABLUR_HOST_DEVICE Pixel<T, V> pixel() const { return bit_cast<Pixel<T, V>>(value_); }
  AABLUR_HOST_DEVICE float value(int l) const { return widen(bit_cast<T>(uint16_t(value_[l / 2] >> (l % 2 * 16)))); }
  AABLUR_HOST_DEVICE uint8_t code(int l) const { return uint8_t(codes_[l / 2] >> (l % 2 * 16)); }
  AABLUR_HOST_DEVICE uint32_t codes() const {
    constexpr int group = 16 / Bits;  // lanes whose codes fit 16 bits
    uint32_t all = 0;
    AABLUR_UNROLL
    for (int first = 0; first < V; first += group) {
      uint32_t spread = 0;  // even lanes below, odd lanes above, each with the room of two codes
      AABLUR_UNROLL
      for (int w = first / 2; w < (first + group) / 2 && w < V / 2; ++w)
        spread |= codes_[w] << ((w - first / 2) * 2 * Bits);
      all |= ((spread | spread >> (16 - Bits)) & 0xffff) << (first * Bits);
    }
    return all;
  }

 private:
  struct Words {
    uint32_t word[V / 2];
  };
  AABLUR_HOST_DEVICE void take(int w, uint32_t candidate, uint32_t code) {
    if (WithCodes) {
      const uint32_t replaced = replaced_pair<T>(candidate, value_[w]);
      codes_[w] = (codes_[w] & ~replaced) | (code & replaced);
    }
    value_[w] = larger_pair<T>(value_[w], candidate);
  }

  uint32_t value_[V / 2], codes_[V / 2];
};

// The first of a plane's codes.
AABLUR_HOST_DEVICE inline uint8_t* codes_of(const Tiling& tiling, const Tile& tile) {
  return tiling.codes.data + (int64_t(tile.image) * tiling.planes_an_image + tile.plane) * tiling.codes.plane_bytes;
}
// Where the codes of a pixel of V lanes lie, whole bytes, at pooled position (p, q).
template <int V, int Bits>
AABLUR_HOST_DEVICE inline int64_t code_byte(const Tiling& tiling, const Tile& tile, int p, int q) {
  constexpr int per_byte = 8 / Bits;
  const int row = tiling.code_row / per_byte, pixel = tiling.code_pixel / per_byte;
  return int64_t(p) * row + int64_t(q) * pixel + tile.lane * (V / per_byte);
}

}  // namespace aablur::gpu
