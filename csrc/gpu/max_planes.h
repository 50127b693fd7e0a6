// Max-blur and its adjoint of dense planes: gpu/band_planes.h with windows before or behind.
//
//   forward:  shared: source --words of a strip--> registers: maxima of a row along the width --> maxima, codes
//             --codes--> shared --> global codes; maxima --weights--> as the blur
//   backward: as the blur's transpose: the gradient of a row of maxima; shared: codes --> the element of each window
//             that takes it --sums of the last `Window` rows--> shared: result
//
// Rows of codes begin with a byte, so that strips of whole bytes have theirs to themselves; a block's groups of rows
// own the first rows of maxima that they read.
#pragma once

#include "gpu/band_planes.h"
#include "gpu/max_tiles.h"

namespace aablur::gpu {

AABLUR_HOST_DEVICE inline uint32_t bits_below(int count) {
  return count <= 0 ? 0 : count < 32 ? (1u << count) - 1 : ~0u;
}

template <class T, class Form, int Window>
using MaxBlurPlanesBase = PlaneBands<T, Form, SmemMax<T, Form, Window>, 0, SmemMax<T, Form, Window>::columns,
                                     SmemMax<T, Form, Window>::columns, 0>;

template <class T, class Form, int Window, bool WithCodes>
struct MaxBlurPlanes : MaxBlurPlanesBase<T, Form, Window> {
  using Base = MaxBlurPlanesBase<T, Form, Window>;
  using Base::height, Base::width, Base::cut, Base::G, Base::N, Base::Y, Base::reach, Base::kept, Base::halves,
      Base::source_size, Base::result_size;
  using typename Base::Tables, typename Base::Span, typename Base::Thread;
  static constexpr bool has_codes = WithCodes, padded = Window == 3;
  static constexpr int S = Form::down, Bits = Window == 2 ? 2 : 4, fields = G * S;  // maxima that a strip owns
  static constexpr int lanes = (N + halves - 1) / halves * halves, M = lanes + Window - 1;
  static constexpr int over = Base::read_along(M);
  static_assert(Form::up == 1 && reach >= S && fields * Bits % 8 == 0 && fields * Bits <= 32 && lanes * Bits <= 64);
  using Argmax = RunningArgmax<T, lanes, Bits, WithCodes>;

  int window_padding[2] = {};
  Codes codes;

