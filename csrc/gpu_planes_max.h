// Max-blur and its adjoint of planes in shared memory (gpu_planes.h).
#pragma once

#include "gpu_best.h"
#include "gpu_planes_blur.h"

namespace aablur::gpu {

// A map of maxima in shared memory: `pool` columns side by side go to a thread, and rows are whole such strips.
constexpr int pool = 4;

// The maxima of windows of Window x Window whose first columns are `pool` neighbours, rolling down `rows` rows. Gives
// every row to store(best, whether it is one of the rows).
template <class Best, class T, int Window, class Store>
AABLUR_HOST_DEVICE inline void pool_strip(const T* source, int pitch, int rows, Store&& store) {
  constexpr int N = pool + Window - 1;
  auto along = [&] {  // the maxima along the width of the next row
    T value[N];
    AABLUR_UNROLL
    for (int j = 0; j < N; ++j) value[j] = source[j];
    source += pitch;
    Best best;
    AABLUR_UNROLL
    for (int c = 0; c < Window; ++c) {
      Pixel<T, pool> candidate;
      AABLUR_UNROLL
      for (int l = 0; l < pool; ++l) candidate.element[l] = value[c + l];
      if (c > 0) best.take(candidate, uint32_t(c));
      else best.start(candidate);
    }
    return best;
  };
  Best history[Window];
  AABLUR_UNROLL
  for (int a = 0; a + 1 < Window; ++a) history[a] = along();
  AABLUR_NO_UNROLL
  for (; rows > 0; rows -= Window) {  // a row takes the place of the one that it makes the last
    AABLUR_UNROLL
    for (int r = 0; r < Window; ++r) {
      history[(r + Window - 1) % Window] = along();
      Best best = history[r];
      AABLUR_UNROLL
      for (int a = 1; a < Window; ++a) best.take(history[(r + a) % Window], uint32_t(a * Window));
      store(best, r < rows);
    }
  }
}

// Codes a byte each, 8 / Bits of which go into one.
template <int Bits>
AABLUR_HOST_DEVICE inline uint8_t packed(const uint8_t* codes) {
  if constexpr (Bits == 2) {  // four products that do not touch, the highest byte of their sum
    return uint8_t(reinterpret_cast<const Pixel<uint32_t, 1>*>(codes)->element[0] * 0x01041040u >> 24);
  } else {
    return uint8_t(codes[0] | codes[1] << 4);
  }
}

// With codes, all of those of the planes, or of a band those of its own rows of maxima: S a row of the result, and the
// last band's of all that are left.
template <class T, int K, int Window, bool WithCodes>
struct MaxBlurPlanes {
  static constexpr int S = 2, phases = 4, X = 2, longest = 16, row_step = 2, enough = 40 << 10,
                       Bits = Window == 2 ? 2 : 4, per_byte = 8 / Bits,
                       over = pool - 1;  // columns that the last strip reads behind the source
  static constexpr bool by_twos = AABLUR_HALVES_BY_TWOS && sizeof(T) == 2;
  using Maxima = std::conditional_t<by_twos, BestOfHalves<T, pool, Bits, WithCodes>, Best<T, pool, Bits, WithCodes>>;

  Planes map;
  const T* x;
  T* out;

  static bool serves(const Axis& axis) { return Fold::serves(axis); }
  static int table_size(const Planes& map) { return Offsets::of<K, S, X>(map).all; }
  // The rows of maxima whose codes belong to rows of the result.
  AABLUR_HOST_DEVICE static Rows own(const Planes& map, int row, int rows) {
    const int end = row + rows < map.result_height ? (row + rows) * S : map.height.size, first = row * S;
    return {first < end ? first : end, first < end ? end - first : 0};
  }
  // The rows of maxima that a block makes, and the rows of the source that it needs.
  AABLUR_HOST_DEVICE static Rows maxima(const Planes& map, int row, int rows) {
    if (!map.is_banded()) return {0, map.height.size};
    const Rows read = rows_read<K, S>(map.height, map.before_height, row, rows);
    const Rows all = WithCodes ? own(map, row, rows) : read;
    const int first = read.first < all.first ? read.first : all.first;
    const int end = read.first + read.count, other = all.first + all.count;
    return {first, (end > other ? end : other) - first};
  }
  AABLUR_HOST_DEVICE static Rows read(const Planes& map, int row, int rows) {
    const Rows all = maxima(map, row, rows);
    return {all.first, all.count + Window - 1};
  }
  // Bytes of codes of a block's planes, from the first on that it owns.
  AABLUR_HOST_DEVICE static Rows code_bytes(const Planes& map, int row, int rows) {
    if (!map.is_banded()) return {0, int(map.codes.plane_bytes)};
    const Rows all = own(map, row, rows);
    const int first = all.first * map.source_width / per_byte,
              end = (all.first + all.count) * map.source_width / per_byte;
    return {first, (row + rows < map.result_height ? end : int(map.codes.plane_bytes)) - first};
  }
  AABLUR_HOST_DEVICE static int pitch(const Planes& map) { return int(map.pool.strips.value()) * pool; }

