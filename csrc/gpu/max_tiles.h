// Max-blur and its adjoint in registers, on maps whose channels lie last: gpu/band_tiles.h with windows before or
// behind.
//
//   forward:  global x --vectors, -inf outside of the map--> registers: maxima of a row along the width, the last
//                                                            `Window` rows of them --> maxima, codes --> global codes
//                      --weights---------------------------> as the blur --> global out
//   backward: global grad ---------------------------------> as the blur's transpose: the gradient of the maxima
//             global codes --of a pixel, its channels' codes-> the element of each window that takes it
//                      --sums of the last `Window` rows----> global out
//
// A maximum outside of the pooled map is not weighed. Each maximum's code is written by one thread: the first of its
// tile's own columns and rows are those that its first group reads.
#pragma once

#include "gpu/band_tiles.h"
#include "gpu/running_argmax.h"

namespace aablur::gpu {

// Where the codes of vectors of channels lie.
struct PixelCodes {
  uint8_t* data = nullptr;
  uint32_t image = 0, row = 0, pixel = 0;  // bytes
};

// A word of elements that are -inf.
template <class T>
constexpr uint32_t lowest_word = std::is_same_v<T, float>      ? 0xff800000
                                 : std::is_same_v<T, bfloat16> ? 0xff80ff80
                                                               : 0xfc00fc00;

template <class T, class Form, int V_, int Window, bool WithCodes,
          int Groups = MaxBandConfig<T, Form, V_, Window, WithCodes>::groups>
struct MaxBlurTile : BandTiles<T, Form, V_, Groups, Groups, false> {
  using Base = BandTiles<T, Form, V_, Groups, Groups, false>;
  using Base::height, Base::width, Base::N, Base::X, Base::V, Base::G, Base::reach, Base::kept;
  using typename Base::Shared, typename Base::Tile, typename Base::Vector;
  static constexpr int S = Form::down, M = N + Window - 1, Bits = Window == 2 ? 2 : 4;
  static_assert(Form::up == 1 && reach >= S && G * S <= 32 && V * Bits % 8 == 0);
  static constexpr bool has_codes = WithCodes;
  static constexpr bool padded = Window == 3;  // windows may hold padding, a row or column at most
  using Argmax = RunningArgmax<T, V, Bits, WithCodes>;
  using Word = Pixel<uint8_t, V * Bits / 8>;

  int window_padding[2] = {}, size[2] = {};
  PixelCodes codes;

  // Every maximum that has a code belongs to a tile.
  void divide(const Shape& shape) {
    Base::divide(shape);
    for (int a = 0; a < 2; ++a)
      window_padding[a] = int(shape.axis[1 + a].window_padding), size[a] = int(shape.axis[1 + a].size);
    if (!WithCodes) return;
    this->row_groups = std::max(height.groups, int(ceil_div(height.sources - height.first - kept, S)));
    this->column_groups = std::max(width.groups, int(ceil_div(width.sources - width.first, S)));
  }

