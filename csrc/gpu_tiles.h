// The fast GPU kernels, of 2-D maps with "same" padding before: a thread owns a tile of the result, reads what it needs
// of the source once into registers, and leaves what neighbours share to the first-level cache. No shared memory, no
// shuffles, no atomics: each is a functor of the thread's number, as in gpu_points.h.
//
// A pixel is V neighbouring elements: 16 bytes of channels (channels_last), or one element. Threads go over the lanes
// of a pixel first, then along the width, so that a warp reads whole lines.
#pragma once

#include "gpu_points.h"

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
  uint32_t value() const { return d_; }

 private:
  uint32_t d_ = 1, magic_ = 1, shift_ = 0;
};

// ---- pixels --------------------------------------------------------------------------------------

// V elements as they lie in memory.
template <class T, int V>
struct alignas(sizeof(T) * V) Pixel {
  T element[V];
};

template <class P>
AABLUR_HOST_DEVICE inline P load(const void* p) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(P) == 16) return bit_cast<P>(__ldg(static_cast<const uint4*>(p)));
  if constexpr (sizeof(P) == 8) return bit_cast<P>(__ldg(static_cast<const uint2*>(p)));
  if constexpr (sizeof(P) == 4) return bit_cast<P>(__ldg(static_cast<const unsigned*>(p)));
  if constexpr (sizeof(P) == 2) return bit_cast<P>(__ldg(static_cast<const unsigned short*>(p)));
#else
  return *static_cast<const P*>(p);
#endif
}

// Elements rounded from their accumulators; two halves at a time where the GPU can.
template <class T, int V>
AABLUR_HOST_DEVICE inline Pixel<T, V> rounded(const float (&value)[V]) {
  Pixel<T, V> pixel;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (sizeof(T) == 2 && V % 2 == 0) {
    uint32_t words[V / 2];
    AABLUR_UNROLL
    for (int i = 0; i < V / 2; ++i) {
      if constexpr (std::is_same_v<T, bfloat16>)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(words[i]) : "f"(value[2 * i + 1]), "f"(value[2 * i]));
      else asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(words[i]) : "f"(value[2 * i + 1]), "f"(value[2 * i]));
    }
    return bit_cast<Pixel<T, V>>(words);
  }
#endif
  AABLUR_UNROLL
  for (int i = 0; i < V; ++i) pixel.element[i] = narrow<T>(value[i]);
  return pixel;
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
  int code_row = 0, code_pixel = 0;  // codes from row to row, and from pixel to pixel

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

// N pixels of a source row from column `first`, as accumulators. With Wide > 0, pixels [Lead, Lead + Wide) are single
// elements that lie aligned, and are read at once.
template <class T, int V, int N, int Lead, int Wide>
struct Segment {
  // Where each pixel is read, from the border's rules; `outside` for zeros.
  struct Columns {
    int at[N];
  };

  // Inside: pixel j lies at column first + j.
  AABLUR_HOST_DEVICE static void read(const T* row, int first, int pixel, float (&value)[N][V]) {
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
    if constexpr (Wide > 0) {
      const int start = at(Lead);
      const Pixel<T, Wide> many = start == outside ? Pixel<T, Wide>{} : load<Pixel<T, Wide>>(row + start);
      AABLUR_UNROLL
      for (int j = 0; j < Wide; ++j) value[Lead + j][0] = widen(many.element[j]);
    }
    AABLUR_UNROLL
    for (int j = 0; j < N; ++j) {
      if (Wide > 0 && j >= Lead && j < Lead + Wide) continue;
      const int column = at(j);
      const Pixel<T, V> one = column == outside ? Pixel<T, V>{} : load<Pixel<T, V>>(row + column * pixel);
      AABLUR_UNROLL
      for (int l = 0; l < V; ++l) value[j][l] = widen(one.element[l]);
    }
  }
};

// Writes row y of a tile of the result, as soon as it is done; at a border, what there is of it.
template <class T, int V, int X, int Y, bool Wide, bool Border>
AABLUR_HOST_DEVICE inline void store_row(const Tiling& tiling, const Tile& tile, int y, T* out,
                                         const float (&value)[X][V]) {
  const int top = tile.row * Y, left = tile.column * X;
  if (Border && top + y >= tiling.result_height) return;
  T* row = out + tile.image * tiling.result_image + tile.plane * tiling.result_plane + tile.lane * V +
           (top + y) * tiling.result_row;
  if constexpr (Wide) {
    float flat[X];
    AABLUR_UNROLL
    for (int x = 0; x < X; ++x) flat[x] = value[x][0];
    *reinterpret_cast<Pixel<T, X>*>(row + left) = rounded<T, X>(flat);
  } else {
    AABLUR_UNROLL
    for (int x = 0; x < X; ++x)
      if (!Border || left + x < tiling.result_width)
        *reinterpret_cast<Pixel<T, V>*>(row + (left + x) * tiling.result_pixel) = rounded<T, V>(value[x]);
  }
}

