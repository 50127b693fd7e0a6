// The blur and its transpose in registers: maps whose channels lie last, and all that lie otherwise than plane by
// plane.
//
//   taps, bands ---------------------------> shared: the weights of both axes, a row a kind of group (shared taps)
//                    __syncthreads
//   global x --a vector of channels--------> registers: a row of vectors, 0 outside of the map
//            --weights of the columns------> registers: the last `reach` rows of sums
//            --weights of the rows---------> registers: a row of results --a vector of channels--> global out
//
// A thread has a vector of channels and some neighbouring groups of columns (core/bands.h), and rolls down a segment of
// groups of rows. Threads go over the channels first, then along the width: loads and stores are coalesced. What
// neighbours share of the source (the halo) is read twice, by way of the first-level cache. All threads take one path.
#pragma once

#include "core/bands.h"
#include "gpu/configs.h"
#include "gpu/tile.h"

namespace aablur::gpu {

// The weight of an entry of a band's row: the sum of the taps that its byte names.
template <class Form, class Tap>
AABLUR_HOST_DEVICE inline float weight_of(const Band& band, int row, int entry, Tap&& tap) {
  const uint32_t bits = uint32_t(band.row[row] >> (8 * entry)) & 255;
  if (Form::is_further(entry % Form::reach) && !bits) return bit_cast<float>(uint32_t(Form::absent));
  if (band.is_identity) return bits ? 1.f : 0.f;
  float sum = 0;
  AABLUR_UNROLL
  for (int t = 0; t < Form::taps; ++t) sum += bits >> t & 1 ? tap(t) : 0.f;
  return sum;
}

// total += weight * value, of source j for result `phase` of a group; nothing where none is read.
template <class Form>
AABLUR_HOST_DEVICE inline void add_weighed(int phase, int j, float weight, float value, float& total) {
  if (Form::is_further(j)) total = bit_cast<uint32_t>(weight) == Form::absent ? total : total + weight * value;
  else if (Form::has(phase, j)) total += weight * value;
}

// The weights of an axis, of one filter: rows of 8, as core/bands.h says.
using BandTable = float[Band::most_rows][8];
template <class Form>
AABLUR_HOST_DEVICE inline void fill_weights(const Band& band, const float* taps, float (*weight)[8], int thread,
                                            int threads) {
  constexpr int count = Form::entries <= 4 ? 4 : 8;  // whole vectors are read
  for (int i = thread; i < band.rows() * count; i += threads)
    weight[i / count][i % count] =
        weight_of<Form>(band, i / count, i % count, [&](int t) { return taps ? taps[t] : binomial<Form::taps>(t); });
}

// A vector, or words of `Fill` if `there` is 0: without a branch, and without a choice for each element.
template <class P, uint32_t Fill = 0>
AABLUR_HOST_DEVICE inline P load_if(uint32_t there, const void* p) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(P) == 16) {
    uint4 v;
    asm("{ .reg .pred p; setp.ne.u32 p, %5, 0; mov.b32 %0, %6; mov.b32 %1, %6; mov.b32 %2, %6; mov.b32 %3, %6;"
        "@p ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4]; }"
        : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
        : "l"(p), "r"(there), "n"(Fill));
    return bit_cast<P>(v);
  } else if constexpr (sizeof(P) == 8) {
    uint2 v;
    asm("{ .reg .pred p; setp.ne.u32 p, %3, 0; mov.b32 %0, %4; mov.b32 %1, %4;"
        "@p ld.global.nc.v2.b32 {%0, %1}, [%2]; }"
        : "=&r"(v.x), "=&r"(v.y)
        : "l"(p), "r"(there), "n"(Fill));
    return bit_cast<P>(v);
  } else if constexpr (sizeof(P) == 4) {
    uint32_t v;
    asm("{ .reg .pred p; setp.ne.u32 p, %2, 0; mov.b32 %0, %3; @p ld.global.nc.b32 %0, [%1]; }"
        : "=&r"(v)
        : "l"(p), "r"(there), "n"(Fill));
    return bit_cast<P>(v);
  } else if constexpr (sizeof(P) == 2) {
    uint16_t v;
    asm("{ .reg .pred p; setp.ne.u32 p, %2, 0; mov.b16 %0, %3; @p ld.global.nc.b16 %0, [%1]; }"
        : "=&h"(v)
        : "l"(p), "r"(there), "n"(Fill & 0xffff));
    return bit_cast<P>(v);
  } else {
    static_assert(sizeof(P) == 1, "1, 2, 4, 8 or 16 bytes");
    uint32_t v;
    asm("{ .reg .pred p; setp.ne.u32 p, %2, 0; mov.b32 %0, %3; @p ld.global.nc.u8 %0, [%1]; }"
        : "=&r"(v)
        : "l"(p), "r"(there), "n"(Fill & 0xff));
    return bit_cast<P>(uint8_t(v));
  }
