// The blur and its adjoint of planes in shared memory; gpu/smem_planes.h draws how data flows. In shared memory stand,
// one after the other:
//
//   forward:  down[padded row], across[padded column]: where each is read, or negative | source | result
//   backward: weights[row or column of the result][reach]                             | source | result
//
// A thread makes a strip of columns. Rolling down, it reads each row of the source once, sums it along the width, and
// adds it to the rows of the result that it is under, which wait in registers.
#pragma once

#include "gpu/smem_planes.h"

namespace aablur::gpu {

// ---- the forward -----------------------------------------------------------------------------------

// The pooled rows that output rows [row, row + rows) read.
template <int K, int S>
AABLUR_HOST_DEVICE inline Rows rows_read(const Fold& fold, int before, int row, int rows) {
  const int start = row * S - before, last = (row + rows - 1) * S - before + K - 1, n = fold.size;
  int low = start > 0 ? start : 0, high = last < n - 1 ? last : n - 1;
  for (int edge = 0; edge < 2; ++edge) {
    const int p = edge ? last : start, folded = fold(p);
    if ((p >= 0 && p < n) || folded == int(outside)) continue;
    low = folded < low ? folded : low;
    high = folded > high ? folded : high;
  }
  return {low, high < low ? 0 : high - low + 1};
}

// X outputs side by side from column `left`, rolling down `rows` of output rows. Padded rows are read `down` behind
// source, padded columns `across` behind that. Gives every row of outputs to store(sums).
template <class T, int K, int S, int X, class Store>
AABLUR_HOST_DEVICE inline void blur_strip(const TileTaps<K>& taps, const char* source, const int* down,
                                          const int* across, int rows, Store&& store) {
  constexpr int N = (X - 1) * S + K, open = (K - 1) / S + 1;  // outputs that a row can be under
  uint32_t at[N], keep[N];
  AABLUR_UNROLL
  for (int j = 0; j < N; ++j) {
    const int offset = across[j];
    at[j] = offset < 0 ? 0 : offset;
    keep[j] = keeping<T>(offset >= 0);
    pin(at[j]), pin(keep[j]);
  }
  float sums[open][X] = {};
  auto along = [&](float (&sum)[X]) {
    const int offset = *down++;
    const char* const row = source + (offset < 0 ? 0 : offset);
    float value[N];
    AABLUR_UNROLL
    for (int j = 0; j < N; ++j) value[j] = widen_kept(*reinterpret_cast<const T*>(row + at[j]), keep[j]);
    AABLUR_UNROLL
    for (int x = 0; x < X; ++x) {
      sum[x] = taps.width[0] * value[x * S];
      AABLUR_UNROLL
      for (int t = 1; t < K; ++t) sum[x] += taps.width[t] * value[x * S + t];
      sum[x] = offset < 0 ? 0 : sum[x];
    }
  };
  float sum[X];
  AABLUR_UNROLL
  for (int q = 0; q < K - S; ++q) {  // rows before the first that ends an output
    along(sum);
    AABLUR_UNROLL
    for (int o = 0; o * S <= q; ++o) AABLUR_UNROLL
    for (int x = 0; x < X; ++x) sums[o][x] += taps.height[q - o * S] * sum[x];
  }
  AABLUR_NO_UNROLL
  for (; rows > 0; --rows) {
    AABLUR_UNROLL
    for (int s = 0; s < S; ++s) {
      along(sum);
      AABLUR_UNROLL
      for (int o = 0; o < open; ++o) AABLUR_UNROLL
      for (int x = 0; x < X; ++x)
        if (K - S + s - o * S >= 0) sums[o][x] += taps.height[K - S + s - o * S] * sum[x];
    }
    store(sums[0]);
    AABLUR_UNROLL
    for (int o = 0; o < open; ++o) AABLUR_UNROLL
    for (int x = 0; x < X; ++x) sums[o][x] = o + 1 < open ? sums[o + 1][x] : 0;
  }
}

// Writes X neighbours of a row in shared memory: those that `there` has bits of.
template <class T, int X>
AABLUR_HOST_DEVICE inline void store_strip(T* row, uint32_t there, const float (&sums)[X]) {
  const Pixel<T, X> pixel = rounded<T, X>(sums);
  AABLUR_UNROLL
  for (int x = 0; x < X; ++x)
    if (there >> x & 1) row[x] = pixel.element[x];
}
AABLUR_HOST_DEVICE inline uint32_t bits_below(int count) {
  uint32_t bits = count <= 0 ? 0 : count < 32 ? (1u << count) - 1 : ~0u;
  pin(bits);
  return bits;
}

// A block's planes, of which the source's are `plane` elements apart; the result is dense.
template <class T, int K, int S, int X, class Thread>
AABLUR_HOST_DEVICE inline void blur_planes(const Planes& map, const Block& block, const T* source, int plane,
                                           const int* down, const int* across, T* result, Thread thread) {
  const TileTaps<K> taps(map.taps);
  map.strips.each(block.planes, block.rows, thread, [&](int p, int row, int rows, int strip) {
    const int left = strip * X;
    const uint32_t there = bits_below(map.result_width - left);
    T* out = result + (p * block.rows + row) * map.result_width + left;
    blur_strip<T, K, S, X>(taps, reinterpret_cast<const char*>(source + p * plane), down + row * S, across + left * S,
                           rows, [&](const float (&sums)[X]) {
                             store_strip(out, there, sums);
                             out += map.result_width;
                           });
  });
}

// Tables of where padded rows and columns are read, in bytes: `outside` for zeros. Of `rows` rows for outputs from the
// block's first on, then of columns.
struct Offsets {
  int rows, all;

