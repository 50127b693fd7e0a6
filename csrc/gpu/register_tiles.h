// Tiles in registers: the fast kernels of 2-D maps with "same" padding before, whose channels lie last (or whose planes
// are not dense).
//
//   global x --loads of pixels------> registers: a row of the source at a time
//            --taps along the width--> registers: sums of that row
//            --taps along the height-> registers: the tile of the result --stores--> global out
//
// A thread owns a tile and reads what it needs of the source once. What tiles share (the halo) stays in the first-level
// cache. Neighbouring threads take neighbouring pixels, so that loads are coalesced. No shared memory, no shuffles, no
// atomics: each kernel is a functor of the thread's number. Tiles at a border take a path of their own.
#pragma once

#include "gpu/configs.h"
#include "gpu/running_argmax.h"

namespace aablur::gpu {

// ---- the forward ---------------------------------------------------------------------------------

// YO x XO outputs, of taps K at stride S. The rows of the source pass once: each is summed along the width, then added
// to the output rows that it is under.
template <class T, int K, int S, class Config_>
struct BlurTile {
  using Config = Config_;
  static constexpr int V = Config::vector, XO = Config::columns, YO = Config::rows;
  static constexpr int before = (K - 1) / 2, N = (XO - 1) * S + K, R = (YO - 1) * S + K;
  using Row = Segment<T, V, N>;

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
      for (int j = 0; j < N; ++j) columns.at[j] = int(fold(tiling.width, left + j));
    }
    float sums[YO][XO][V] = {};
    AABLUR_UNROLL
    for (int r = 0; r < R; ++r) {
      float value[N][V];
      if constexpr (Border) {
        const int row = int(fold(tiling.height, top + r));
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
        if (r - oy * S == K - 1) store_row<T, V, XO, YO, Border>(tiling, tile, oy, out, sums[oy]);
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

  // The weight of each element for each result, folded borders included; 0 and not in `used` where it has none, so that
  // a NaN of its stays out.
  struct Weights {
    float weight[Count][reads];
    uint32_t used[Count];

    AABLUR_HOST_DEVICE void add(int a, int k, float value, float& sum) const {
      sum += weight[a][k] * (used[a] >> k & 1 ? value : 0.0f);
    }
  };
  AABLUR_HOST_DEVICE static void weigh(const Axis& axis, const float (&taps)[K], int start, Weights& weights) {
    AABLUR_UNROLL
    for (int a = 0; a < Count; ++a) {
      AABLUR_UNROLL
      for (int k = 0; k < reads; ++k) weights.weight[a][k] = 0;
      weights.used[a] = 0;
      const int i = start * S + First + a;
      if (i < 0 || i >= axis.pooled()) continue;
      readers(axis, i, [&](int64_t o, int64_t t) {
        AABLUR_UNROLL
        for (int k = 0; k < reads; ++k) {
          if (o - start != low + k) continue;
          weights.used[a] |= 1u << k;
          AABLUR_UNROLL
          for (int u = 0; u < K; ++u)
            if (t == u) weights.weight[a][k] += taps[u];
        }
      });
    }
  }
  // Whether every reader of every result is among the elements that its tile reads.
  AABLUR_HOST_DEVICE static bool reaches(const Axis& axis) {
    const int64_t n = axis.pooled(), tile = Count + First;
    bool all = true;
    for (int64_t i = 0; i < n; i = i + 1 == 4 * K && n - 4 * K > i ? n - 4 * K : i + 1)
      for (int64_t u = i / tile; u <= (i - First) / tile; ++u)
        readers(axis, i, [&](int64_t o, int64_t) { all = all && o - u * tile / S >= low && o - u * tile / S <= high; });
    return all;
  }
};

// ---- the max: the forward, and the adjoint with or without one ---------------------------------------

// BlurTile of the max over windows of Window x Window. With codes, each tile writes those of its own S * YO rows and
// S * XO columns of the pooled map: whole bytes.
template <class T, int K, int S, class Config_, int Window, bool WithCodes>
struct MaxBlurTile {
  using Config = Config_;
  static constexpr int V = Config::vector, XO = Config::columns, YO = Config::rows;
  static constexpr int before = (K - 1) / 2, N = (XO - 1) * S + K, R = (YO - 1) * S + K, Bits = Window == 2 ? 2 : 4;
  static_assert(before <= K - S, "a tile must read the positions that it owns");
  using Row = Segment<T, V, N + Window - 1>;
  // A RunningArgmax has the lanes of a pixel, or where that is one element all columns of a row: after as many spare
  // ones that its own begin with a pair.
  static constexpr int own = XO * S, spare = V == 1 ? before % 2 : 0;
  static constexpr int P = V == 1 ? (spare + N + 1) / 2 * 2 : 1,
                       M = V == 1 ? 1 : N;  // columns a RunningArgmax has; of them a row
  static constexpr int first = V == 1 ? spare + before : 0, coded = V == 1 ? own : V;  // lanes with codes
  using Pooled = RunningArgmax<T, V * P, Bits, WithCodes, first, coded>;

  Tiling tiling;
  const T* x;
  T* out;

  AABLUR_HOST_DEVICE void operator()(int64_t i) const {
    const Tile tile(tiling, uint32_t(i));
    const int top = tile.row * YO * S - before, left = tile.column * XO * S - before;
    const bool inside = top >= 0 && left >= 0 && top + R + Window - 1 <= tiling.source_height &&
                        left + N + Window - 1 <= tiling.source_width && (tile.row + 1) * YO <= tiling.result_height &&
                        (tile.column + 1) * XO <= tiling.result_width;
    if (inside) blur<false>(tile, top, left);
    else blur<true>(tile, top, left);
  }

  template <bool Border>
  AABLUR_HOST_DEVICE void blur(const Tile& tile, int top, int left) const {
    const TileTaps<K> taps(tiling.taps);
    const T* source = x + tile.image * tiling.source_image + tile.plane * tiling.source_plane + tile.lane * V;
    [[maybe_unused]] int columns[N];
    if constexpr (Border) {
      AABLUR_UNROLL
      for (int j = 0; j < N; ++j) columns[j] = int(fold(tiling.width, left + j));
    }
    Pooled history[Window][M];  // each source row's maxima along the width
    float sums[YO][XO][V] = {};
    AABLUR_UNROLL
    for (int s = 0; s < R + Window - 1; ++s) {
      if constexpr (!Border) {
        Pixel<T, V> value[N + Window - 1];
        Row::read(source + (top + s) * tiling.source_row, left, tiling.source_pixel, value);
        along_width(value, history[s % Window]);
      }
      const int r = s - (Window - 1);
      if (r < 0) continue;
      Pooled pooled[M];
      if constexpr (Border) {
        border_row(source, int(fold(tiling.height, top + r)), columns, pooled);
      } else {
        AABLUR_UNROLL
        for (int m = 0; m < M; ++m) {
          pooled[m] = history[r % Window][m];
          AABLUR_UNROLL
          for (int a = 1; a < Window; ++a) pooled[m].take(history[(r + a) % Window][m], a * Window);
        }
      }
      if (WithCodes && r >= before && r < before + YO * S) store_codes<Border>(tile, top + r, left + before, pooled);
      AABLUR_UNROLL
      for (int ox = 0; ox < XO; ++ox) AABLUR_UNROLL
      for (int l = 0; l < V; ++l) {
        float along = taps.width[0] * value_of(pooled, ox * S, l);
        AABLUR_UNROLL
        for (int t = 1; t < K; ++t) along += taps.width[t] * value_of(pooled, ox * S + t, l);
        AABLUR_UNROLL
        for (int oy = 0; oy < YO; ++oy)
          if (r - oy * S >= 0 && r - oy * S < K) sums[oy][ox][l] += taps.height[r - oy * S] * along;
      }
      AABLUR_UNROLL
      for (int oy = 0; oy < YO; ++oy)
        if (r - oy * S == K - 1) store_row<T, V, XO, YO, Border>(tiling, tile, oy, out, sums[oy]);
    }
  }

  AABLUR_HOST_DEVICE static float value_of(const Pooled (&pooled)[M], int column, int lane) {
    return V == 1 ? pooled[0].value(spare + column) : pooled[column].value(lane);
  }

  // P pixels, of which the first that is not spare is pixel j.
  template <int Pixels>
  AABLUR_HOST_DEVICE static Pixel<T, V * P> together(const Pixel<T, V> (&value)[Pixels], int j) {
    Pixel<T, V * P> all{};
    AABLUR_UNROLL
    for (int q = 0; q < P; ++q) AABLUR_UNROLL
    for (int l = 0; l < V; ++l)
      if (j + q >= spare && j + q - spare < Pixels) all.element[q * V + l] = value[j + q - spare].element[l];
    return all;
  }

  AABLUR_HOST_DEVICE static void along_width(const Pixel<T, V> (&value)[N + Window - 1], Pooled (&best)[M]) {
    AABLUR_UNROLL
    for (int m = 0; m < M; ++m) {
      best[m].start(together(value, m));
      AABLUR_UNROLL
      for (int c = 1; c < Window; ++c) best[m].take(together(value, m + c), c);
    }
  }

  // Pooled row `row` at folded columns: where they lie apart, and zero outside.
  AABLUR_HOST_DEVICE void border_row(const T* source, int row, const int (&columns)[N], Pooled (&pooled)[M]) const {
    AABLUR_UNROLL
    for (int e = 0; e < Window * Window; ++e) {
      Pixel<T, V> value[N];
      AABLUR_UNROLL
      for (int j = 0; j < N; ++j) {
        value[j] = Pixel<T, V>{};
        if (row == outside || columns[j] == outside) continue;
        value[j] = load<Pixel<T, V>>(source + (row + e / Window) * tiling.source_row +
                                     (columns[j] + e % Window) * tiling.source_pixel);
      }
      AABLUR_UNROLL
      for (int m = 0; m < M; ++m)
        if (e > 0) pooled[m].take(together(value, m), e);
        else pooled[m].start(together(value, m));
    }
  }

  // The codes of the tile's own positions of pooled row p, from column q. Without pixels of channels, those of a row
  // make whole bytes.
  template <bool Border>
  AABLUR_HOST_DEVICE void store_codes(const Tile& tile, int p, int q, const Pooled (&pooled)[M]) const {
    const int left = Border ? int(tiling.width.pooled()) - q : own;  // columns that there are
    if (Border && (p >= tiling.height.pooled() || left <= 0)) return;
    uint8_t* const to = codes_of(tiling, tile) + code_byte<V, Bits>(tiling, tile, p, q);
    if constexpr (V > 1) {
      using Word = Pixel<uint8_t, V * Bits / 8>;
      AABLUR_UNROLL
      for (int j = 0; j < own; ++j)
        if (j < left)
          *reinterpret_cast<Word*>(to + j * tiling.code_pixel) = truncated<Word>(pooled[before + j].codes());
    } else {
      static_assert(own * Bits <= 32 && own * Bits % 8 == 0);
      uint32_t word = pooled[0].codes();
      if constexpr (Border) word &= left < own ? (1u << (left * Bits)) - 1 : ~0u;
      AABLUR_UNROLL
      for (int byte = 0; byte < own * Bits / 8; ++byte)
        if (byte * 8 / Bits < left) to[byte] = uint8_t(word >> (8 * byte));
    }
  }
};

// YI x XI elements of the input's gradient, both multiples of S: the adjoint of the blur at the pooled positions whose
// windows hold them, each sent to the element that its code names. A window of 1 is no max, and has no codes.
template <class T, int K, int S, class Config_, int Window>
struct BlurBackwardTile {
  using Config = Config_;
  static constexpr int V = Config::vector, XI = Config::columns, YI = Config::rows;
  static constexpr int halo = Window - 1, rows = YI + halo, columns = XI + halo, Bits = Window == 2 ? 2 : 4;
  using Down = Gather<K, S, -halo, rows>;
  using Along = Gather<K, S, -halo, columns>;
  static constexpr int N = Along::reads, R = Down::reads;
  using Row = Segment<T, V, N>;

  using Part = std::conditional_t<(V > 1 || Window > 1), BlurBackwardTile<T, K, S, BackwardBorder<V>, Window>,
                                  BlurBackwardTile>;  // what borders are gathered by

  Tiling tiling;
  const T* x;  // the output's gradient
  T* out;

  AABLUR_HOST_DEVICE void operator()(int64_t i) const {
    const Tile tile(tiling, uint32_t(i));
    const int i0 = tile.row * YI, j0 = tile.column * XI, reach = K + halo;
    const bool inside = i0 >= reach && j0 >= reach && i0 + YI + reach <= tiling.result_height &&
                        j0 + XI + reach <= tiling.result_width && i0 / S + Down::low + R <= tiling.source_height &&
                        j0 / S + Along::low + N <= tiling.source_width;
    if (inside) return gather<false>(tile, i0, j0);
    const Part kernel{tiling, x, out};
    constexpr int down = YI / Part::YI, along = XI / Part::XI;
    Tile part(tiling, uint32_t(i));
    part.row *= down;
    part.column *= along;
    AABLUR_NO_UNROLL
    for (const int end = part.row + down; part.row < end; ++part.row) {
      AABLUR_NO_UNROLL
      for (const int stop = part.column + along; part.column < stop; ++part.column)
        kernel.template gather<true>(part, part.row * Part::YI, part.column * Part::XI);
      part.column -= along;
    }
  }

  template <bool Border>
  AABLUR_HOST_DEVICE void gather(const Tile& tile, int i0, int j0) const {
    const TileTaps<K> taps(tiling.taps);
    const int top = tile.row * (YI / S), left = tile.column * (XI / S);
    const T* source = x + tile.image * tiling.source_image + tile.plane * tiling.source_plane + tile.lane * V;
    [[maybe_unused]] typename Row::Columns at;
    [[maybe_unused]] typename Down::Weights down;
    [[maybe_unused]] typename Along::Weights along;
    if constexpr (Border) {
      AABLUR_UNROLL
      for (int k = 0; k < N; ++k) {
        const int column = left + Along::low + k;
        at.at[k] = column >= 0 && column < tiling.source_width ? column : int(outside);
      }
      Down::weigh(tiling.height, taps.height, top, down);
      Along::weigh(tiling.width, taps.width, left, along);
    }
    float pooled[rows][columns][V] = {};
    [[maybe_unused]] float sums[YI][XI][V] = {};
    AABLUR_UNROLL
    for (int k = 0; k < R; ++k) {
      float value[N][V];
      const int row = top + Down::low + k;
      if constexpr (Border) {
        const bool there = row >= 0 && row < tiling.source_height;
        Row::read(source + (there ? row : 0) * tiling.source_row, at, there, tiling.source_pixel, value);
      } else {
        Row::read(source + row * tiling.source_row, left + Along::low, tiling.source_pixel, value);
      }
      AABLUR_UNROLL
      for (int b = 0; b < columns; ++b) AABLUR_UNROLL
      for (int l = 0; l < V; ++l) {
        float spread = 0;
        AABLUR_UNROLL
        for (int m = 0; m < N; ++m) {
          if constexpr (Border) along.add(b, m, value[m][l], spread);
          else if (Along::used(b, m)) spread += taps.width[Along::tap(b, m)] * value[m][l];
        }
        AABLUR_UNROLL
        for (int a = 0; a < rows; ++a) {
          if constexpr (Border) down.add(a, k, spread, pooled[a][b][l]);
          else if (Down::used(a, k)) pooled[a][b][l] += taps.height[Down::tap(a, k)] * spread;
        }
      }
      AABLUR_UNROLL
      for (int a = 0; a < rows; ++a) {
        if (!(Border ? k == R - 1 : Down::used(a, k) && !(k + 1 < R && Down::used(a, k + 1)))) continue;
        if constexpr (Window == 1) {
          store_row<T, V, XI, YI, Border>(tiling, tile, a, out, pooled[a]);
        } else {
          select<Border>(tile, i0, j0, a, pooled[a], sums);
          if (a >= halo) store_row<T, V, XI, YI, Border>(tiling, tile, a - halo, out, sums[a - halo]);
        }
      }
    }
  }

  // Sends pooled row i0 - halo + a to the rows of the tile that its windows hold.
  template <bool Border>
  AABLUR_HOST_DEVICE void select(const Tile& tile, int i0, int j0, int a, const float (&pooled)[columns][V],
                                 float (&sums)[YI][XI][V]) const {
    const uint8_t* const first = codes_of(tiling, tile);
    const int p = i0 - halo + a;
    if (Border && (p < 0 || p >= int(tiling.height.pooled()))) return;
    AABLUR_UNROLL
    for (int b = 0; b < columns; ++b) {
      const int q = j0 - halo + b;
      if (Border && (q < 0 || q >= int(tiling.width.pooled()))) continue;
      const uint32_t codes = read_codes(first, tile, p, j0, b - halo);
      AABLUR_UNROLL
      for (int c = 0; c < Window * Window; ++c) {
        const int y = a - halo + c / Window, z = b - halo + c % Window;
        if (y < 0 || y >= YI || z < 0 || z >= XI) continue;
        const uint32_t differ = codes ^ repeated<V, Bits>(c);  // a field of zeros where the code is c
        AABLUR_UNROLL
        for (int l = 0; l < V; ++l)
          if (!(differ & ((1u << Bits) - 1) << (l * Bits))) sums[y][z][l] += pooled[b][l];
      }
    }
  }

  // The codes of the pixel `offset` columns from j0, a multiple of XI.
  AABLUR_HOST_DEVICE uint32_t read_codes(const uint8_t* first, const Tile& tile, int p, int j0, int offset) const {
    if constexpr (V > 1) {
      const auto word = load<Pixel<uint8_t, V * Bits / 8>>(first + code_byte<V, Bits>(tiling, tile, p, j0 + offset));
      uint32_t codes = 0;
      AABLUR_UNROLL
      for (int byte = 0; byte < V * Bits / 8; ++byte) codes |= uint32_t(word.element[byte]) << (8 * byte);
      return codes;
    } else {
      const int q = j0 + offset, bit = (tiling.code_pixel > 0 ? tile.lane : q) * Bits;
      return uint32_t(load<Pixel<uint8_t, 1>>(first + p * int64_t(tiling.code_row) + q * int64_t(tiling.code_pixel) +
                                              bit / 8)
                          .element[0]) >>
             (bit % 8);
    }
  }
};

}  // namespace aablur::gpu