#else
  return there ? *static_cast<const P*>(p) : P{};
#endif
}

// A word of 1, 2 or 4 bytes, or another: without a branch.
template <int Bytes>
AABLUR_HOST_DEVICE inline uint32_t word_if(uint32_t there, const void* p, uint32_t other) {
#if defined(__CUDA_ARCH__)
  if constexpr (Bytes == 4)
    asm("{ .reg .pred p; setp.ne.u32 p, %2, 0; @p ld.global.nc.b32 %0, [%1]; }" : "+r"(other) : "l"(p), "r"(there));
  else if constexpr (Bytes == 2)
    asm("{ .reg .pred p; setp.ne.u32 p, %2, 0; @p ld.global.nc.u16 %0, [%1]; }" : "+r"(other) : "l"(p), "r"(there));
  else asm("{ .reg .pred p; setp.ne.u32 p, %2, 0; @p ld.global.nc.u8 %0, [%1]; }" : "+r"(other) : "l"(p), "r"(there));
  return other;
#else
  return there ? widened(*static_cast<const Pixel<uint8_t, Bytes>*>(p)) : other;
#endif
}

// Stores a vector, or nothing if `there` is 0: without a branch.
template <class P>
AABLUR_HOST_DEVICE inline void store_if(uint32_t there, void* p, const P& value) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(P) == 16) {
    const auto v = bit_cast<uint4>(value);
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %5, 0; @p st.global.v4.b32 [%0], {%1, %2, %3, %4}; }" ::"l"(p),
                 "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(there)
                 : "memory");
  } else if constexpr (sizeof(P) == 8) {
    const auto v = bit_cast<uint2>(value);
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %3, 0; @p st.global.v2.b32 [%0], {%1, %2}; }" ::"l"(p), "r"(v.x),
                 "r"(v.y), "r"(there)
                 : "memory");
  } else if constexpr (sizeof(P) == 4) {
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0; @p st.global.b32 [%0], %1; }" ::"l"(p),
                 "r"(bit_cast<uint32_t>(value)), "r"(there)
                 : "memory");
  } else if constexpr (sizeof(P) == 2) {
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0; @p st.global.b16 [%0], %1; }" ::"l"(p),
                 "h"(bit_cast<uint16_t>(value)), "r"(there)
                 : "memory");
  } else {
    static_assert(sizeof(P) == 1, "1, 2, 4, 8 or 16 bytes");
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0; @p st.global.u8 [%0], %1; }" ::"l"(p),
                 "r"(uint32_t(bit_cast<uint8_t>(value))), "r"(there)
                 : "memory");
  }
#else
  if (there) *static_cast<P*>(p) = value;
#endif
}

// Element l of a vector as its accumulator: halves lie in words by twos.
template <class T, int V>
AABLUR_HOST_DEVICE inline float element(const Pixel<T, V>& vector, int l) {
  if constexpr (std::is_same_v<T, bfloat16> && V % 2 == 0) {
    struct Words {
      uint32_t word[V / 2];
    };
    const uint32_t word = bit_cast<Words>(vector).word[l / 2];
    return bit_cast<float>(l % 2 ? word & 0xffff0000 : word << 16);
  } else {
    return widen(vector.element[l]);
  }
}

// Groups of rows that a thread takes: a long segment reads less of the source twice, short ones fill the card.
constexpr int64_t segment_of(int64_t groups, int64_t threads_a_row, int64_t multiprocessors) {
  constexpr int64_t longest = 8, threads = 1024;  // of a multiprocessor: two waves of them
  const int64_t segments = std::clamp(multiprocessors * threads / threads_a_row, ceil_div(groups, longest), groups);
  return ceil_div(groups, segments);
}

// How strips of columns cover an axis: what is a strip's own begins with the result that has index `lead` in a group.
// So where padding is the default, strips begin with the axis.
template <int Up>
struct Cover {
  int start = 0;  // the result that group 0's own begin with

  Cover() = default;
  Cover(int lead, int origin) : start(lead - origin) {}
  int groups(int results) const { return int(ceil_div(results - start, Up)) + (start > 0); }
  // A strip's first group, of those counted from 0; and its first result.
  AABLUR_HOST_DEVICE int left(int group) const { return group - (start > 0); }
  AABLUR_HOST_DEVICE int first(int left) const { return left * Up + start; }
};