  template <int K, int S, int X>
  AABLUR_HOST_DEVICE static Offsets of(const Planes& map) {
    const int rows = (map.cut.band - 1) * S + K;
    return {rows, rows + (int(map.strips.strips.value()) * X - 1) * S + K};
  }
  // Of a map whose rows `there` are in shared memory, `row_bytes` and `pixel_bytes` apart. For thread after thread.
  template <class Thread>
  AABLUR_HOST_DEVICE void fill(const Planes& map, int first_padded_row, Rows there, int row_bytes, int pixel_bytes,
                               int* offsets, Thread thread) const {
    AABLUR_NO_UNROLL
    for (int e = thread.index; e < all; e += Thread::count) {
      const bool is_row = e < rows;
      const int p = is_row ? first_padded_row + e : e - rows - map.before_width;
      const int at = is_row ? map.height(p) - there.first : map.width(p), end = is_row ? there.count : map.width.size;
      // What no output needs may lie anywhere.
      offsets[e] = unsigned(at) < unsigned(end) ? at * (is_row ? row_bytes : pixel_bytes) : int(outside);
    }
  }
};

template <class T, int K, int S>
struct BlurPlanes {
  using Config = SmemBlur<S>;
  static constexpr int phases = 3, X = Config::columns;
  using Thread = gpu::Thread<Config::threads>;

  Planes map;
  const T* x;
  T* out;

  static bool serves(const Axis& axis) { return Fold::serves(axis); }
  static int table_size(const Planes& map) { return Offsets::of<K, S, X>(map).all; }
  // Divides a block's shared memory; returns its size.
  static int64_t divide(Planes& map) {
    map.strips = Strips(ceil_div(map.result_width, X), map.cut.band, map.cut.segment);
    map.source_offset = int(staged_bytes<int>(table_size(map)));
    map.result_offset =
        int(map.source_offset + staged_bytes<T>(map.cut.planes * most_rows<BlurPlanes>(map) * map.source_width));
    return map.result_offset + staged_bytes<T>(int64_t(map.cut.planes) * map.cut.band * map.result_width);
  }
  // The rows of the source that rows of the result need.
  AABLUR_HOST_DEVICE static Rows read(const Planes& map, int row, int rows) {
    if (!map.banded) return {0, map.source_height};
    return rows_read<K, S>(map.height, map.before_height, row, rows);
  }

  struct State {
    Block block;
    Rows rows;
    const T* from;
    T *to, *source, *result;
    int* offsets;