  bool divide(const Shape& shape, int64_t count, int64_t& shared_bytes) {
    for (int a = 0; a < 2; ++a) {
      const Axis& axis = shape.axis[1 + a];
      window_padding[a] = int(axis.window_padding), source_size[a] = int(axis.size), result_size[a] = int(axis.out());
    }
    this->cover(height.groups, 0);
    if (WithCodes) {
      // Every maximum that has a code belongs to a strip: its own columns are among those that it reads.
      if (-width.first > N - fields) return false;
      this->row_groups = std::max(height.groups, int(ceil_div(height.sources - height.first - kept, S)));
      this->column_groups = std::max(this->column_groups, int(ceil_div(width.sources, S)));
    }
    shared_bytes = Base::divide(*this, count);
    return shared_bytes > 0;
  }
  void align() { Base::align(width.first - window_padding[1], M); }
  // Of maxima: the rows that groups of rows read, and those whose codes are theirs.
  AABLUR_HOST_DEVICE Span read(int group, int groups) const {
    return Base::within(group * S + height.first, (group + groups - 1) * S + height.first + reach, height.sources);
  }
  AABLUR_HOST_DEVICE Span owned(int group, int groups) const {
    const int end = group + groups < this->row_groups ? (group + groups) * S + height.first : height.sources;
    return Base::within(group * S + height.first, end, height.sources);
  }
  AABLUR_HOST_DEVICE Span source_rows(int group, int groups) const {
    if (this->is_whole()) return {0, source_size[0]};
    const Span rows = read(group, groups);
    return Base::within(rows.begin - window_padding[0], rows.end - window_padding[0] + Window - 1, source_size[0]);
  }
  AABLUR_HOST_DEVICE Span made(int group, int groups) const {
    return Base::within(group, group + groups, height.results);
  }
  // Tables | zeros | source | codes | result.
  int64_t lay_out() {
    const int64_t rows = std::min<int64_t>((cut.band - 1) * S + reach + Window - 1, source_size[0]),
                  code_rows =
                      std::min<int64_t>(cut.band * S + (this->is_whole() ? height.sources : kept), height.sources);
    this->source_offset = int(this->table_bytes() + staged_bytes<T>(source_size[1] + 2 * over));
    this->codes_offset =
        int(this->source_offset +
            staged_bytes<T>(cut.planes * (this->is_whole() ? source_size[0] : rows) * source_size[1] + over));
    const int64_t row_bytes = ceil_div(width.sources * Bits, 8);
    this->result_offset =
        int(this->codes_offset + (WithCodes ? staged_bytes<uint8_t>(cut.planes * code_rows * row_bytes) : 0));
    return this->result_offset + staged_bytes<T>(cut.planes * std::min(cut.band, height.results) * width.results);
  }

#if defined(__CUDACC__)
  __device__ void run(char* shared, uint32_t number) const {
    const Thread thread{int(threadIdx.x)};
    const typename Base::Block block(*this, number);
    const Span rows = source_rows(block.group, block.groups), made = this->made(block.group, block.groups),
               owned = this->owned(block.group, block.groups);
    T* source = this->copy_source(shared, block, rows, over, thread);
    clear(shared + this->table_bytes(), source, thread);
    T* to = this->result_of(block, made);
    T* result = staged(shared + this->result_offset, to);
    uint8_t *codes_to = nullptr, *staged_codes = nullptr;
    const int row_bytes = int(codes.packing.row_bytes);
    if constexpr (WithCodes) {
      codes_to = codes.data + block.plane * codes.packing.plane_bytes + owned.begin * row_bytes;
      staged_codes = staged(shared + this->codes_offset, codes_to);
    }
    this->fill(shared, block, thread);
    finish_copies();
    __syncthreads();
    this->with_vectors([&](auto by_vectors) {
      this->strips.each(block.planes, block.groups, thread, [&](int p, int first, int some, int strip) {
        blur<by_vectors>(Tables(*this, shared, p), shared, source + p * (rows.count() * source_size[1]), rows,
                         result + (p * made.count() - made.begin) * result_size[1],
                         WithCodes ? staged_codes + (p * owned.count() - owned.begin) * row_bytes : nullptr,
                         block.group + first, some, strip * G);
      });
    });
    __syncthreads();
    copy_out(to, result, block.planes * made.count() * result_size[1], thread);
    if constexpr (WithCodes) copy_out(codes_to, staged_codes, block.planes * owned.count() * row_bytes, thread);
  }