// What tiles of bands have in common: how maps lie, and the weights. Of `Groups` groups of columns that a thread has,
// the last `Own` are its own.
template <class T, class Form_, int V_, int Groups, int Own, bool PerChannel>
struct BandTiles {
  using Element = T;
  using Form = Form_;
  using Vector = Pixel<T, V_>;
  static constexpr int V = V_, G = Groups, own = Own, W = PerChannel ? V : 1;  // W: weights a vector
  static constexpr int reach = Form::reach,
                       kept = reach > Form::down ? reach - Form::down : 0;  // the next group's, too
  static constexpr int N = (G - 1) * Form::down + reach, X = G * Form::up;  // columns of the source, and of results
  static constexpr bool has_codes = false, has_filters = PerChannel;        // a filter for each channel
  static constexpr int resident = 4;

  struct Shared {
    BandTable rows, columns;
  };

  Band height, width;
  int row_groups = 0, column_groups = 0;
  Divisor lanes, columns, segments, planes;  // vectors of channels, tiles of a row and of a plane, planes of an image
  int segment = 1;                           // groups of rows a thread
  uint32_t x_image = 0, x_plane = 0, x_lane = 0, x_row = 0, x_pixel = 0;  // bytes
  uint32_t out_image = 0, out_plane = 0, out_row = 0, out_pixel = 0;
  const float *row_taps = nullptr, *column_taps = nullptr;  // of the first channel; null for binomials
  int taps_row = 0;                                         // from channel to channel; 0 where all share them
  const char* x = nullptr;
  char* out = nullptr;

  // Cuts the axes. An axis may have more groups than its band, for what else they have to do.
  void divide(const Shape&) { row_groups = height.groups, column_groups = width.groups; }

  AABLUR_HOST_DEVICE void prepare([[maybe_unused]] Shared& shared, [[maybe_unused]] int thread,
                                  [[maybe_unused]] int threads) const {
    if constexpr (!PerChannel) {
      fill_weights<Form>(height, row_taps, shared.rows, thread, threads);
      fill_weights<Form>(width, column_taps, shared.columns, thread, threads);
    }
  }

  // A thread's tile: its vector of channels, and its own first groups of columns and rows.
  struct Tile {
    int lane, left, top, end;
    uint32_t plane, image;

    AABLUR_HOST_DEVICE Tile(const BandTiles& of, uint32_t i)
        : lane(int(of.lanes.split(i))),
          left(int(of.columns.split(i)) * own),
          top(int(of.segments.split(i)) * of.segment),
          end(top + of.segment < of.row_groups ? top + of.segment : of.row_groups),
          plane(of.planes.split(i)),
          image(i) {}
  };
  // In bytes of x; and of the result, where its pixel (row, column) is.
  AABLUR_HOST_DEVICE uint32_t source_of(const Tile& tile) const {
    return tile.image * x_image + tile.plane * x_plane + tile.lane * x_lane;
  }
  AABLUR_HOST_DEVICE uint32_t result_of(const Tile& tile, int row, int column) const {
    return tile.image * out_image + tile.plane * out_plane + tile.lane * uint32_t(sizeof(Vector)) + row * out_row +
           column * out_pixel;
  }
  AABLUR_HOST_DEVICE int channel_of(const Tile& tile) const {
    return PerChannel ? int(lanes.value() > 1 ? tile.lane * V : tile.plane) : 0;
  }

  // The weights of row `row` of an axis, for the vector's channels.
  AABLUR_HOST_DEVICE void weigh(const Band& band, [[maybe_unused]] const BandTable& table, const float* taps, int row,
                                int channel, float (&weight)[Form::entries][W]) const {
    if constexpr (PerChannel) {
      AABLUR_UNROLL
      for (int l = 0; l < W; ++l) {
        float tap[Form::taps];
        AABLUR_UNROLL
        for (int t = 0; t < Form::taps; ++t)
          tap[t] = taps ? taps[int64_t(channel + l) * taps_row + t] : binomial<Form::taps>(t);
        AABLUR_UNROLL
        for (int e = 0; e < Form::entries; ++e)
          weight[e][l] = weight_of<Form>(band, row, e, [&](int t) { return tap[t]; });
      }
    } else {
      AABLUR_UNROLL
      for (int e = 0; e < Form::entries; ++e) weight[e][0] = table[row][e];
    }
  }
  // Of groups of columns from `first` on.
  AABLUR_HOST_DEVICE void weigh_columns(const Shared& shared, int first, int channel,
                                        float (&weight)[G][Form::entries][W]) const {
    AABLUR_UNROLL
    for (int g = 0; g < G; ++g) {
      weigh(width, shared.columns, column_taps, width.row_near(first + g), channel, weight[g]);
    }
  }
  // Row `phase` of a group of results, column c: the sum over rows of sums.
  AABLUR_HOST_DEVICE static void add_rows(const float (&down)[Form::entries][W], const float (&sums)[reach][X][V],
                                          int phase, int c, float (&total)[V]) {
    AABLUR_UNROLL
    for (int l = 0; l < V; ++l) {
      total[l] = 0;
      AABLUR_UNROLL
      for (int j = 0; j < reach; ++j)
        add_weighed<Form>(phase, j, down[phase * reach + j][l % W], sums[j][c][l], total[l]);
    }
  }
  // Hands the rows that the next group reads, too, on to it.
  AABLUR_HOST_DEVICE static void roll(float (&sums)[reach][X][V]) {
    AABLUR_UNROLL
    for (int j = 0; j < kept; ++j) AABLUR_UNROLL
    for (int c = 0; c < X; ++c) AABLUR_UNROLL
    for (int l = 0; l < V; ++l) sums[j][c][l] = sums[reach - kept + j][c][l];
  }
};