    AABLUR_HOST_DEVICE State(const BlurPlanes& kernel, uint32_t number, char* shared)
        : block(kernel.map, number), rows(read(kernel.map, block.row, block.rows)) {
      const Planes& map = kernel.map;
      from = at_block(kernel.x, block, rows.first, map.source_height, map.source_width);
      to = at_block(kernel.out, block, block.row, map.result_height, map.result_width);
      offsets = reinterpret_cast<int*>(shared);
      source = staged(shared + map.source_offset, from);
      result = staged(shared + map.result_offset, to);
    }
  };
  template <int Phase>
  AABLUR_HOST_DEVICE void run(const State& state, Thread thread) const {
    const Block& block = state.block;
    const Offsets offsets = Offsets::of<K, S, X>(map);
    constexpr int bytes = int(sizeof(T));
    if constexpr (Phase == 0) {
      copy_in(state.source, state.from, block.planes * state.rows.count * map.source_width, thread);
      offsets.fill(map, block.row * S - map.before_height, state.rows, map.source_width * bytes, bytes, state.offsets,
                   thread);
    } else if constexpr (Phase == 1) {
      blur_planes<T, K, S, X>(map, block, state.source, map.source_height * map.source_width, state.offsets,
                              state.offsets + offsets.rows, state.result, thread);
    } else {
      copy_out(state.to, state.result, block.planes * block.rows * map.result_width, thread);
    }
  }
};

// ---- the adjoint -----------------------------------------------------------------------------------

// Along one axis: output o spreads to results o * S - before - lead + d, d < reach. `lead` is for axes of even taps, at
// whose end reflection reaches one further back.
template <int K, int S>
struct Spread {
  static constexpr int before = (K - 1) / 2, lead = K % 2 == 0, reach = K + lead, pitch = reach > 4 ? 8 : 4;
  AABLUR_HOST_DEVICE static constexpr int first(int o) { return o * S - before - lead; }
  // The least and the greatest output of results [-halo, end).
  AABLUR_HOST_DEVICE static constexpr int low(int halo) { return -((K - 1 - before + halo) / S); }
  AABLUR_HOST_DEVICE static constexpr int high(int end) { return (end - 1 + before + lead) / S; }
  AABLUR_HOST_DEVICE static constexpr int reads(int halo, int end) { return high(end) + 1 - low(halo); }
  AABLUR_HOST_DEVICE static constexpr bool is_used(int o, int i) { return i >= first(o) && i < first(o) + reach; }

  // Of output o, by d; zeros where o is none. For thread after thread.
  AABLUR_HOST_DEVICE static float weight(const Fold& fold, int outputs, const float (&taps)[K], int o, int d) {
    if (o < 0 || o >= outputs) return 0;
    const int start = o * S - before, i = first(o) + d;
    float sum = 0;
    AABLUR_UNROLL
    for (int t = 0; t < K; ++t) sum += fold(start + t) == i ? taps[t] : 0;
    return sum;
  }
  // Whether all that outputs spread is within reach.
  static bool serves(const Axis& axis) {
    if (axis.before != before || !Fold::serves(axis)) return false;
    for (int64_t o = 0, outputs = axis.out(), n = axis.pooled(); o < outputs; ++o) {
      const int64_t start = o * S - before;
      if (start >= 0 && start + K <= n) continue;
      for (int64_t t = 0; t < K; ++t) {
        const int64_t i = fold(axis, start + t), d = i - start + lead;
        if (i != outside && (d < 0 || d >= reach)) return false;
      }
    }
    return true;
  }
};

// Tables of weights, `pitch` an output: of some rows of outputs, then of some columns; there are `height` and `width`.
template <int K, int S, class Thread>
AABLUR_HOST_DEVICE inline void fill_weights(const Planes& map, Rows rows, Rows columns, int height, int width,
                                            float* weights, Thread thread) {
  using Spreads = Spread<K, S>;
  const TileTaps<K> taps(map.taps);
  AABLUR_NO_UNROLL
  for (int e = thread.index; e < (rows.count + columns.count) * Spreads::pitch; e += Thread::count) {
    const int o = e / Spreads::pitch, d = e % Spreads::pitch, column = columns.first + o - rows.count;
    weights[e] = o < rows.count ? Spreads::weight(map.height, height, taps.height, rows.first + o, d)
                                : Spreads::weight(map.width, width, taps.width, column, d);
  }
}
template <int K, int S>
AABLUR_HOST_DEVICE inline void load_weights(const float* table, float (&weights)[Spread<K, S>::pitch]) {
  AABLUR_UNROLL
  for (int d = 0; d < Spread<K, S>::pitch; d += 4) {
    const auto four = *reinterpret_cast<const Pixel<float, 4>*>(table + d);
    AABLUR_UNROLL
    for (int e = 0; e < 4; ++e) weights[d + e] = four.element[e];
  }
}
// Adds the share of tap d. One that nothing but a border has adds no zero times a NaN.
template <int K, int S>
AABLUR_HOST_DEVICE inline void add_weighed(int d, float weight, float value, float& sum) {
  if (d >= Spread<K, S>::lead || weight != 0) sum += weight * value;
}

// The weights of rows and columns of outputs for a block's adjoint, those of `rows` rows from the first that the
// block's results read on, then of columns. Results begin `halo` before those of a block.
template <int K, int S, int X, int Halo>
struct Weights {
  using Spreads = Spread<K, S>;
  static constexpr int above = (Halo + S - 1) / S * S;  // rows come by S

