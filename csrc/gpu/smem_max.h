// Max-blur and its adjoint of planes in shared memory; gpu/smem_planes.h draws how data flows. In shared memory stand,
// one after the other:
//
//   forward:  weights | source | codes, with training | result
//   backward: weights | source (the output's gradient) | codes | result
//
// Rows of codes begin with a byte, so that strips of whole bytes have theirs to themselves. Forward, a thread rolls
// down rows of maxima, of which none is stored; backward, down rows of the adjoint at pooled positions, each sent to
// the element that its code names.
#pragma once

#include "gpu/running_argmax.h"
#include "gpu/smem_blur.h"

namespace aablur::gpu {

// A thread makes the maxima that X results of a row read, of rows that roll down its segment: none is stored, and those
// at the edge of two strips or segments are made twice. A border is but other weights. A strip owns X * S columns of
// maxima, whose codes it writes; a block's rows own S rows of maxima each.
template <class T, int K, int Window, bool WithCodes>
struct MaxBlurPlanes {
  using Config = SmemMax<T>;
  static constexpr int S = 2, phases = 3, X = Config::columns, Bits = Window == 2 ? 2 : 4;
  using Spreads = Spread<K, S>;
  static constexpr int reach = Spreads::reach, kept = reach - S;  // rows that a row of results reads, and shares
  static constexpr int ahead = -Spreads::first(0), own = X * S;   // maxima before the first own one
  static constexpr int spare = ahead % 2;                         // lanes before those: own ones begin with a pair
  static constexpr int N = (X - 1) * S + reach, lanes = (spare + N + 1) / 2 * 2, columns = lanes + Window - 1;
  static constexpr int over = columns + 3;  // elements behind the source that are read along with words
  using Maxima = RunningArgmax<T, lanes, Bits, WithCodes, spare + ahead, own>;
  static_assert(own * Bits % 8 == 0 && own * Bits <= 32 && kept >= ahead);
  using Thread = gpu::Thread<Config::threads>;

  Planes map;
  const T* x;
  T* out;

  static bool serves(const Axis& axis) {
    return Spreads::serves(axis) && (!WithCodes || axis.out() * S >= axis.pooled());
  }
  AABLUR_HOST_DEVICE static int table_size(const Planes& map) {
    return (map.cut.band + int(map.strips.strips.value()) * X) * Spreads::pitch;
  }
  // The rows of maxima whose codes belong to rows of the result.
  AABLUR_HOST_DEVICE static Rows owned(const Planes& map, int row, int rows) {
    const int first = row * S, end = first + rows * S < map.height.size ? first + rows * S : map.height.size;
    return {first, first < end ? end - first : 0};
  }
  AABLUR_HOST_DEVICE static Rows read(const Planes& map, int row, int rows) {
    if (!map.banded) return {0, map.source_height};
    const int top = Spreads::first(row), bottom = Spreads::first(row + rows - 1) + reach;
    const int end = bottom < map.height.size ? bottom : map.height.size, first = top > 0 ? top < end ? top : end : 0;
    return {first, end - first + Window - 1};
  }
  AABLUR_HOST_DEVICE static int code_bytes(const Planes& map, int row, int rows) {
    return owned(map, row, rows).count * int(map.codes.packing.row_bytes);
  }
  static int64_t divide(Planes& map) {
    const int64_t planes = map.cut.planes;
    map.strips = Strips(ceil_div(map.result_width, X), map.cut.band, map.cut.segment);
    map.source_offset = int(staged_bytes<float>(table_size(map)));
    map.codes_offset =
        int(map.source_offset + staged_bytes<T>(planes * most_rows<MaxBlurPlanes>(map) * map.source_width + over));
    map.result_offset =
        int(map.codes_offset + (WithCodes ? staged_bytes<uint8_t>(planes * code_bytes(map, 0, map.cut.band)) : 0));
    return map.result_offset + staged_bytes<T>(planes * map.cut.band * map.result_width);
  }