  AABLUR_HOST_DEVICE void run(uint32_t i, const Shared& shared) const {
    const Tile tile(*this, i);
    const uint32_t from = this->source_of(tile);
    uint32_t to = this->result_of(tile, tile.top, tile.left);
    float across[G][Form::entries][1], down[Form::entries][1];
    this->weigh_columns(shared, tile.left, 0, across);

    const int first_column = tile.left * S + width.first;  // of the maxima
    uint32_t keep[N];                                      // all ones where there is a column of maxima
    AABLUR_UNROLL
    for (int j = 0; j < N; ++j) {
      keep[j] = unsigned(first_column + j) < unsigned(width.sources) ? ~0u : 0;
    }
    bool has_result[X];
    AABLUR_UNROLL
    for (int c = 0; c < X; ++c) has_result[c] = tile.left + c < width.results;
    // Columns of the source. Without padding the windows of maxima that there are hold no other: any will do.
    bool has_source[M];
    int at[M];
    AABLUR_UNROLL
    for (int j = 0; j < M; ++j) {
      const int column = first_column - window_padding[1] + j;
      has_source[j] = !padded || unsigned(column) < unsigned(size[1]);
      at[j] = (padded ? column : column < 0 ? 0 : column < size[1] ? column : size[1] - 1) * int(this->x_pixel);
    }

    int row = tile.top * S + height.first;  // of the maxima
    // Codes from here on are the next segment's.
    const int end = tile.end < this->row_groups ? tile.end * S + height.first : height.sources;
    int source_row = row - window_padding[0];
    [[maybe_unused]] uint32_t code_at =
        tile.image * codes.image + tile.lane * uint32_t(sizeof(Word)) + row * codes.row + first_column * codes.pixel;

    // The maxima of the next row of the source along the width.
    auto along_width = [&](Argmax(&maxima)[N]) {
      const bool there = unsigned(source_row) < unsigned(size[0]);
      const int clamped = source_row < 0 ? 0 : source_row < size[0] ? source_row : size[0] - 1;
      const char* const begin = this->x + (from + uint32_t(clamped) * this->x_row);
      Vector vector[M];
      AABLUR_UNROLL
      for (int j = 0; j < M; ++j)
        if constexpr (padded) vector[j] = load_if<Vector, lowest_word<T>>(there && has_source[j], begin + at[j]);
        else vector[j] = load<Vector>(begin + at[j]);
      // Where the window begins with padding, its first element that there is wins if all are -inf.
      const uint32_t above = padded && source_row < 0 ? uint32_t(Window) : 0;
      auto start = [&](int j) {
        Argmax at_column;
        at_column.start(vector[j], padded ? above + uint32_t(!has_source[j]) : 0);
        return at_column;
      };
      AABLUR_UNROLL
      for (int j = 0; j < N; j += 2) {
        // Two windows side by side share the maximum of all but the first and the last column.
        Argmax middle = start(j + 1);
        AABLUR_UNROLL
        for (int c = 1; c < Window - 1; ++c) middle.take(vector[j + 1 + c], uint32_t(c));
        maxima[j] = start(j);
        maxima[j].take(middle, 1);
        if (j + 1 == N) break;
        maxima[j + 1] = middle;
        maxima[j + 1].take(vector[j + Window], uint32_t(Window - 1));
      }
      ++source_row;
    };
    Argmax first_rows[Window - 1][N];
    AABLUR_UNROLL
    for (int a = 0; a < Window - 1; ++a) along_width(first_rows[a]);
    RollingMaxima<Argmax, Window> rolling[N];
    AABLUR_UNROLL
    for (int j = 0; j < N; ++j) {
      Argmax rows[Window - 1];
      AABLUR_UNROLL
      for (int a = 0; a < Window - 1; ++a) rows[a] = first_rows[a][j];
      rolling[j].start(rows, kept % 2);
    }

    float sums[reach][X][V];
    auto read = [&](float (&sum)[X][V], bool is_second) {
      Argmax newest[N];
      along_width(newest);
      const bool there = unsigned(row) < unsigned(height.sources);
      [[maybe_unused]] const bool owned = there && row < end;
      AABLUR_UNROLL
      for (int j = 0; j < N; ++j) {
        Argmax maxima = rolling[j].next(newest[j], is_second);
        if (WithCodes && j < G * S)
          store_if(owned && keep[j], codes.data + (code_at + j * codes.pixel), truncated<Word>(maxima.codes()));
        maxima.keep(there ? keep[j] : 0);
        AABLUR_UNROLL
        for (int c = 0; c < X; ++c) {
          const int t = j - c * S;
          if (t < 0 || t >= reach) continue;
          AABLUR_UNROLL
          for (int l = 0; l < V; ++l) {
            if (t == 0) sum[c][l] = 0;
            add_weighed<Form>(0, t, across[c][t][0], maxima.value(l), sum[c][l]);
          }
        }
      }
      ++row;
      if constexpr (WithCodes) code_at += codes.row;
    };
    AABLUR_UNROLL
    for (int j = 0; j < kept; ++j) read(sums[reach - kept + j], (kept - j) % 2);
    AABLUR_NO_UNROLL
    for (int group = tile.top; group < tile.end; ++group, to += this->out_row) {
      Base::roll(sums);
      AABLUR_UNROLL
      for (int j = kept; j < reach; ++j) read(sums[j], (j - kept) % 2);
      this->weigh(height, shared.rows, nullptr, height.row_near(group), 0, down);
      AABLUR_UNROLL
      for (int c = 0; c < X; ++c) {
        float total[V];
        Base::add_rows(down, sums, 0, c, total);
        if (group < height.results && has_result[c])
          *reinterpret_cast<Vector*>(this->out + (to + c * this->out_pixel)) = rounded<T, V>(total);
      }
    }
  }
};

// A value where a word has one of the bits of `mask` (or, if not Any, none), else 0: without a branch.
template <bool Any>
AABLUR_HOST_DEVICE inline float value_if(uint32_t word, uint32_t mask, float value) {
#if defined(__CUDA_ARCH__)
  float kept;
  if constexpr (Any)
    asm("{ .reg .pred p; .reg .b32 t; and.b32 t, %1, %2; setp.ne.u32 p, t, 0; selp.f32 %0, %3, 0f00000000, p; }"
        : "=f"(kept)
        : "r"(word), "r"(mask), "f"(value));
  else
    asm("{ .reg .pred p; .reg .b32 t; and.b32 t, %1, %2; setp.ne.u32 p, t, 0; selp.f32 %0, 0f00000000, %3, p; }"
        : "=f"(kept)
        : "r"(word), "r"(mask), "f"(value));
  return kept;
#else
  return ((word & mask) != 0) == Any ? value : 0;
#endif
}
// Adds a value there.
template <bool Any>
AABLUR_HOST_DEVICE inline void add_if(uint32_t word, uint32_t mask, float value, float& sum) {
#if defined(__CUDA_ARCH__)
  if constexpr (Any)
    asm("{ .reg .pred p; .reg .b32 t; and.b32 t, %1, %2; setp.ne.u32 p, t, 0; @p add.f32 %0, %0, %3; }"
        : "+f"(sum)
        : "r"(word), "r"(mask), "f"(value));
  else
    asm("{ .reg .pred p; .reg .b32 t; and.b32 t, %1, %2; setp.ne.u32 p, t, 0; @!p add.f32 %0, %0, %3; }"
        : "+f"(sum)
        : "r"(word), "r"(mask), "f"(value));
#else
  if (((word & mask) != 0) == Any) sum += value;
#endif
}

// Codes of an element of the last column, or row, of the window, in each of V fields: they stand for maxima behind the
// map, whose elements there nobody stores.
template <int V, int Window, int Bits>
constexpr uint32_t last_column = uint32_t(repeated<V, Bits>(Window - 1));
template <int V, int Window, int Bits>
constexpr uint32_t last_row = uint32_t(repeated<V, Bits>((Window - 1) * Window));

// Where the codes of a word send the gradients of maxima: by the row to one of `Window` parts, of which the column says
// where they are added.
template <int Window, int Bits>
struct Selection {
  uint32_t below, lowest, column;  // bits of a field: below the first row, in the last; the column

