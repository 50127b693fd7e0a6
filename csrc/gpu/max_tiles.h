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
          int Groups = MaxBandConfig<T, Form, V_, Window>::groups>
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

// Groups before a thread's own whose columns of maxima have windows that reach into those.
template <class Form, int Window>
constexpr int halo_groups = int(ceil_div(Window - 1, Form::up));

template <class T, class Form, int V_, int Window, int Groups = 2>
struct MaxBackwardTile : BandTiles<T, Form, V_, Groups + halo_groups<Form, Window>, Groups, false> {
  static constexpr int E = halo_groups<Form, Window>;
  using Base = BandTiles<T, Form, V_, Groups + E, Groups, false>;
  using Base::height, Base::width, Base::N, Base::X, Base::V, Base::G, Base::own, Base::reach, Base::kept;
  using typename Base::Shared, typename Base::Tile, typename Base::Vector;
  static constexpr bool has_codes = true;
  static constexpr int up = Form::up, halo = Window - 1, Bits = Window == 2 ? 2 : 4, Y = own * up;
  using Word = Pixel<uint8_t, V * Bits / 8>;

  int window_padding[2] = {}, size[2] = {};
  PixelCodes codes;

  // Every element of the map belongs to a tile.
  void divide(const Shape& shape) {
    for (int a = 0; a < 2; ++a)
      window_padding[a] = int(shape.axis[1 + a].window_padding), size[a] = int(shape.axis[1 + a].size);
    this->row_groups = int(ceil_div(size[0] + window_padding[0] + height.origin, up));
    this->column_groups = int(ceil_div(size[1] + window_padding[1] + width.origin, up));
  }

  AABLUR_HOST_DEVICE void run(uint32_t i, const Shared& shared) const {
    const Tile tile(*this, i);
    const uint32_t from = this->source_of(tile);
    float across[G][Form::entries][1], down[Form::entries][1];
    this->weigh_columns(shared, tile.left - E, 0, across);
    bool has_source[N];
    const int first_column = (tile.left - E) * Form::down + width.first;
    AABLUR_UNROLL
    for (int j = 0; j < N; ++j) has_source[j] = unsigned(first_column + j) < unsigned(width.sources);
    // Columns of maxima from this one on; results from `first` on.
    const int maxima = (tile.left - E) * up - width.origin, first = tile.left * up - width.origin - window_padding[1];
    bool has_maximum[X], has_result[Y];
    AABLUR_UNROLL
    for (int c = 0; c < X; ++c) has_maximum[c] = unsigned(maxima + c) < unsigned(width.results);
    AABLUR_UNROLL
    for (int c = 0; c < Y; ++c) has_result[c] = unsigned(first + c) < unsigned(size[1]);

    int row = (tile.top - E) * Form::down + height.first;  // of the source
    int at[N];
    AABLUR_UNROLL
    for (int j = 0; j < N; ++j) at[j] = (first_column + j) * int(this->x_pixel);
    int p = (tile.top - E) * up - height.origin;  // row of maxima
    const int own_row = tile.top * up - height.origin;
    uint32_t to = this->result_of(tile, p - window_padding[0], first);
    uint32_t code_at =
        tile.image * codes.image + tile.lane * uint32_t(sizeof(Word)) + p * codes.row + maxima * codes.pixel;

    Vector history[reach][N];
    auto read = [&](Vector(&vector)[N]) {
      const bool there = unsigned(row) < unsigned(height.sources);
      const char* const begin = this->x + (from + uint32_t(row) * this->x_row);
      AABLUR_UNROLL
      for (int j = 0; j < N; ++j) vector[j] = load_if<Vector>(there && has_source[j], begin + at[j]);
      ++row;
    };
    AABLUR_UNROLL
    for (int j = 0; j < kept; ++j) read(history[reach - kept + j]);
    float sums[Window][Y][V] = {};  // of the rows that windows from row p on hold
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
        const bool there = unsigned(p) < unsigned(height.results);
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
        for (int c = E * up - halo; c < X; ++c) {
          float spread[V];
          AABLUR_UNROLL
          for (int l = 0; l < V; ++l) {
            spread[l] = 0;
            AABLUR_UNROLL
            for (int j = 0; j < reach; ++j)
              add_weighed<Form>(c % up, j, across[c / up][c % up * reach + j][0], column[c / up * Form::down + j][l],
                                spread[l]);
          }
          const bool is_there = there && has_maximum[c];
          const Word word = load_if<Word>(is_there, codes.data + (code_at + c * codes.pixel));
          select(word, is_there, spread, c - E * up, sums);
        }
        const bool is_row = p >= own_row && unsigned(p - window_padding[0]) < unsigned(size[0]);
        AABLUR_UNROLL
        for (int c = 0; c < Y; ++c)
          if (is_row && has_result[c])
            *reinterpret_cast<Vector*>(this->out + (to + c * this->out_pixel)) = rounded<T, V>(sums[0][c]);
        AABLUR_UNROLL
        for (int c = 0; c < Y; ++c) AABLUR_UNROLL
        for (int l = 0; l < V; ++l) {
          AABLUR_UNROLL
          for (int a = 0; a < halo; ++a) sums[a][c][l] = sums[a + 1][c][l];
          sums[halo][c][l] = 0;
        }
        ++p, to += this->out_row, code_at += codes.row;
      }
    }
  }

  // Adds maxima's gradients to the elements that their codes name; `first` is the column of the first of the window.
  AABLUR_HOST_DEVICE static void select(const Word& word, bool is_there, const float (&spread)[V], int first,
                                        float (&sums)[Window][Y][V]) {
    static_assert(V * Bits <= 32);
    uint32_t codes = 0;
    AABLUR_UNROLL
    for (int i = 0; i < int(sizeof(Word)); ++i) codes |= uint32_t(word.element[i]) << (8 * i);
    const uint32_t held = is_there ? repeated<V, Bits>(1) : 0;
    AABLUR_UNROLL
    for (int c = 0; c < Window * Window; ++c) {
      const int x = first + c % Window;
      if (x < 0 || x >= Y) continue;
      uint32_t found = held;  // the first bit of each field that has code c
      AABLUR_UNROLL
      for (int i = 0; i < Bits; ++i) found &= c >> i & 1 ? codes >> i : ~(codes >> i);
      AABLUR_UNROLL
      for (int l = 0; l < V; ++l)
        if (found >> (l * Bits) & 1) sums[c / Window][x][l] += spread[l];
    }
  }
};

}  // namespace aablur::gpu