// ---- the forward ---------------------------------------------------------------------------------

// YO x XO outputs, of taps K at stride S. The rows of the source pass once: each is summed along the width, then added
// to the output rows that it is under.
template <class T, int V, int K, int S, int XO, int YO, bool Wide>
struct BlurTile {
  static constexpr int before = (K - 1) / 2, N = (XO - 1) * S + K, R = (YO - 1) * S + K;
  static constexpr int result_rows = YO, result_columns = XO, lanes = V;
  using Row = Segment<T, V, N, before, Wide ? XO * S : 0>;

  Tiling tiling;
  const T* x;
  T* out;

  AABLUR_HOST_DEVICE void operator()(int64_t i) const {
    const Tile tile(tiling, uint32_t(i));
    const int top = tile.row * YO * S - before, left = tile.column * XO * S - before;
    const bool inside = top >= 0 && left >= 0 && top + R <= tiling.source_height && left + N <= tiling.source_width &&
                        (tile.row + 1) * YO <= tiling.result_height && (tile.column + 1) * XO <= tiling.result_width;
    if (inside) blur<false>(tile, top, left);
    else blur<true>(tile, top, left);
  }

  template <bool Border>
  AABLUR_HOST_DEVICE void blur(const Tile& tile, int top, int left) const {
    const TileTaps<K> taps(tiling.taps);
    const T* source = x + tile.image * tiling.source_image + tile.plane * tiling.source_plane + tile.lane * V;
    [[maybe_unused]] typename Row::Columns columns;
    if constexpr (Border) {
      AABLUR_UNROLL
      for (int j = 0; j < N; ++j) columns.at[j] = int(tiling.width.fold(left + j));
    }
    float sums[YO][XO][V] = {};
    AABLUR_UNROLL
    for (int r = 0; r < R; ++r) {
      float value[N][V];
      if constexpr (Border) {
        const int row = int(tiling.height.fold(top + r));
        Row::read(source + (row == outside ? 0 : row) * tiling.source_row, columns, row != outside, tiling.source_pixel,
                  value);
      } else {
        Row::read(source + (top + r) * tiling.source_row, left, tiling.source_pixel, value);
      }
      AABLUR_UNROLL
      for (int ox = 0; ox < XO; ++ox) AABLUR_UNROLL
      for (int l = 0; l < V; ++l) {
        float along = taps.width[0] * value[ox * S][l];
        AABLUR_UNROLL
        for (int t = 1; t < K; ++t) along += taps.width[t] * value[ox * S + t][l];
        AABLUR_UNROLL
        for (int oy = 0; oy < YO; ++oy)
          if (r - oy * S >= 0 && r - oy * S < K) sums[oy][ox][l] += taps.height[r - oy * S] * along;
      }
      AABLUR_UNROLL
      for (int oy = 0; oy < YO; ++oy)
        if (r - oy * S == K - 1) store_row<T, V, XO, YO, Wide, Border>(tiling, tile, oy, out, sums[oy]);
    }
  }
};

// ---- the adjoint ---------------------------------------------------------------------------------

// Along one axis, what results [0, count) of a tile that begins at a multiple of S gather: result a reads the
// gradient's element k with tap a + before - k * S, if that is one; k counts from the tile's own first element.
template <int K, int S, int First, int Count>
struct Gather {
  static constexpr int before = (K - 1) / 2;
  static constexpr int low = (First + before - K + 1 + 64 * S + S - 1) / S - 64;  // ceil, the least k
  static constexpr int high = (First + Count - 1 + before) / S;                   // the greatest
  static constexpr int reads = high - low + 1;
  AABLUR_HOST_DEVICE static constexpr int tap(int a, int k) { return First + a + before - (low + k) * S; }
  AABLUR_HOST_DEVICE static constexpr bool used(int a, int k) { return tap(a, k) >= 0 && tap(a, k) < K; }