  static int64_t divide(Planes& map) {
    const int64_t planes = map.cut.planes, rows = most_rows<MaxBlurPlanes>(map), maxima = rows - (Window - 1);
    map.strips = Strips(ceil_div(map.result_width, X), map.cut.band, map.cut.segment);
    map.pool = Strips(ceil_div(map.width.size, pool), maxima, int(ceil_div(maxima, ceil_div(maxima, longest))));
    int64_t most_bytes = 0;
    for (int row = 0; WithCodes && row < map.result_height; row += map.cut.band)
      most_bytes =
          std::max<int64_t>(most_bytes, code_bytes(map, row, std::min(map.cut.band, map.result_height - row)).count);
    most_bytes *= planes;
    map.source_room = int(room_for<int>(table_size(map)));
    map.result_room = map.source_room;  // where the source was
    map.packed_room = int(map.result_room + room_for<T>(planes * map.cut.band * map.result_width));
    map.pooled_room =
        int(std::max(map.packed_room + room_for<uint8_t>(most_bytes),
                     map.source_room + room_for<T>((planes * rows + Window - 1) * map.source_width + over)));
    map.codes_room = int(map.pooled_room + room_for<T>(planes * maxima * pitch(map)));
    return map.codes_room + room_for<uint8_t>(most_bytes * per_byte);
  }

  struct State {
    Block block;
    Rows rows, bytes;
    const T* from;
    T *to, *source, *pooled, *result;
    int* offsets;
    uint8_t *codes_to, *codes, *packed;