  // `some` groups of rows from `group` on, of a strip. Row `rows.begin` begins at source, row 0 at result and
  // row_codes.
  template <bool ByVectors>
  __device__ void blur(const Tables& tables, const char* shared, const T* source, Span rows, T* result,
                       uint8_t* row_codes, int group, int some, int left) const {
    float across[G][Form::entries];
    this->weigh_columns(tables, left, across);
    const int first = left * S + width.first;  // column of maxima
    uint32_t keep[lanes / halves];             // those that there are
    [[maybe_unused]] uint32_t lower[M / halves + 1];
    AABLUR_UNROLL
    for (int w = 0; w < lanes / halves; ++w) {
      keep[w] = 0;
      AABLUR_UNROLL
      for (int h = 0; h < halves; ++h)
        if (unsigned(first + w * halves + h) < unsigned(width.sources))
          keep[w] |= halves == 1 ? ~0u : 0xffffu << (16 * h);
      pin(keep[w]);
    }
    if constexpr (padded) {
      AABLUR_UNROLL
      for (int w = 0; w < (M + halves - 1) / halves; ++w) {
        lower[w] = 0;
        AABLUR_UNROLL
        for (int h = 0; h < halves; ++h)
          if (unsigned(first - window_padding[1] + w * halves + h) >= unsigned(source_size[1]))
            lower[w] |= halves == 1 ? ~0u : 0xffffu << (16 * h);
        pin(lower[w]);
      }
    }
    const uint32_t has_result = Base::template columns_of<Y>(left, result_size[1]);
    int row = group * S + height.first, source_row = row - window_padding[0];
    const int own_end = group + some < this->row_groups ? (group + some) * S + height.first : height.sources;
    // A strip wholly outside of the map reads what lies beside it, whatever it is.
    int column = first - window_padding[1];
    column = column < -M ? -M : column < source_size[1] ? column : source_size[1] - 1;
    const int pitch = source_size[1] * int(sizeof(T));
    uint32_t at = shared_address(source + (source_row - rows.begin) * source_size[1] + column, shared);
    const uint32_t none = shared_address(tables.zeros + over + column, shared);
    uint32_t to = shared_address(result + group * result_size[1] + left, shared),
             result_pitch = result_size[1] * int(sizeof(T));
    pin(result_pitch);
    [[maybe_unused]] const int row_bytes = int(codes.packing.row_bytes), code_shift = -width.first * Bits;
    [[maybe_unused]] uint32_t code_mask = 0, code_bytes = 0;
    if constexpr (WithCodes) {
      const int bits = (width.sources - left * S) * Bits;
      code_mask = bits_below(bits), code_bytes = bits_below((bits + 7) / 8);
      row_codes += row * row_bytes + left * S * Bits / 8;
    }

    // The maxima of the next row of the source along the width.
    auto along_width = [&](Argmax& maxima) {
      const bool there = rows.has(source_row);
      Neighbours<T, M, ByVectors> neighbours(shared, there ? at : none);
      if constexpr (padded) {
        AABLUR_UNROLL
        for (int w = 0; w < Neighbours<T, M, ByVectors>::count; ++w)
          neighbours.word[w] = (neighbours.word[w] & ~lower[w]) | (lowest_word<T> & (there ? lower[w] : ~0u));
      }
      const uint32_t above = padded && source_row < 0 ? uint32_t(Window) : 0;
      Argmax middle;
      middle.start(neighbours.template pixel<lanes>(1), above);
      AABLUR_UNROLL
      for (int c = 2; c < Window; ++c) middle.take(neighbours.template pixel<lanes>(c), uint32_t(c - 1));
      maxima.start(neighbours.template pixel<lanes>(0), above);
      maxima.take(middle, 1);
      ++source_row, at += pitch;
    };
    Argmax first_rows[Window - 1];
    AABLUR_UNROLL
    for (int a = 0; a < Window - 1; ++a) along_width(first_rows[a]);
    RollingMaxima<Argmax, Window> rolling;
    rolling.start(first_rows, kept % 2);
    auto read = [&](float (&sum)[Y], bool is_second) {
      Argmax newest;
      along_width(newest);
      Argmax maxima = rolling.next(newest, is_second);
      const bool there = unsigned(row) < unsigned(height.sources);
      if constexpr (WithCodes) {
        const uint64_t all = maxima.codes();
        uint32_t word = bits_from(uint32_t(all), uint32_t(all >> 32), uint32_t(code_shift)) & code_mask;
        // Where the window begins with padding, its first element that there is wins if all are -inf.
        if (padded && left == 0 && window_padding[1] > 0) word += (word & 15) == 0 || (word & 15) == Window;
        const uint32_t bytes = there && row < own_end ? code_bytes : 0;
        AABLUR_UNROLL
        for (int byte = 0; byte < fields * Bits / 8; ++byte)
          if (bytes >> byte & 1) row_codes[byte] = uint8_t(word >> (8 * byte));
        row_codes += row_bytes;
      }
      maxima.keep(keep);
      float value[N];
      AABLUR_UNROLL
      for (int j = 0; j < N; ++j) value[j] = maxima.value(j);
      Base::add_columns(across, value, sum);
      if (!there) {
        AABLUR_UNROLL
        for (int c = 0; c < Y; ++c) sum[c] = 0;
      }
      ++row;
    };
    float sums[reach][Y];
    AABLUR_UNROLL
    for (int j = 0; j < kept; ++j) read(sums[reach - kept + j], (kept - j) % 2);
    AABLUR_NO_UNROLL
    for (const int end = group + some; group < end; ++group, to += result_pitch) {
      Base::roll(sums);
      AABLUR_UNROLL
      for (int j = kept; j < reach; ++j) read(sums[j], (j - kept) % 2);
      float total[Y];
      Base::add_rows(tables.rows[height.row_near(group)], sums, 0, total);
      this->template store_row<ByVectors>(to, group < result_size[0] ? has_result : 0, total);
    }
  }
#endif
};

template <class T, class Form, int Window>
using MaxBackwardPlanesBase = PlaneBands<T, Form, SmemMaxBackward<T, Form, Window>, MaxStrip<Form, Window>::first,
                                         SmemMaxBackward<T, Form, Window>::columns * Form::up + Window - 1,
                                         SmemMaxBackward<T, Form, Window>::columns, MaxStrip<Form, Window>::lead>;

template <class T, class Form, int Window>
struct MaxBackwardPlanes : MaxBackwardPlanesBase<T, Form, Window> {
  using Base = MaxBackwardPlanesBase<T, Form, Window>;
  using Base::height, Base::width, Base::cut, Base::G, Base::own, Base::N, Base::First, Base::Made, Base::Y, Base::up,
      Base::down, Base::reach, Base::kept, Base::halves, Base::source_size, Base::result_size;
  using typename Base::Tables, typename Base::Span, typename Base::Thread;
  static constexpr bool has_codes = true;
  static constexpr int E = halo_groups<Form, Window>, halo = Window - 1, Bits = Window == 2 ? 2 : 4;
  static constexpr int over = Base::read_along(N), codes_over = 16;  // bytes that words read along
  static_assert(Made * Bits <= 32);