  // The weight of each element for each result, folded borders included.
  AABLUR_HOST_DEVICE static void weigh(const Axis& axis, const float (&taps)[K], int start,
                                       float (&weight)[Count][reads]) {
    AABLUR_UNROLL
    for (int a = 0; a < Count; ++a) {
      AABLUR_UNROLL
      for (int k = 0; k < reads; ++k) weight[a][k] = 0;
      const int i = start * S + First + a;
      if (i < 0 || i >= axis.pooled()) continue;
      axis.readers(i, [&](int64_t o, int64_t t) {
        AABLUR_UNROLL
        for (int k = 0; k < reads; ++k) {
          AABLUR_UNROLL
          for (int u = 0; u < K; ++u)
            if (o - start == low + k && t == u) weight[a][k] += taps[u];
        }
      });
    }
  }
  // Whether every reader of every result is among the elements that its tile reads.
  static bool reaches(const Axis& axis) {
    const int64_t n = axis.pooled(), tile = Count + First;
    bool all = true;
    for (int64_t i = 0; i < n; i = i + 1 == 4 * K && n - 4 * K > i ? n - 4 * K : i + 1) {
      const int64_t start = i / tile * tile / S;
      axis.readers(i, [&](int64_t o, int64_t) { all = all && o - start >= low && o - start <= high; });
    }
    return all;
  }
};

// YI x XI elements of the input's gradient, both multiples of S, without a window.
template <class T, int V, int K, int S, int XI, int YI, bool Wide>
struct BlurBackwardTile {
  using Down = Gather<K, S, 0, YI>;
  using Along = Gather<K, S, 0, XI>;
  static constexpr int N = Along::reads, R = Down::reads, result_rows = YI, result_columns = XI, lanes = V;
  using Row = Segment<T, V, N, -Along::low, Wide ? XI / S : 0>;

  Tiling tiling;
  const T* x;  // the output's gradient
  T* out;

  AABLUR_HOST_DEVICE void operator()(int64_t i) const {
    const Tile tile(tiling, uint32_t(i));
    const int i0 = tile.row * YI, j0 = tile.column * XI;
    // Inside, every element is read as itself alone.
    const bool inside = i0 >= K && j0 >= K && i0 + YI + K <= tiling.result_height &&
                        j0 + XI + K <= tiling.result_width && i0 / S + Down::low + R <= tiling.source_height &&
                        j0 / S + Along::low + N <= tiling.source_width;
    if (inside) gather<false>(tile, i0 / S, j0 / S);
    else gather<true>(tile, i0 / S, j0 / S);
  }

  template <bool Border>
  AABLUR_HOST_DEVICE void gather(const Tile& tile, int top, int left) const {
    const TileTaps<K> taps(tiling.taps);
    const T* source = x + tile.image * tiling.source_image + tile.plane * tiling.source_plane + tile.lane * V;
    [[maybe_unused]] typename Row::Columns columns;
    [[maybe_unused]] float down[YI][R], along[XI][N];
    if constexpr (Border) {
      AABLUR_UNROLL
      for (int k = 0; k < N; ++k) {
        const int column = left + Along::low + k;
        columns.at[k] = column >= 0 && column < tiling.source_width ? column : int(outside);
      }
      Down::weigh(tiling.height, taps.height, top, down);
      Along::weigh(tiling.width, taps.width, left, along);
    }
    float sums[YI][XI][V] = {};
    AABLUR_UNROLL
    for (int k = 0; k < R; ++k) {
      float value[N][V];
      const int row = top + Down::low + k;
      if constexpr (Border) {
        const bool there = row >= 0 && row < tiling.source_height;
        Row::read(source + (there ? row : 0) * tiling.source_row, columns, there, tiling.source_pixel, value);
      } else {
        Row::read(source + row * tiling.source_row, left + Along::low, tiling.source_pixel, value);
      }
      AABLUR_UNROLL
      for (int b = 0; b < XI; ++b) AABLUR_UNROLL
      for (int l = 0; l < V; ++l) {
        float spread = 0;
        AABLUR_UNROLL
        for (int m = 0; m < N; ++m) {
          if constexpr (Border) spread += along[b][m] * value[m][l];
          else if (Along::used(b, m)) spread += taps.width[Along::tap(b, m)] * value[m][l];
        }
        AABLUR_UNROLL
        for (int a = 0; a < YI; ++a) {
          if constexpr (Border) sums[a][b][l] += down[a][k] * spread;
          else if (Down::used(a, k)) sums[a][b][l] += taps.height[Down::tap(a, k)] * spread;
        }
      }
      AABLUR_UNROLL
      for (int a = 0; a < YI; ++a)
        if (Border ? k == R - 1 : Down::used(a, k) && !(k + 1 < R && Down::used(a, k + 1)))
          store_row<T, V, XI, YI, Wide, Border>(tiling, tile, a, out, sums[a]);
    }
  }
};

}  // namespace aablur::gpu