  AABLUR_HOST_DEVICE explicit Selection(uint32_t codes) : below(codes), lowest(codes), column(codes) {
    if (Window == 2) return;
    constexpr uint32_t ones = uint32_t(repeated<32 / Bits, Bits>(1));
    below = codes + 5 * ones, lowest = codes + 2 * ones;  // bit 3: at least 3, at least 6
    column = codes - 3 * ((below >> 3 & ones) + (lowest >> 3 & ones));
  }
  // Adds a lane's value: to sum(row, column) of columns [0, Columns), where the window begins with column `first`.
  // Nothing has been added to the last row before its last column.
  template <int Columns, class Sum>
  AABLUR_HOST_DEVICE void add(int lane, float value, int first, Sum&& sum) const {
    const uint32_t bit = 1u << (lane * Bits), row = bit << (Window == 2 ? 1 : 3);
    float part[Window];
    part[0] = value_if<false>(below, row, value);
    part[Window - 1] = value_if<true>(lowest, row, value);
    if constexpr (Window == 3) part[1] = value_if<false>(lowest, row, value_if<true>(below, row, value));
    AABLUR_UNROLL
    for (int a = 0; a < Window; ++a) AABLUR_UNROLL
    for (int c = 0; c < Window; ++c) {
      const int x = first + c;
      if (x < 0 || x >= Columns) continue;
      if (c == 0) add_if<false>(column, Window == 2 ? bit : 3 * bit, part[a], sum(a, x));
      else if (c + 1 < Window || a + 1 < Window) add_if<true>(column, c * bit, part[a], sum(a, x));
      else sum(a, x) = value_if<true>(column, c * bit, part[a]);
    }
  }
};

// Groups before a thread's own whose columns of maxima have windows that reach into those.
template <class Form, int Window>
constexpr int halo_groups = int(ceil_div(Window - 1, Form::up));

// Of a strip's columns of maxima, whose windows begin Window - 1 before its own elements: the groups before its own
// that they take, and indices.
template <class Form, int Window>
struct MaxStrip {
  static constexpr int halo = Window - 1, padding = Window / 3, lead = Form::origin + padding;  // as is the default
  static constexpr int groups = lead >= halo ? 0 : int(ceil_div(halo - lead, Form::up));
  static constexpr int first = groups * Form::up + lead - halo;
  static constexpr int reads(int own) { return int(ceil_div(first + own * Form::up + halo, Form::up)); }
};
template <class T, class Form, int V_, int Window, int Groups = 2>
struct MaxBackwardTile : BandTiles<T, Form, V_, MaxStrip<Form, Window>::reads(Groups), Groups, false> {
  using Base = BandTiles<T, Form, V_, MaxStrip<Form, Window>::reads(Groups), Groups, false>;
  using Base::height, Base::width, Base::N, Base::X, Base::V, Base::G, Base::own, Base::reach, Base::kept;
  using typename Base::Shared, typename Base::Tile, typename Base::Vector;
  static constexpr bool has_codes = true;
  static constexpr int resident = resident_backward<T, Form, Window>;
  static constexpr int up = Form::up, halo = Window - 1, Bits = Window == 2 ? 2 : 4, Y = own * up;
  static constexpr int E = halo_groups<Form, Window>;
  static constexpr int First = MaxStrip<Form, Window>::first, Made = Y + halo;  // columns of maxima
  static_assert(V * Bits <= 32);