  int rows, all;

  AABLUR_HOST_DEVICE explicit Weights(const Planes& map)
      : rows(Spreads::reads(above, (map.cut.band + S - 1) / S * S)),
        all(rows + Spreads::reads(Halo, int(map.strips.strips.value()) * X)) {}
  // The output that the weights of rows begin with.
  AABLUR_HOST_DEVICE static int first_row(int row) { return row / S + Spreads::low(above); }
  // The rows of outputs that rows of results read.
  AABLUR_HOST_DEVICE static Rows read(const Planes& map, int row, int rows) {
    if (!map.banded) return {0, map.source_height};
    const int first = first_row(row), end = first + Spreads::reads(above, (rows + S - 1) / S * S),
              low = first > 0 ? first : 0;
    return {low, (end < map.source_height ? end : map.source_height) - low};
  }
  template <class Thread>
  AABLUR_HOST_DEVICE void fill(const Planes& map, int row, float* weights, Thread thread) const {
    fill_weights<K, S>(map, {first_row(row), rows}, {Spreads::low(Halo), all - rows}, map.source_height,
                       map.source_width, weights, thread);
  }
};

// Results [left - Halo, left + X) side by side, rolling down from row `top` to `top + rows` of the adjoint; left and
// top are multiples of S. Output (o, q) stands o * width + q behind source; weights are those of columns and rows from
// the first that are read on. Gives rows of results by S to store(sums, whether it is one).
template <class T, int K, int S, int X, int Halo, class Store>
AABLUR_HOST_DEVICE inline void spread_strip(int height, int width, const T* source, const float* down,
                                            const float* across, int left, int top, int rows, Store&& store) {
  using Spreads = Spread<K, S>;
  constexpr int N = Spreads::reads(Halo, X), low = Spreads::low(Halo), columns = X + Halo;
  uint32_t at[N], keep[N];
  float weight[columns][N];
  AABLUR_UNROLL
  for (int m = 0; m < N; ++m) {
    const int o = left / S + low + m;
    const bool there = unsigned(o) < unsigned(width);
    at[m] = uint32_t((there ? o : 0) * int(sizeof(T)));
    keep[m] = keeping<T>(there);
    pin(at[m]), pin(keep[m]);
    AABLUR_UNROLL
    for (int x = 0; x < columns; ++x)
      if (Spreads::is_used(low + m, x - Halo))
        weight[x][m] = across[m * Spreads::pitch + x - Halo - Spreads::first(low + m)];
  }
  // Rows whose sums are open: after an output, S of them are done.
  constexpr int ahead = Spreads::high(S), open = Spreads::reach + Spreads::first(ahead);
  float sums[open][columns] = {};
  int k = top / S + Spreads::low(0);
  const char* line = reinterpret_cast<const char*>(source + k * width);
  // Adds row k of outputs, which spreads from `offset` rows behind the first open one on; zeros where there is none.
  auto spread_row = [&](int offset, bool is_output) {
    float value[N], spread[columns] = {}, weights[Spreads::pitch];
    AABLUR_UNROLL
    for (int m = 0; m < N; ++m)
      value[m] = is_output ? widen_kept(*reinterpret_cast<const T*>(line + at[m]), keep[m]) : 0;
    AABLUR_UNROLL
    for (int x = 0; x < columns; ++x) AABLUR_UNROLL
    for (int m = 0; m < N; ++m)
      if (Spreads::is_used(low + m, x - Halo))
        add_weighed<K, S>(x - Halo - Spreads::first(low + m), weight[x][m], value[m], spread[x]);
    load_weights<K, S>(down, weights);
    AABLUR_UNROLL
    for (int d = 0; d < Spreads::reach; ++d) AABLUR_UNROLL
    for (int x = 0; x < columns; ++x)
      if (d + offset >= 0) add_weighed<K, S>(d, weights[d], spread[x], sums[d + offset][x]);
    ++k, down += Spreads::pitch, line += width * int(sizeof(T));
  };
  auto turn = [&](bool is_output, bool is_last) {
    spread_row(Spreads::first(ahead), is_output);
    AABLUR_UNROLL
    for (int s = 0; s < S; ++s) store(sums[s], !is_last || s < rows);
    AABLUR_UNROLL
    for (int d = 0; d < open; ++d) AABLUR_UNROLL
    for (int x = 0; x < columns; ++x) sums[d][x] = d + S < open ? sums[d + S][x] : 0;
    rows -= S;
  };
  AABLUR_UNROLL
  for (int o = Spreads::low(0); o < ahead; ++o) spread_row(Spreads::first(o), unsigned(k) < unsigned(height));
  const int whole = rows / S < height - k ? rows / S : height - k;
  AABLUR_NO_UNROLL
  for (const int end = k + whole; k < end;) turn(true, false);
  AABLUR_NO_UNROLL
  while (rows > 0) turn(k < height, true);  // what a plane has left
}

template <class T, int K, int S>
struct BlurBackwardPlanes {
  using Config = SmemBlurBackward<S>;
  static constexpr int phases = 3, X = Config::columns;
  using Spreads = Spread<K, S>;
  using Weights = gpu::Weights<K, S, X, 0>;
  using Thread = gpu::Thread<Config::threads>;

