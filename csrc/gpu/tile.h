// What the tile kernels are made of: where maps lie, pixels, and segments of rows read into registers.
//
// A pixel is V neighbouring elements: 16 bytes of channels (channels_last), or one element. Threads go over the lanes
// of a pixel first, then along the width, so that a warp reads whole lines.
#pragma once

#include "gpu/generic.h"

namespace aablur::gpu {

// n / d and n % d for n < 2**31, by a multiplication.
class Divisor {
 public:
  Divisor() = default;
  explicit Divisor(uint32_t d) : d_(d) {
    while ((uint64_t(1) << shift_) < d) ++shift_;
    magic_ = uint32_t((((uint64_t(1) << shift_) - d) << 32) / d + 1);
  }
  // Divides n; returns the rest.
  AABLUR_HOST_DEVICE uint32_t split(uint32_t& n) const {
    const uint32_t high = uint32_t((uint64_t(n) * magic_) >> 32), quotient = (high + n) >> shift_,
                   rest = n - quotient * d_;
    n = quotient;
    return rest;
  }
  AABLUR_HOST_DEVICE uint32_t value() const { return d_; }

 private:
  uint32_t d_ = 1, magic_ = 1, shift_ = 0;
};

// ---- pixels --------------------------------------------------------------------------------------

// V elements as they lie in memory: at once, where V is a power of two.
template <class T, int V>
struct alignas(V&(V - 1) ? sizeof(T) : sizeof(T) * V) Pixel {
  T element[V];
};

template <class P>
AABLUR_HOST_DEVICE inline P load(const void* p) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(P) == 1) return bit_cast<P>(__ldg(static_cast<const unsigned char*>(p)));
  if constexpr (sizeof(P) == 16) return bit_cast<P>(__ldg(static_cast<const uint4*>(p)));
  if constexpr (sizeof(P) == 8) return bit_cast<P>(__ldg(static_cast<const uint2*>(p)));
  if constexpr (sizeof(P) == 4) return bit_cast<P>(__ldg(static_cast<const unsigned*>(p)));
  if constexpr (sizeof(P) == 2) return bit_cast<P>(__ldg(static_cast<const unsigned short*>(p)));
#else
  return *static_cast<const P*>(p);
#endif
}

// The low bytes of a word.
template <class P>
AABLUR_HOST_DEVICE inline P truncated(uint32_t word) {
  P pixel;
  AABLUR_UNROLL
  for (int i = 0; i < int(sizeof(P)); ++i) pixel.element[i] = uint8_t(word >> (8 * i));
  return pixel;
}

template <class T>
AABLUR_HOST_DEVICE inline uint32_t rounded_pair(float low, float high) {
  uint32_t word = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, bfloat16>) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  else asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
#else
  word = bit_cast<uint16_t>(narrow<T>(low)) | uint32_t(bit_cast<uint16_t>(narrow<T>(high))) << 16;
#endif
  return word;
}

// Elements rounded from their accumulators; two halves at a time where the GPU can.
template <class T, int V>
AABLUR_HOST_DEVICE inline Pixel<T, V> rounded(const float (&value)[V]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  constexpr bool by_twos = sizeof(T) == 2 && V % 2 == 0;
#else
  constexpr bool by_twos = false;
#endif
  if constexpr (by_twos) {
    uint32_t words[V / 2];
    AABLUR_UNROLL
    for (int i = 0; i < V / 2; ++i) words[i] = rounded_pair<T>(value[2 * i], value[2 * i + 1]);
    return bit_cast<Pixel<T, V>>(words);
  } else {
    Pixel<T, V> pixel;
    AABLUR_UNROLL
    for (int i = 0; i < V; ++i) pixel.element[i] = narrow<T>(value[i]);
    return pixel;
  }
}

// Keeps a value in a register: the compiler would make it anew in every turn of a loop.
AABLUR_HOST_DEVICE inline void pin([[maybe_unused]] uint32_t& value) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(value));
#endif
}

// Four bytes of (high, low), which the selector's lowest four digits name.
AABLUR_HOST_DEVICE inline uint32_t permuted(uint32_t low, uint32_t high, uint32_t selector) {
#if defined(__CUDA_ARCH__)
  return __byte_perm(low, high, selector);
#else
  uint32_t bytes = 0;
  for (int i = 0; i < 4; ++i)
    bytes |= uint32_t((uint64_t(high) << 32 | low) >> (selector >> (4 * i) & 7) * 8 & 0xff) << (8 * i);
  return bytes;
#endif
}
// 32 bits of (high, low), from bit `bit` % 32 on.
AABLUR_HOST_DEVICE inline uint32_t bits_from(uint32_t low, uint32_t high, uint32_t bit) {
#if defined(__CUDA_ARCH__)
  return __funnelshift_r(low, high, bit);
#else
  return uint32_t((uint64_t(high) << 32 | low) >> (bit & 31));
#endif
}