  int window_padding[2] = {}, size[2] = {};
  PixelCodes codes;
  Cover<up> strip_columns;

  // Every element of the map belongs to a tile.
  void divide(const Shape& shape) {
    for (int a = 0; a < 2; ++a)
      window_padding[a] = int(shape.axis[1 + a].window_padding), size[a] = int(shape.axis[1 + a].size);
    this->row_groups = int(ceil_div(size[0] + window_padding[0] + height.origin, up));
    strip_columns = Cover<up>(MaxStrip<Form, Window>::lead, width.origin + window_padding[1]);
    this->column_groups = strip_columns.groups(size[1]);
  }

  AABLUR_HOST_DEVICE void run(uint32_t i, const Shared& shared) const {
    const Tile tile(*this, i);
    const int left = strip_columns.left(tile.left), from = left - MaxStrip<Form, Window>::groups;
    float across[G][Form::entries][1], down[Form::entries][1];
    this->weigh_columns(shared, from, 0, across);
    uint32_t has_source = 0;  // bits of columns
    const int first_column = from * Form::down + width.first;
    AABLUR_UNROLL
    for (int j = 0; j < N; ++j) has_source |= uint32_t(unsigned(first_column + j) < unsigned(width.sources)) << j;
    // Columns of maxima from this one on; results from `first` on.
    const int maximum = from * up - width.origin + First, first = strip_columns.first(left);
    uint32_t has_maximum = 0, has_result = 0, behind[Made];  // bits of columns; codes that stand for none
    AABLUR_UNROLL
    for (int c = 0; c < Made; ++c) {
      has_maximum |= uint32_t(unsigned(maximum + c) < unsigned(width.results)) << c;
      behind[c] = maximum + c < width.results ? 0 : last_column<V, Window, Bits>;
      pin(behind[c]);
    }
    AABLUR_UNROLL
    for (int c = 0; c < Y; ++c) has_result |= uint32_t(unsigned(first + c) < unsigned(size[1])) << c;
    pin(has_source), pin(has_maximum), pin(has_result);

    int row = (tile.top - E) * Form::down + height.first;  // of the source
    int p = (tile.top - E) * up - height.origin;           // of the maxima
    // Rows of maxima whose first element is this tile's, and in the map.
    const int own_row = tile.top * up - height.origin,
              first_own = own_row > window_padding[0] ? own_row : window_padding[0];
    uint32_t stored = first_own, stored_rows = window_padding[0] + size[0] - first_own;
    pin(stored), pin(stored_rows);
    const char* at =
        this->x + this->source_of(tile) + row * int64_t(this->x_row) + first_column * int64_t(this->x_pixel);
    char* to = this->out + this->result_of(tile, 0, 0) + (p - window_padding[0]) * int64_t(this->out_row) +
               first * int64_t(this->out_pixel);
    const uint8_t* word_at = codes.data + tile.image * codes.image + tile.lane * (V * Bits / 8) +
                             p * int64_t(codes.row) + maximum * int64_t(codes.pixel);

    Vector history[reach][N];
    auto read = [&](Vector(&vector)[N]) {
      const uint32_t there = unsigned(row) < unsigned(height.sources) ? has_source : 0;
      AABLUR_UNROLL
      for (int j = 0; j < N; ++j) vector[j] = load_if<Vector>(there & 1u << j, at + j * this->x_pixel);
      ++row, at += this->x_row;
    };
    AABLUR_UNROLL
    for (int j = 0; j < kept; ++j) read(history[reach - kept + j]);
    float sums[Window][Y][V] = {};  // of the rows that windows from row p on hold, row p % Window first
    AABLUR_NO_UNROLL
    for (int group = tile.top - E; group < tile.end; ++group) {
      AABLUR_UNROLL
      for (int j = 0; j < kept; ++j) AABLUR_UNROLL
      for (int k = 0; k < N; ++k) history[j][k] = history[reach - kept + j][k];
      AABLUR_UNROLL
      for (int j = kept; j < reach; ++j) read(history[j]);
      this->weigh(height, shared.rows, nullptr, height.row_near(group), 0, down);
      AABLUR_UNROLL
      for (int phase = 0; phase < up; ++phase) {
        const uint32_t held = unsigned(p) < unsigned(height.results) ? has_maximum : 0;
        const uint32_t below = p < height.results ? 0 : last_row<V, Window, Bits>;
        float column[N][V];
        AABLUR_UNROLL
        for (int k = 0; k < N; ++k) AABLUR_UNROLL
        for (int l = 0; l < V; ++l) {
          column[k][l] = 0;
          AABLUR_UNROLL
          for (int j = 0; j < reach; ++j)
            add_weighed<Form>(phase, j, down[phase * reach + j][0], element(history[j][k], l), column[k][l]);
        }
        AABLUR_UNROLL
        for (int c = 0; c < Made; ++c) {
          const int g = (First + c) / up, kind = (First + c) % up;
          float spread[V];
          AABLUR_UNROLL
          for (int l = 0; l < V; ++l) {
            spread[l] = 0;
            AABLUR_UNROLL
            for (int j = 0; j < reach; ++j)
              add_weighed<Form>(kind, j, across[g][kind * reach + j][0], column[g * Form::down + j][l], spread[l]);
          }
          const uint32_t word = word_if<V * Bits / 8>(held & 1u << c, word_at + c * codes.pixel, behind[c]);
          const Selection<Window, Bits> selection(word | below);
          AABLUR_UNROLL
          for (int l = 0; l < V; ++l)
            selection.template add<Y>(l, spread[l], c - halo,
                                      [&](int a, int x) -> float& { return sums[(phase + a) % Window][x][l]; });
        }
        const uint32_t stores = p - stored < stored_rows ? has_result : 0;
        AABLUR_UNROLL
        for (int c = 0; c < Y; ++c)
          store_if(stores & 1u << c, to + c * this->out_pixel, rounded<T, V>(sums[phase % Window][c]));
        ++p, to += this->out_row, word_at += codes.row;
      }
      float next[Window][Y][V];
      AABLUR_UNROLL
      for (int a = 0; a < Window; ++a) AABLUR_UNROLL
      for (int c = 0; c < Y; ++c) AABLUR_UNROLL
      for (int l = 0; l < V; ++l) next[a][c][l] = sums[(up + a) % Window][c][l];
      AABLUR_UNROLL
      for (int a = 0; a < halo; ++a) AABLUR_UNROLL
      for (int c = 0; c < Y; ++c) AABLUR_UNROLL
      for (int l = 0; l < V; ++l) sums[a][c][l] = next[a][c][l];
    }
  }
};

}  // namespace aablur::gpu