  int window_padding[2] = {};
  Codes codes;

  bool divide(const Shape& shape, int64_t count, int64_t& shared_bytes) {
    for (int a = 0; a < 2; ++a) {
      const Axis& axis = shape.axis[1 + a];
      window_padding[a] = int(axis.window_padding), source_size[a] = int(axis.out()), result_size[a] = int(axis.size);
    }
    this->cover(int(ceil_div(result_size[0] + window_padding[0] + height.origin, up)),
                width.origin + window_padding[1]);
    shared_bytes = Base::divide(*this, count);
    return shared_bytes > 0;
  }
  AABLUR_HOST_DEVICE Span source_rows(int group, int groups) const {
    if (this->is_whole()) return {0, source_size[0]};
    return Base::within((group - E) * down + height.first, (group + groups - 1) * down + height.first + reach,
                        source_size[0]);
  }
  AABLUR_HOST_DEVICE Span maxima(int group, int groups) const {
    return Base::within((group - E) * up - height.origin, (group + groups) * up - height.origin, height.results);
  }
  AABLUR_HOST_DEVICE Span made(int group, int groups) const {
    const int before = height.origin + window_padding[0];
    return Base::within(group * up - before, (group + groups) * up - before, result_size[0]);
  }
  void align() { Base::align((this->strip_columns.left(0) - MaxStrip<Form, Window>::groups) * down + width.first, N); }
  // Tables | zeros | source | codes | result.
  int64_t lay_out() {
    const int64_t rows = std::min<int64_t>((cut.band + E - 1) * down + reach, source_size[0]),
                  code_rows = std::min<int64_t>((cut.band + E) * up, height.results),
                  results = std::min<int64_t>(cut.band * up, result_size[0]);
    this->source_offset = int(this->table_bytes() + staged_bytes<T>(source_size[1] + 2 * over));
    this->codes_offset =
        int(this->source_offset +
            staged_bytes<T>(cut.planes * (this->is_whole() ? source_size[0] : rows) * source_size[1] + over));
    this->result_offset =
        int(this->codes_offset +
            staged_bytes<uint8_t>(cut.planes * code_rows * ceil_div(width.results * Bits, 8) + 2 * codes_over));
    return this->result_offset + staged_bytes<T>(cut.planes * results * result_size[1]);
  }

#if defined(__CUDACC__)
  __device__ void run(char* shared, uint32_t number) const {
    const Thread thread{int(threadIdx.x)};
    const typename Base::Block block(*this, number);
    const Span rows = source_rows(block.group, block.groups), maxima = this->maxima(block.group, block.groups),
               made = this->made(block.group, block.groups);
    T* source = this->copy_source(shared, block, rows, over, thread);
    clear(shared + this->table_bytes(), source, thread);
    const int row_bytes = int(codes.packing.row_bytes), code_bytes = block.planes * maxima.count() * row_bytes;
    const uint8_t* codes_from = codes.data + block.plane * codes.packing.plane_bytes + maxima.begin * row_bytes;
    char* const codes_part = shared + this->codes_offset;
    uint8_t* staged_codes = staged(codes_part + codes_over, const_cast<uint8_t*>(codes_from));
    copy_in(staged_codes, codes_from, code_bytes, thread);
    clear(codes_part, staged_codes, thread);
    clear(staged_codes + code_bytes, staged_codes + code_bytes + codes_over, thread);
    T* to = this->result_of(block, made);
    T* result = staged(shared + this->result_offset, to);
    this->fill(shared, block, thread);
    finish_copies();
    __syncthreads();
    this->with_vectors([&](auto by_vectors) {
      this->strips.each(block.planes, block.groups, thread, [&](int p, int first, int some, int strip) {
        gather<by_vectors>(Tables(*this, shared, p), shared, source + p * (rows.count() * source_size[1]), rows,
                           staged_codes + (p * maxima.count() - maxima.begin) * row_bytes,
                           result + (p * made.count() - made.begin) * result_size[1], block.group + first, some,
                           this->strip_columns.left(strip * own));
      });
    });
    __syncthreads();
    copy_out(to, result, block.planes * made.count() * result_size[1], thread);
  }