template <class T, class Form, int V, bool PerChannel, int G = BandConfig<T, Form, V, PerChannel>::groups>
struct BandTile : BandTiles<T, Form, V, G, G, PerChannel> {
  using Base = BandTiles<T, Form, V, G, G, PerChannel>;
  using Base::height, Base::width, Base::N, Base::X, Base::W, Base::reach, Base::kept;
  using typename Base::Shared, typename Base::Tile, typename Base::Vector;
  static constexpr int resident = BandConfig<T, Form, V, PerChannel>::resident;

  AABLUR_HOST_DEVICE void run(uint32_t i, const Shared& shared) const {
    const Tile tile(*this, i);
    const int left = tile.left, channel = this->channel_of(tile);
    const uint32_t from = this->source_of(tile), x_row = this->x_row, out_pixel = this->out_pixel;
    uint32_t to = this->result_of(tile, tile.top * Form::up - height.origin, left * Form::up - width.origin);

    float across[G][Form::entries][W], down[Form::entries][W];
    this->weigh_columns(shared, left, channel, across);
    bool has_source[N], has_result[X];
    int at[N];
    AABLUR_UNROLL
    for (int j = 0; j < N; ++j) {
      const int column = width.source(left * Form::down + width.first + j);
      has_source[j] = unsigned(column) < unsigned(width.sources);
      at[j] = column * int(this->x_pixel);
    }
    AABLUR_UNROLL
    for (int c = 0; c < X; ++c) has_result[c] = unsigned(left * Form::up + c - width.origin) < unsigned(width.results);

    float sums[reach][X][V];
    int row = tile.top * Form::down + height.first;
    auto read = [&](float (&sum)[X][V]) {
      const int at_row = height.source(row++);
      const bool there = unsigned(at_row) < unsigned(height.sources);
      const char* const begin = this->x + (from + at_row * x_row);
      Vector vector[N];
      AABLUR_UNROLL
      for (int j = 0; j < N; ++j) vector[j] = load_if<Vector>(there && has_source[j], begin + at[j]);
      AABLUR_UNROLL
      for (int l = 0; l < V; ++l) {
        float value[N];
        AABLUR_UNROLL
        for (int j = 0; j < N; ++j) value[j] = element(vector[j], l);
        AABLUR_UNROLL
        for (int c = 0; c < X; ++c) {
          const int g = c / Form::up, phase = c % Form::up;
          float total = 0;
          AABLUR_UNROLL
          for (int j = 0; j < Form::reach; ++j)
            add_weighed<Form>(phase, j, across[g][phase * Form::reach + j][l % W], value[g * Form::down + j], total);
          sum[c][l] = total;
        }
      }
    };
    AABLUR_UNROLL
    for (int j = 0; j < kept; ++j) read(sums[reach - kept + j]);
    int known = -1;  // the row of weights that `down` holds
    AABLUR_NO_UNROLL
    for (int group = tile.top; group < tile.end; ++group) {
      Base::roll(sums);
      AABLUR_UNROLL
      for (int j = kept; j < reach; ++j) read(sums[j]);
      if (reach < Form::down) row += Form::down - reach;
      const int wanted = height.row_of(group);
      if (!PerChannel || wanted != known) this->weigh(height, shared.rows, this->row_taps, wanted, channel, down);
      known = wanted;
      AABLUR_UNROLL
      for (int phase = 0; phase < Form::up; ++phase, to += this->out_row) {
        const bool there = unsigned(group * Form::up + phase - height.origin) < unsigned(height.results);
        AABLUR_UNROLL
        for (int c = 0; c < X; ++c) {
          float total[V];
          Base::add_rows(down, sums, phase, c, total);
          if (there && has_result[c])
            *reinterpret_cast<Vector*>(this->out + (to + c * out_pixel)) = rounded<T, V>(total);
        }
      }
    }
  }
};

}  // namespace aablur::gpu