    AABLUR_HOST_DEVICE State(const MaxBlurPlanes& kernel, uint32_t number, char* shared)
        : block(kernel.map, number), rows(maxima(kernel.map, block.row, block.rows)) {
      const Planes& map = kernel.map;
      from = at_block(kernel.x, block, rows.first, map.source_height, map.source_width);
      to = at_block(kernel.out, block, block.row, map.result_height, map.result_width);
      offsets = reinterpret_cast<int*>(shared);
      source = staged(shared + map.source_room, from);
      result = staged(shared + map.result_room, to);
      pooled = reinterpret_cast<T*>(shared + map.pooled_room);
      if constexpr (WithCodes) {
        bytes = code_bytes(map, block.row, block.rows);
        codes_to = map.codes.data + int64_t(block.plane) * map.codes.plane_bytes + bytes.first;
        codes = reinterpret_cast<uint8_t*>(shared + map.codes_room);
        packed = staged(shared + map.packed_room, codes_to);
      }
    }
  };
  template <int Phase>
  AABLUR_HOST_DEVICE void run(const State& state, int thread) const {
    const Block& block = state.block;
    const Offsets offsets = Offsets::of<K, S, X>(map);
    constexpr int bytes = int(sizeof(T));
    if constexpr (Phase == 0) {
      copy_in(state.source, state.from, block.planes * (state.rows.count + Window - 1) * map.source_width, thread);
      offsets.fill(map, block.row * S - map.before_height, state.rows, pitch(map) * bytes, bytes, state.offsets,
                   thread);
      if constexpr (WithCodes) {  // what lies between the rows of maxima is zero
        using Vector = Pixel<uint32_t, 4>;
        Vector* codes = reinterpret_cast<Vector*>(state.codes);
        AABLUR_NO_UNROLL
        for (int v = thread; v * 16 < block.planes * state.bytes.count * per_byte; v += block_threads)
          codes[v] = Vector{};
      }
    } else if constexpr (Phase == 1) {
      find_maxima(state, thread);
    } else if constexpr (Phase == 2) {
      blur_planes<T, K, S, X>(map, block, state.pooled, state.rows.count * pitch(map), state.offsets,
                              state.offsets + offsets.rows, state.result, thread);
      if constexpr (WithCodes) pack(state, thread);
    } else {
      copy_out(state.to, state.result, block.planes * block.rows * map.result_width, thread);
      if constexpr (WithCodes) copy_out(state.codes_to, state.packed, block.planes * state.bytes.count, thread);
    }
  }
  AABLUR_HOST_DEVICE void pack(const State& state, int thread) const {
    constexpr int at_once = 4;
    const int count = state.block.planes * state.bytes.count;
    AABLUR_NO_UNROLL
    for (int i = thread; i < count; i += at_once * block_threads) {
      AABLUR_UNROLL
      for (int u = i; u < i + at_once * block_threads; u += block_threads)
        if (u < count) state.packed[u] = packed<Bits>(state.codes + u * per_byte);
    }
  }
  AABLUR_HOST_DEVICE void find_maxima(const State& state, int thread) const {
    const Rows rows = state.rows, all = map.is_banded() ? own(map, state.block.row, state.block.rows) : rows;
    map.pool.each(state.block.planes, rows.count, thread, [&](int plane, int row, int count, int strip) {
      const int left = strip * pool;
      const T* source = state.source + (plane * (rows.count + Window - 1) + row) * map.source_width + left;
      Pixel<T, pool>* to =
          reinterpret_cast<Pixel<T, pool>*>(state.pooled + (plane * rows.count + row) * pitch(map) + left);
      int p = rows.first + row - all.first;
      const uint32_t there = bits_below(map.width.size - left);
      [[maybe_unused]] uint8_t* codes = nullptr;
      if constexpr (WithCodes) codes = state.codes + plane * state.bytes.count * per_byte + p * map.source_width + left;
      pool_strip<Maxima, T, Window>(source, map.source_width, count, [&](const Maxima& best, bool is_row) {
        if (is_row) *to = best.pixel();
        to += map.pool.strips.value();
        if constexpr (WithCodes) {
          const uint32_t own = is_row && unsigned(p) < unsigned(all.count) ? there : 0;
          ++p;
          AABLUR_UNROLL
          for (int l = 0; l < pool; ++l)
            if (own >> l & 1) codes[l] = best.code(l);
          codes += map.source_width;
        }
      });
    });
  }
};

// The adjoint at pooled positions, each sent to the element that its code names. The maps are the gradients'.
template <class T, int K, int Window>
struct MaxBackwardPlanes {
  static constexpr int S = 2, phases = 3, X = 4, longest = 32, row_step = 2, enough = 36 << 10, halo = Window - 1,
                       columns = X + halo, Bits = Window == 2 ? 2 : 4;
  using Spreads = Spread<K, S>;
  using Weights = gpu::Weights<K, S, X, halo>;

  Planes map;
  const T* x;  // the output's gradient
  T* out;

  static bool serves(const Axis& axis) { return Spreads::serves(axis); }
  static int table_size(const Planes& map) { return Weights(map).all * Spreads::pitch; }
  AABLUR_HOST_DEVICE static Rows read(const Planes& map, int row, int rows) { return Weights::read(map, row, rows); }
  // The bytes of codes that rows of the result need of a plane.
  AABLUR_HOST_DEVICE static Rows code_bytes(const Planes& map, int row, int rows) {
    const int all = int(map.codes.plane_bytes);
    if (!map.is_banded()) return {0, all};
    const int first = (row > halo ? row - halo : 0) * map.result_width * Bits / 8;
    const int end = ((row + rows) * map.result_width * Bits + 7) / 8;
    return {first, (end < all ? end : all) - first};
  }
  static int64_t divide(Planes& map) {
    map.strips = Strips(ceil_div(map.result_width, X), map.cut.band, map.cut.segment);
    const int64_t planes = map.cut.planes;
    int64_t most_bytes = 0;
    for (int row = 0; row < map.result_height; row += map.cut.band)
      most_bytes =
          std::max<int64_t>(most_bytes, code_bytes(map, row, std::min(map.cut.band, map.result_height - row)).count);
    constexpr int64_t over = 8;  // codes are read by words
    map.source_room = int(room_for<float>(table_size(map)));
    map.codes_room = int(map.source_room + room_for<T>(planes * most_rows<MaxBackwardPlanes>(map) * map.source_width));
    map.result_room = int(map.codes_room + room_for<uint8_t>(planes * most_bytes + over));
    return map.result_room + room_for<T>(planes * map.cut.band * map.result_width);
  }