  struct State {
    Block block;
    Rows rows;
    const T* from;
    T *to, *source, *result;
    float* weights;
    uint8_t *codes_to, *codes;
    char* shared;

    AABLUR_HOST_DEVICE State(const MaxBlurPlanes& kernel, uint32_t number, char* shared)
        : block(kernel.map, number), rows(read(kernel.map, block.row, block.rows)), shared(shared) {
      const Planes& map = kernel.map;
      from = at_block(kernel.x, block, rows.first, map.source_height, map.source_width);
      to = at_block(kernel.out, block, block.row, map.result_height, map.result_width);
      weights = reinterpret_cast<float*>(shared);
      source = staged(shared + map.source_offset, from);
      result = staged(shared + map.result_offset, to);
      if constexpr (WithCodes) {
        const Packing& packing = map.codes.packing;
        codes_to = map.codes.data + block.plane * packing.plane_bytes + block.row * S * packing.row_bytes;
        codes = staged(shared + map.codes_offset, codes_to);
      }
    }
  };
  template <int Phase>
  AABLUR_HOST_DEVICE void run(const State& state, Thread thread) const {
    const Block& block = state.block;
    if constexpr (Phase == 0) {
      const int count = block.planes * state.rows.count * map.source_width;
      copy_in(state.source, state.from, count, thread);
      clear(state.weights + table_size(map), state.source, thread);
      clear(state.source + count, state.source + count + over, thread);
      fill_weights<K, S>(map, {block.row, map.cut.band}, {0, int(map.strips.strips.value()) * X}, map.result_height,
                         map.result_width, state.weights, thread);
    } else if constexpr (Phase == 1) {
      map.strips.each(block.planes, block.rows, thread,
                      [&](int plane, int row, int rows, int strip) { blur(state, plane, row, rows, strip * X); });
    } else {
      copy_out(state.to, state.result, block.planes * block.rows * map.result_width, thread);
      if constexpr (WithCodes)
        copy_out(state.codes_to, state.codes, block.planes * code_bytes(map, block.row, block.rows), thread);
    }
  }
  // Results from row `row` of the block and column `left` on.
  AABLUR_HOST_DEVICE void blur(const State& state, int plane, int row, int rows, int left) const {
    const float *down = state.weights + row * Spreads::pitch,
                *across = state.weights + (map.cut.band + left) * Spreads::pitch;
    float weight[X][reach];
    AABLUR_UNROLL
    for (int x = 0; x < X; ++x) AABLUR_UNROLL
    for (int d = 0; d < reach; ++d) weight[x][d] = across[x * Spreads::pitch + d];
    const int first_column = left * S - ahead, height = map.height.size;
    uint32_t keep[N];
    AABLUR_UNROLL
    for (int j = 0; j < N; ++j) {
      keep[j] = Maxima::keeping(spare + j, unsigned(first_column + j) < unsigned(map.width.size));
      pin(keep[j]);
    }
    const uint32_t there = bits_below(map.result_width - left);
    T* result = state.result + (plane * state.block.rows + row) * map.result_width + left;

    const int top = (state.block.row + row) * S;
    int p = top - ahead;  // row of maxima
    const int pitch = map.source_width * int(sizeof(T)), last = state.rows.first + state.rows.count - 1;
    // A strip behind the last column has no maxima of its own: it reads what follows the row, whatever it is.
    const int from_column = first_column - spare < map.source_width ? first_column - spare : map.source_width;
    const uint32_t at = shared_address(
        state.source + (plane * state.rows.count - state.rows.first) * map.source_width + from_column, state.shared);
    [[maybe_unused]] uint8_t* codes = nullptr;
    [[maybe_unused]] uint32_t code_mask = 0, code_bytes = 0;
    [[maybe_unused]] int own_end = 0;
    if constexpr (WithCodes) {
      const int row_bytes = int(map.codes.packing.row_bytes), bits = (map.width.size - left * S) * Bits;
      codes = state.codes + (plane * owned(map, state.block.row, state.block.rows).count + row * S) * row_bytes +
              left * S * Bits / 8;
      code_mask = bits_below(bits);
      code_bytes = bits_below((bits + 7) / 8);
      own_end = top + rows * S < height ? top + rows * S : height;
    }
    Maxima history[Window];            // of rows of the source along the width
    auto along_width = [&](int row) {  // where there is none, of another
      row = row < last ? row : last;
      const Neighbours<T, columns> neighbours(state.shared, at + row * pitch);
      Maxima maxima;
      AABLUR_UNROLL
      for (int c = 0; c < Window; ++c) {
        const auto candidate = neighbours.template pixel<lanes>(c);
        if (c > 0) maxima.take(candidate, uint32_t(c));
        else maxima.start(candidate);
      }
      return maxima;
    };
    AABLUR_UNROLL
    for (int a = 0; a + 1 < Window; ++a) history[a] = along_width(p + a > state.rows.first ? p + a : state.rows.first);
    // Row q of maxima, blurred along the width: of any maxima where there is none.
    auto next = [&](int q, float (&sums)[X]) {
      const int row = p + Window - 1;
      history[Window - 1] = along_width(q < kept && row < state.rows.first ? state.rows.first : row);
      Maxima maxima = history[0];
      AABLUR_UNROLL
      for (int a = 1; a < Window; ++a) maxima.take(history[a], uint32_t(a * Window));
      AABLUR_UNROLL
      for (int a = 0; a + 1 < Window; ++a) history[a] = history[a + 1];
      if constexpr (WithCodes)
        if (q >= ahead) {
          store_codes(codes, maxima.codes() & code_mask, p < own_end ? code_bytes : 0);
          codes += map.codes.packing.row_bytes;
        }
      float value[N];
      AABLUR_UNROLL
      for (int j = 0; j < N; ++j) value[j] = maxima.kept(spare + j, keep[j]);
      AABLUR_UNROLL
      for (int x = 0; x < X; ++x) {
        float sum = 0;
        AABLUR_UNROLL
        for (int d = 0; d < reach; ++d) add_weighed<K, S>(d, weight[x][d], value[x * S + d], sum);
        sums[x] = sum;
      }
      ++p;
    };
    float blurred[reach][X];
    AABLUR_UNROLL
    for (int q = 0; q < kept; ++q) next(q, blurred[q]);
    AABLUR_NO_UNROLL
    for (; rows > 0; --rows, down += Spreads::pitch) {
      AABLUR_UNROLL
      for (int q = kept; q < reach; ++q) next(q, blurred[q]);
      float weights[Spreads::pitch], sums[X] = {};
      load_weights<K, S>(down, weights);
      AABLUR_UNROLL
      for (int d = 0; d < reach; ++d)
        if (unsigned(p - reach + d) < unsigned(height)) {
          AABLUR_UNROLL
          for (int x = 0; x < X; ++x) add_weighed<K, S>(d, weights[d], blurred[d][x], sums[x]);
        }
      store_strip(result, there, sums);
      result += map.result_width;
      AABLUR_UNROLL
      for (int q = 0; q < kept; ++q) AABLUR_UNROLL
      for (int x = 0; x < X; ++x) blurred[q][x] = blurred[q + S][x];
    }
  }
  // The bytes of a word that `bytes` has bits of.
  AABLUR_HOST_DEVICE static void store_codes(uint8_t* to, uint32_t word, uint32_t bytes) {
    AABLUR_UNROLL
    for (int byte = 0; byte < own * Bits / 8; ++byte)
      if (bytes >> byte & 1) to[byte] = uint8_t(word >> (8 * byte));
  }
};

// The adjoint at pooled positions, each sent to the element that its code names. The maps are the gradients'.
template <class T, int K, int Window>
struct MaxBackwardPlanes {
  using Config = SmemMaxBackward<T, Window>;
  static constexpr int S = 2, phases = 3, X = Config::columns, halo = Window - 1, columns = X + halo,
                       Bits = Window == 2 ? 2 : 4;
  using Spreads = Spread<K, S>;
  using Weights = gpu::Weights<K, S, X, halo>;
  static constexpr int over = 8;  // bytes: codes are read by words
  using Thread = gpu::Thread<Config::threads>;