  // `some` groups of rows from `begin` on, of a strip. Row `rows.begin` begins at source, row 0 at row_codes and
  // result.
  template <bool ByVectors>
  __device__ void gather(const Tables& tables, const char* shared, const T* source, Span rows, const uint8_t* row_codes,
                         T* result, int begin, int some, int left) const {
    float across[G][Form::entries];
    const int from = left - MaxStrip<Form, Window>::groups;  // the first group of columns that it reads
    this->weigh_columns(tables, from, across);
    const int maximum = from * up - width.origin + First, x = this->strip_columns.first(left);
    uint32_t held = 0, behind = 0;  // fields of maxima that there are; codes of those behind the map
    AABLUR_UNROLL
    for (int c = 0; c < Made; ++c) {
      const uint32_t field = ((1u << Bits) - 1) << (c * Bits);
      if (unsigned(maximum + c) < unsigned(width.results)) held |= field;
      if (maximum + c >= width.results) behind |= field & last_column<Made, Window, Bits>;
    }
    pin(held), pin(behind);
    const uint32_t has_result = Base::template columns_of<Y>(x, result_size[1]);
    int p = (begin - E) * up - height.origin;
    // Rows of maxima whose first element is this segment's, and in the map.
    const int own_row = begin * up - height.origin,
              first_own = own_row > window_padding[0] ? own_row : window_padding[0];
    uint32_t stored = first_own, stored_rows = window_padding[0] + result_size[0] - first_own,
             row_bits = codes.packing.row_bytes * 8;
    pin(stored), pin(stored_rows), pin(row_bits);
    typename Base::template SourceStrip<ByVectors> strip(*this, tables, shared, source, rows, over,
                                                         (begin - E) * down + height.first, from * down + width.first);
    uint32_t to = shared_address(result + (p - window_padding[0]) * result_size[1] + x, shared),
             pitch = result_size[1] * int(sizeof(T));
    pin(pitch);
    int bit = int(reinterpret_cast<const char*>(row_codes) - shared) * 8 + p * row_bits + maximum * Bits;

    float sums[reach][Made];
    auto read_row = [&](float (&sum)[Made]) {
      float value[N];
      strip.read(value);
      Base::add_columns(across, value, sum);
    };
    AABLUR_UNROLL
    for (int j = 0; j < kept; ++j) read_row(sums[reach - kept + j]);
    float taken[Window][Y] = {};  // of the rows that windows from row p on hold
    AABLUR_NO_UNROLL
    for (int group = begin - E; group < begin + some; ++group) {
      Base::roll(sums);
      AABLUR_UNROLL
      for (int j = kept; j < reach; ++j) read_row(sums[j]);
      const float* weight = tables.rows[height.row_near(group)];
      AABLUR_UNROLL
      for (int phase = 0; phase < up; ++phase) {
        float spread[Made];
        Base::add_rows(weight, sums, phase, spread);
        const bool there = unsigned(p) < unsigned(height.results);
        const uint32_t below = p < height.results ? 0 : last_row<Made, Window, Bits>;
        const Selection<Window, Bits> selection((fields(shared, there ? bit : 0) & (there ? held : 0)) | behind |
                                                below);
        AABLUR_UNROLL
        for (int b = 0; b < Made; ++b)
          selection.template add<Y>(b, spread[b], b - halo, [&](int a, int x) -> float& { return taken[a][x]; });
        this->template store_row<ByVectors>(to, p - stored < stored_rows ? has_result : 0, taken[0]);
        AABLUR_UNROLL
        for (int a = 0; a < halo; ++a) AABLUR_UNROLL
        for (int c = 0; c < Y; ++c) taken[a][c] = taken[a + 1][c];
        ++p, to += pitch, bit += row_bits;
      }
    }
  }
  // The codes that begin at a bit.
  __device__ static uint32_t fields(const char* shared, int bit) {
    const auto words = reinterpret_cast<const uint32_t*>(shared) + (bit >> 5);
    return bits_from(words[0], words[1], uint32_t(bit));
  }
#endif
};

}  // namespace aablur::gpu