  struct State {
    Block block;
    Rows rows, bytes;
    const T* from;
    T *to, *source, *result;
    float* weights;
    const uint8_t* codes_from;
    uint8_t* codes;
    const char* shared;

    AABLUR_HOST_DEVICE State(const MaxBackwardPlanes& kernel, uint32_t number, char* shared)
        : block(kernel.map, number),
          rows(read(kernel.map, block.row, block.rows)),
          bytes(code_bytes(kernel.map, block.row, block.rows)),
          shared(shared) {
      const Planes& map = kernel.map;
      from = at_block(kernel.x, block, rows.first, map.source_height, map.source_width);
      to = at_block(kernel.out, block, block.row, map.result_height, map.result_width);
      codes_from = map.codes.data + int64_t(block.plane) * map.codes.plane_bytes + bytes.first;
      weights = reinterpret_cast<float*>(shared);
      source = staged(shared + map.source_room, from);
      codes = const_cast<uint8_t*>(staged(shared + map.codes_room, codes_from));
      result = staged(shared + map.result_room, to);
    }
  };
  template <int Phase>
  AABLUR_HOST_DEVICE void run(const State& state, int thread) const {
    const Block& block = state.block;
    const Weights weights(map);
    if constexpr (Phase == 0) {
      copy_in(state.source, state.from, block.planes * state.rows.count * map.source_width, thread);
      copy_in(state.codes, state.codes_from, block.planes * state.bytes.count, thread);
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
    const int first = state.block.row + row;
    const uint32_t there = bits_below(map.result_width - left);
    uint32_t none[columns];  // what makes codes of columns without maxima those of no position
    AABLUR_UNROLL
    for (int b = 0; b < columns; ++b) {
      none[b] = unsigned(left - halo + b) < unsigned(map.width.size) ? 0 : 16;
      pin(none[b]);
    }
    T* result = state.result + (plane * state.block.rows + row) * map.result_width + left;
    int p = first - Weights::above;  // row of maxima
    const int begin = first > halo ? first - halo : 0;
    // The bit of shared memory where its codes begin.
    int bit =
        int(reinterpret_cast<const char*>(state.codes) - state.shared + plane * state.bytes.count - state.bytes.first) *
            8 +
        (p * map.result_width + left - halo) * Bits;
    float sums[Window][X] = {};  // of the rows of the result that windows from row p hold
    spread_strip<T, K, S, X, halo>(map.source_height, map.source_width,
                                   state.source + (plane * map.source_height - state.rows.first) * map.source_width,
                                   down, across, left, p, rows + Weights::above, [&](const float (&spread)[columns]) {
                                     if (unsigned(p - begin) < unsigned(map.height.size - begin))
                                       select(fields(state.shared, bit), spread, none, sums);
                                     if (p >= first) {
                                       store_strip(result, there, sums[0]);
                                       result += map.result_width;
                                     }
                                     AABLUR_UNROLL
                                     for (int a = 0; a < Window; ++a) AABLUR_UNROLL
                                     for (int x = 0; x < X; ++x) sums[a][x] = a + 1 < Window ? sums[a + 1][x] : 0;
                                     ++p, bit += map.result_width * Bits;
                                   });
  }
  // The codes that begin at a bit.
  AABLUR_HOST_DEVICE static uint32_t fields(const char* shared, int bit) {
    static_assert(columns * Bits <= 32);
    const auto words = reinterpret_cast<const Pixel<uint32_t, 1>*>(shared) + (bit >> 5);
    const uint32_t low = words[0].element[0], high = words[1].element[0];
#if defined(__CUDA_ARCH__)
    return __funnelshift_r(low, high, uint32_t(bit));
#else
    return uint32_t((uint64_t(high) << 32 | low) >> (bit & 31));
#endif
  }
  AABLUR_HOST_DEVICE static void select(uint32_t codes, const float (&spread)[columns], const uint32_t (&none)[columns],
                                        float (&sums)[Window][X]) {
    AABLUR_UNROLL
    for (int b = 0; b < columns; ++b) {
      const uint32_t position = 1u << ((codes >> (b * Bits) & ((1 << Bits) - 1)) | none[b]);
      AABLUR_UNROLL
      for (int c = 0; c < Window * Window; ++c) {
        const int x = b - halo + c % Window;
        if (x < 0 || x >= X) continue;
        if (position >> c & 1) sums[c / Window][x] += spread[b];
      }
    }
  }
};

}  // namespace aablur::gpu