  Planes map;
  const T* x;  // the output's gradient
  T* out;

  static bool serves(const Axis& axis) { return Spreads::serves(axis); }
  static int table_size(const Planes& map) { return Weights(map).all * Spreads::pitch; }
  static int64_t divide(Planes& map) {
    map.strips = Strips(ceil_div(map.result_width, X), map.cut.band, map.cut.segment);
    map.source_offset = int(staged_bytes<float>(table_size(map)));
    map.result_offset = int(map.source_offset +
                            staged_bytes<T>(map.cut.planes * most_rows<BlurBackwardPlanes>(map) * map.source_width));
    return map.result_offset + staged_bytes<T>(int64_t(map.cut.planes) * map.cut.band * map.result_width);
  }
  AABLUR_HOST_DEVICE static Rows read(const Planes& map, int row, int rows) { return Weights::read(map, row, rows); }

  struct State {
    Block block;
    Rows rows;
    const T* from;
    T *to, *source, *result;
    float* weights;

    AABLUR_HOST_DEVICE State(const BlurBackwardPlanes& kernel, uint32_t number, char* shared)
        : block(kernel.map, number), rows(read(kernel.map, block.row, block.rows)) {
      const Planes& map = kernel.map;
      from = at_block(kernel.x, block, rows.first, map.source_height, map.source_width);
      to = at_block(kernel.out, block, block.row, map.result_height, map.result_width);
      weights = reinterpret_cast<float*>(shared);
      source = staged(shared + map.source_offset, from);
      result = staged(shared + map.result_offset, to);
    }
  };
  template <int Phase>
  AABLUR_HOST_DEVICE void run(const State& state, Thread thread) const {
    const Block& block = state.block;
    const Weights weights(map);
    if constexpr (Phase == 0) {
      copy_in(state.source, state.from, block.planes * state.rows.count * map.source_width, thread);
      weights.fill(map, block.row, state.weights, thread);
    } else if constexpr (Phase == 1) {
      const float* across = state.weights + weights.rows * Spreads::pitch;
      map.strips.each(block.planes, block.rows, thread, [&](int plane, int row, int rows, int strip) {
        const int left = strip * X;
        const uint32_t there = bits_below(map.result_width - left);
        T* result = state.result + (plane * block.rows + row) * map.result_width + left;
        spread_strip<T, K, S, X, 0>(map.source_height, map.source_width,
                                    state.source + (plane * map.source_height - state.rows.first) * map.source_width,
                                    state.weights + row / S * Spreads::pitch, across + left / S * Spreads::pitch, left,
                                    block.row + row, rows, [&](const float (&sums)[X], bool is_row) {
                                      store_strip(result, is_row ? there : 0, sums);
                                      result += map.result_width;
                                    });
      });
    } else {
      copy_out(state.to, state.result, block.planes * block.rows * map.result_width, thread);
    }
  }
};

}  // namespace aablur::gpu