// ---- what a tile is ------------------------------------------------------------------------------

// How the result is cut, and where source and result lie, in elements.
struct Tiling {
  Axis height, width;
  Divisor lanes, columns, rows, planes;  // pixels' lanes over V, tiles along a row and down a plane, planes an image
  int64_t source_image = 0, source_plane = 0, result_image = 0, result_plane = 0;
  int source_row = 0, source_pixel = 0, result_row = 0, result_pixel = 0;
  int source_height = 0, source_width = 0, result_height = 0, result_width = 0;
  const float* taps = nullptr;  // height's, then width's; null for binomials
  Codes codes;
  uint32_t planes_an_image = 1;      // of codes
  int code_row = 0, code_pixel = 0;  // bytes from row to row, and from pixel to pixel where channels lie last

  int64_t threads(int64_t images) const {
    return images * planes.value() * rows.value() * columns.value() * lanes.value();
  }
};

// The tile of thread i: its first row and column in tiles, its plane, and where its lane begins.
struct Tile {
  int row, column, lane;
  uint32_t plane, image;

  AABLUR_HOST_DEVICE Tile(const Tiling& tiling, uint32_t i) {
    lane = int(tiling.lanes.split(i));
    column = int(tiling.columns.split(i));
    row = int(tiling.rows.split(i));
    plane = tiling.planes.split(i);
    image = i;
  }
};

template <int K>
struct TileTaps {
  float height[K], width[K];

  AABLUR_HOST_DEVICE explicit TileTaps(const float* taps) {
    AABLUR_UNROLL
    for (int t = 0; t < K; ++t) {
      constexpr float row[4][5] = {
          {.5f, .5f}, {.25f, .5f, .25f}, {.125f, .375f, .375f, .125f}, {.0625f, .25f, .375f, .25f, .0625f}};
      height[t] = taps ? taps[t] : row[K - 2][t];
      width[t] = taps ? taps[K + t] : row[K - 2][t];
    }
  }
};

// N pixels of a source row from column `first`, as accumulators.
template <class T, int V, int N>
struct Segment {
  // Where each pixel is read, from the border's rules; `outside` for zeros.
  struct Columns {
    int at[N];
  };

  // Inside: pixel j lies at column first + j. As accumulators, or as they lie in memory.
  template <class Value>
  AABLUR_HOST_DEVICE static void read(const T* row, int first, int pixel, Value& value) {
    read(row, pixel, value, [&](int j) { return first + j; });
  }
  // Near a border.
  AABLUR_HOST_DEVICE static void read(const T* row, const Columns& columns, bool there, int pixel,
                                      float (&value)[N][V]) {
    read(row, pixel, value, [&](int j) { return there ? columns.at[j] : int(outside); });
  }

 private:
  template <class At>
  AABLUR_HOST_DEVICE static void read(const T* row, int pixel, float (&value)[N][V], At&& at) {
    Pixel<T, V> raw[N];
    read(row, pixel, raw, at);
    AABLUR_UNROLL
    for (int j = 0; j < N; ++j) AABLUR_UNROLL
    for (int l = 0; l < V; ++l) value[j][l] = widen(raw[j].element[l]);
  }
  template <class At>
  AABLUR_HOST_DEVICE static void read(const T* row, int pixel, Pixel<T, V> (&value)[N], At&& at) {
    AABLUR_UNROLL
    for (int j = 0; j < N; ++j) {
      const int column = at(j);
      value[j] = column == outside ? Pixel<T, V>{} : load<Pixel<T, V>>(row + column * pixel);
    }
  }
};

// Writes row y of a tile of the result, as soon as it is done; at a border, what there is of it.
template <class T, int V, int X, int Y, bool Border>
AABLUR_HOST_DEVICE inline void store_row(const Tiling& tiling, const Tile& tile, int y, T* out,
                                         const float (&value)[X][V]) {
  const int top = tile.row * Y, left = tile.column * X;
  if (Border && top + y >= tiling.result_height) return;
  T* row = out + tile.image * tiling.result_image + tile.plane * tiling.result_plane + tile.lane * V +
           (top + y) * tiling.result_row;
  AABLUR_UNROLL
  for (int x = 0; x < X; ++x)
    if (!Border || left + x < tiling.result_width)
      *reinterpret_cast<Pixel<T, V>*>(row + (left + x) * tiling.result_pixel) = rounded<T, V>(value[x]);
}

}  // namespace aablur::gpu