  Planes map;
  const T* x;  // the output's gradient
  T* out;

  static bool serves(const Axis& axis) { return Spreads::serves(axis); }
  static int table_size(const Planes& map) { return Weights(map).all * Spreads::pitch; }
  AABLUR_HOST_DEVICE static Rows read(const Planes& map, int row, int rows) { return Weights::read(map, row, rows); }
  // The rows of codes that rows of the result need.
  AABLUR_HOST_DEVICE static Rows code_rows(const Planes& map, int row, int rows) {
    if (!map.banded) return {0, map.height.size};
    const int first = row > halo ? row - halo : 0, end = row + rows < map.height.size ? row + rows : map.height.size;
    return {first, end > first ? end - first : 0};
  }
  static int64_t divide(Planes& map) {
    map.strips = Strips(ceil_div(map.result_width, X), map.cut.band, map.cut.segment);
    const int64_t planes = map.cut.planes, code_rows = std::min(map.cut.band + halo, map.height.size);
    map.source_offset = int(staged_bytes<float>(table_size(map)));
    map.codes_offset =
        int(map.source_offset + staged_bytes<T>(planes * most_rows<MaxBackwardPlanes>(map) * map.source_width));
    map.result_offset =
        int(map.codes_offset + staged_bytes<uint8_t>(planes * code_rows * map.codes.packing.row_bytes + over));
    return map.result_offset + staged_bytes<T>(planes * map.cut.band * map.result_width);
  }

  struct State {
    Block block;
    Rows rows, code_rows;
    const T* from;
    T *to, *source, *result;
    float* weights;
    const uint8_t* codes_from;
    uint8_t* codes;
    const char* shared;

    AABLUR_HOST_DEVICE State(const MaxBackwardPlanes& kernel, uint32_t number, char* shared)
        : block(kernel.map, number),
          rows(read(kernel.map, block.row, block.rows)),
          code_rows(MaxBackwardPlanes::code_rows(kernel.map, block.row, block.rows)),
          shared(shared) {
      const Planes& map = kernel.map;
      const Packing& packing = map.codes.packing;
      from = at_block(kernel.x, block, rows.first, map.source_height, map.source_width);
      to = at_block(kernel.out, block, block.row, map.result_height, map.result_width);
      codes_from = map.codes.data + block.plane * packing.plane_bytes + code_rows.first * packing.row_bytes;
      weights = reinterpret_cast<float*>(shared);
      source = staged(shared + map.source_offset, from);
      codes = const_cast<uint8_t*>(staged(shared + map.codes_offset, codes_from));
      result = staged(shared + map.result_offset, to);
    }
  };
  template <int Phase>
  AABLUR_HOST_DEVICE void run(const State& state, Thread thread) const {
    const Block& block = state.block;
    const Weights weights(map);
    if constexpr (Phase == 0) {
      const int count = block.planes * state.rows.count * map.source_width,
                code_bytes = block.planes * state.code_rows.count * int(map.codes.packing.row_bytes);
      copy_in(state.source, state.from, count, thread);
      copy_in(state.codes, state.codes_from, code_bytes, thread);
      clear(state.source + count, state.codes, thread);
      clear(state.codes + code_bytes, state.codes + code_bytes + over, thread);
      weights.fill(map, block.row, state.weights, thread);
    } else if constexpr (Phase == 1) {
      const float* across = state.weights + weights.rows * Spreads::pitch;
      map.strips.each(block.planes, block.rows, thread, [&](int plane, int row, int rows, int strip) {
        const int left = strip * X;
        gather(state, state.weights + row / S * Spreads::pitch, across + left / S * Spreads::pitch, plane, row, rows,
               left);
      });
    } else {
      copy_out(state.to, state.result, block.planes * block.rows * map.result_width, thread);
    }
  }
  // Results from row `row` of the block and column `left` on.
  AABLUR_HOST_DEVICE void gather(const State& state, const float* down, const float* across, int plane, int row,
                                 int rows, int left) const {
    const int first = state.block.row + row, row_bits = int(map.codes.packing.row_bytes) * 8;
    const uint32_t there = bits_below(map.result_width - left);
    // The first bit of the fields of columns that have maxima.
    const uint32_t before = left < halo ? bits_below((halo - left) * Bits) : 0;
    const uint32_t held = bits_below((map.width.size - left + halo) * Bits) & ~before & repeated<columns, Bits>(1);
    // Rows of the adjoint above the first: windows from there hold elements of it. None are above a plane. Rows come by
    // S: of one more than the halo any codes will do.
    const int above = first > 0 ? Weights::above : 0;
    down += (Weights::above - above) / S * Spreads::pitch;
    int p = first - above;  // row of maxima
    T* result = state.result + (plane * state.block.rows + row - above) * map.result_width + left;
    // The bit of shared memory where its codes begin.
    int bit = int(reinterpret_cast<const char*>(state.codes) - state.shared) * 8 +
              (plane * state.code_rows.count + p - state.code_rows.first) * row_bits + (left - halo) * Bits;
    float sums[Window][X] = {};  // of the rows of the result that windows from row p hold
    auto store = [&](const float (&spread)[columns], bool is_row) {
      if (p < map.height.size) {
        select(fields(state.shared, bit), held, spread, sums);
      } else {
        AABLUR_UNROLL
        for (int x = 0; x < X; ++x) sums[halo][x] = 0;
      }
      store_strip(result, is_row && p >= first ? there : 0, sums[0]);
      result += map.result_width;
      AABLUR_UNROLL
      for (int a = 0; a < halo; ++a) AABLUR_UNROLL
      for (int x = 0; x < X; ++x) sums[a][x] = sums[a + 1][x];
      ++p, bit += row_bits;
    };
    spread_strip<T, K, S, X, halo>(map.source_height, map.source_width,
                                   state.source + (plane * map.source_height - state.rows.first) * map.source_width,
                                   down, across, left, p, rows + above, store);
  }
  // The codes that begin at a bit.
  AABLUR_HOST_DEVICE static uint32_t fields(const char* shared, int bit) {
    static_assert(columns * Bits <= 32);
    const auto words = reinterpret_cast<const Pixel<uint32_t, 1>*>(shared) + (bit >> 5);
    return bits_from(words[0].element[0], words[1].element[0], uint32_t(bit));
  }
  AABLUR_HOST_DEVICE static void select(uint32_t codes, uint32_t held, const float (&spread)[columns],
                                        float (&sums)[Window][X]) {
    AABLUR_UNROLL
    for (int c = 0; c < Window * Window; ++c) {
      uint32_t found = held;  // the first bit of each field that has code c
      AABLUR_UNROLL
      for (int i = 0; i < Bits; ++i) found &= c >> i & 1 ? codes >> i : ~(codes >> i);
      AABLUR_UNROLL
      for (int b = 0; b < columns; ++b) {
        const int x = b - halo + c % Window;
        if (x < 0 || x >= X) continue;
        const bool is_found = found & 1u << (b * Bits);
        if (c == halo * Window) sums[halo][x] = is_found ? spread[b] : 0;  // of this row the first, and of all elements
        else if (is_found) sums[c / Window][x] += spread[b];
      }
    }
  }
};

}  // namespace aablur::gpu
