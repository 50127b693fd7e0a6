// The generic blur and its transpose: for every geometry, dtype, layout and size.
//
//   axes --fold, unfold--> shared tables: the sources of each coordinate of a box, and their weights
//   global source --an element for each entry of a row and of a column--> registers: sums of slices --> shared
//   shared sums --the entries of a result--> registers: one sum --> global result
//
// A block has a box of results, of some planes (or images, channels last). Its threads make the tables of the box's
// coordinates first, then results: neighbours take neighbouring elements, each a column of the box. Where a coordinate
// has too many sources for a table (pads much wider than the map), or indices need 64 bits, a thread makes one result
// and looks for its sources anew.
#pragma once

#include <utility>

#include "gpu/tile.h"

namespace aablur::gpu {

// ---- one axis --------------------------------------------------------------------------------------

// Tap t of a binomial filter: of (1 + z)**(taps - 1) / 2**(taps - 1).
AABLUR_HOST_DEVICE inline double binomial_tap(int64_t taps, int64_t t) {
  double value = 1;
  for (int64_t i = 0; i < t; ++i) value = value * double(taps - 1 - i) / double(i + 1);
  for (int64_t i = 1; i < taps; ++i) value /= 2;
  return value;
}

// The taps of all axes, one after the other: given ones, or binomial ones, of which there is room for a few.
template <class T>
class Weights {
  using A = accumulator<T>;

 public:
  static constexpr int most = 24;

  Weights(const Filters& filters, const Shape& shape)
      : given_(static_cast<const A*>(filters.taps)), row_(int(filters.row)), per_channel_(filters.per_channel) {
    for (int a = 0; a < 3; ++a) offset_[a] = int(filters.offset[a]);
    for (int a = 0; a < 3 && !given_; ++a)
      for (int64_t t = 0; t < shape.axis[a].taps && offset_[a] >= 0; ++t)
        binomial_[offset_[a] + t] = A(binomial_tap(shape.axis[a].taps, t));
  }
  // Tap t of an axis of channel's filter; 1 of an axis that has none.
  AABLUR_HOST_DEVICE A tap(int axis, int t, int64_t channel) const {
    const int offset = offset_[axis];
    if (offset < 0) return 1;
    if (!given_) return binomial_[offset + t];
    return of_channel(channel)[offset + t];
  }
  // Given taps: a channel's row, and the number of tap t there; -1 of an axis that has none.
  AABLUR_HOST_DEVICE const A* of_channel(int64_t channel) const { return given_ + (per_channel_ ? channel * row_ : 0); }
  AABLUR_HOST_DEVICE int number(int axis, int t) const { return offset_[axis] < 0 ? -1 : offset_[axis] + t; }

 private:
  const A* given_;
  int row_, offset_[3];
  bool per_channel_;
  A binomial_[most] = {};
};

// Calls f(source, tap) for each that output o of an axis reads.
template <class I, class F>
AABLUR_HOST_DEVICE inline void sources(const BasicAxis<I>& axis, I o, F&& f) {
  const I first = o * axis.stride - axis.before;
  for (I t = 0; t < axis.taps; ++t) {
    const I source = fold(axis, first + t);
    if (source != outside) f(source, t);
  }
}

// Makes the row of more binomial taps than Weights has room for.
template <class A>
struct BinomialRow {
  int64_t taps[3], total;
  A* row;

  BinomialRow(const Shape& shape, const Filters& filters, void* row) : total(filters.row), row(static_cast<A*>(row)) {
    for (int a = 0; a < 3; ++a) taps[a] = filters.offset[a] < 0 ? 0 : shape.axis[a].taps;
  }
  int64_t count() const { return total; }
  AABLUR_HOST_DEVICE void operator()(int64_t i) const {
    int64_t t = i;
    int a = 0;
    while (t >= taps[a]) t -= taps[a++];
    row[i] = A(binomial_tap(taps[a], t));
  }
};

// A blur, or its transpose, of maps without a window: what its results read along each axis.
template <class I>
struct Matrices : Axes<I> {
  bool is_transposed;

  Matrices(const Shape& shape, bool is_transposed) : Axes<I>(shape), is_transposed(is_transposed) {}
  // Calls f(source, tap) for each that coordinate r of the result reads.
  template <class F>
  AABLUR_HOST_DEVICE void each(int a, I r, F&& f) const {
    if (is_transposed) readers(this->axis[a], r, f);
    else sources(this->axis[a], r, f);
  }
};

// At most how many sources a coordinate of the result has.
inline int64_t most_sources(const Axis& axis, bool is_transposed) {
  if (!is_transposed) return axis.taps;
  const int64_t n = axis.pooled(), pads = std::max<int64_t>(axis.before, 0) + std::max<int64_t>(axis.after, 0);
  const int64_t positions = axis.padding_mode == PaddingMode::zeros                 ? 1
                            : axis.padding_mode == PaddingMode::replicate || n == 1 ? 1 + pads
                            : axis.padding_mode == PaddingMode::circular            ? ceil_div(n + pads, n)
                                                                         : 2 * ceil_div(n + pads, 2 * (n - 1));
  return positions * ceil_div(axis.taps, axis.stride);
}

// ---- kernels ---------------------------------------------------------------------------------------

// What they are given: maps without a window.
struct GenericArguments {
  Shape shape;
  Filters filters;
  bool is_transposed;
  const void* x;
  Strides x_strides;
  void* out;  // dense

  Volume results() const { return is_transposed ? of_input(shape) : of_output(shape); }
  Strides out_strides() const { return dense_strides(shape.channels, results().size, shape.channels_last); }
};

// Result i, alone, of a source that gives its elements by their positions.
template <class Source, class To>
struct FarBlur : Matrices<int64_t> {
  using A = decltype(std::declval<Source>().at(0, 0, 0, 0, 0));
  Weights<A> weights;
  Grid<int64_t> results;
  Source x;
  To* out;
  int64_t threads;

  FarBlur(const GenericArguments& a, const Source& x)
      : Matrices<int64_t>(a.shape, a.is_transposed),
        weights(a.filters, a.shape),
        results(a.shape.channels_last, a.shape.channels, a.results()),
        x(x),
        out(static_cast<To*>(a.out)),
        threads(elements(a.shape, a.results())) {}
  int64_t count() const { return threads; }
  AABLUR_HOST_DEVICE void operator()(int64_t i) const {
    const Position<int64_t> r = results.at(i);
    A total = 0;
    each(0, r.axis[0], [&](int64_t d, int64_t a) {
      each(1, r.axis[1], [&](int64_t h, int64_t b) {
        A row = 0;
        each(2, r.axis[2], [&](int64_t w, int64_t c) {
          row += weights.tap(2, int(c), r.channel) * x.at(r.image, r.channel, d, h, w);
        });
        total += weights.tap(0, int(a), r.channel) * weights.tap(1, int(b), r.channel) * row;
      });
    });
    out[i] = narrow<To>(total);
  }
};

// A box of results a block. A thread has a column of it at a time, along the first axis: it sums up each slice of the
// source that the column reads, once, and adds these up for each result.
template <class From, class To>
struct TableBlur : Matrices<int> {
  using A = accumulator<From>;
  using Thread = gpu::Thread<128>;
  static constexpr int resident = 8, at_once = 6;  // slices whose loads are issued together
  static constexpr int most_entries = 32;          // of the first axis: a warp's threads

  // Of filters of each channel the weight is the number of its tap in a row, as bits; -1 is a weight of 1.
  struct Entry {
    A weight;
    int offset;  // of the source in memory; along the first axis of its slice among the sums
  };
  using Number = std::conditional_t<sizeof(A) == 8, int64_t, int>;

  Weights<From> weights;
  View<From, int> x;
  To* out;
  BasicStrides<int> out_strides;
  int size[3], channels, outers;             // results; outer: a plane, or an image if channels lie last
  int box[3], lanes, some, most[3], slices;  // of a block at most: results, channels, outers; entries, slices
  Divisor of_lanes, of_box[2], of_channels;  // in a block
  Divisor lane_boxes, boxes[3];              // in the grid
  bool channels_last, per_channel;

  explicit TableBlur(const GenericArguments& a)
      : Matrices<int>(a.shape, a.is_transposed),
        weights(a.filters, a.shape),
        x(a.x, a.x_strides),
        out(static_cast<To*>(a.out)),
        out_strides(in_type<int>(a.out_strides())),
        channels(int(a.shape.channels)),
        outers(int(a.shape.images * (a.shape.channels_last ? 1 : a.shape.channels))),
        of_channels(uint32_t(a.shape.channels)),
        channels_last(a.shape.channels_last),
        per_channel(a.filters.per_channel) {
    const Volume results = a.results();
    for (int axis = 0; axis < 3; ++axis) {
      size[axis] = int(results.size[axis]);
      most[axis] = int(std::min(most_sources(a.shape.axis[axis], a.is_transposed), int64_t(1) << 20));
    }
  }

  // Cuts the results into boxes; false where tables would be too large.
  bool divide(int64_t processors, int64_t& blocks, int64_t& shared_bytes) {
    // Enough results for the tables to be little work beside them, few enough for all processors to have some.
    constexpr int64_t enough = 4096, least = 512, least_blocks = 4, longest = 8, across = Thread::count;
    const int64_t all = int64_t(outers) * (channels_last ? channels : 1) * size[0] * size[1] * size[2];
    const int64_t wanted = std::clamp(all / std::max<int64_t>(processors * least_blocks, 1), least, enough);
    auto piece = [](int64_t size, int64_t most) {
      return int(ceil_div(size, ceil_div(size, std::max<int64_t>(most, 1))));
    };
    if (most[0] > most_entries) return false;
    lanes = channels_last ? piece(channels, 2 * across) : 1;
    box[0] = piece(size[0], std::min<int64_t>(longest, most_entries / most[0]));
    box[2] = piece(size[2], across / lanes);
    box[1] = piece(size[1], across / (lanes * box[2]));
    slices = int(ceil_div(box[0] * most[0], at_once)) * at_once;
    auto bytes = [&] {
      int64_t total = slices * (int64_t(sizeof(int)) + across * int64_t(sizeof(A)));
      for (int a = 0; a < 3; ++a) total += int64_t(box[a]) * (most[a] * int64_t(sizeof(Entry)) + int64_t(sizeof(int)));
      return total + int64_t(sizeof(int));
    };
    while (bytes() > most_shared_bytes) {
      const int a = int64_t(box[1]) * most[1] > int64_t(box[2]) * most[2] ? 1 : 2;
      if (box[a] == 1) return false;
      box[a] = piece(size[a], box[a] / 2);
    }
    shared_bytes = bytes();
    some = piece(outers, wanted / (int64_t(lanes) * box[0] * box[1] * box[2]));
    of_lanes = Divisor(uint32_t(lanes)), lane_boxes = Divisor(uint32_t(ceil_div(channels_last ? channels : 1, lanes)));
    blocks = ceil_div(outers, some) * lane_boxes.value();
    for (int a = 0; a < 3; ++a) {
      boxes[a] = Divisor(uint32_t(ceil_div(size[a], box[a])));
      blocks *= boxes[a].value();
    }
    for (int a = 0; a < 2; ++a) of_box[a] = Divisor(uint32_t(box[1 + a]));
    return blocks < int64_t(1) << 31;
  }

#if defined(__CUDACC__)
  __device__ void run(char* shared, uint32_t block) const {
    const Tables tables(*this, shared);
    uint32_t rest = block;
    const int first_lane = int(lane_boxes.split(rest)) * lanes;
    const int column = int(boxes[2].split(rest)) * box[2], row = int(boxes[1].split(rest)) * box[1],
              top = int(boxes[0].split(rest)) * box[0];
    const int first_outer = int(rest) * some, outers_here = min(some, outers - first_outer);
    fill(tables, top, row, column);
    __syncthreads();
    number_slices(tables);
    __syncthreads();
    if (per_channel) make(tables, std::true_type{}, first_lane, top, row, column, first_outer, outers_here);
    else make(tables, std::false_type{}, first_lane, top, row, column, first_outer, outers_here);
  }

 private:
  // In shared memory: entries of each axis, [coordinate of the box][entry]; how many each coordinate has; the slices
  // that the box reads, and their sums of each thread's column.
  struct Tables {
    A* sums;  // [slice][thread]
    Entry *along, *rows, *columns;
    int *along_count, *row_count, *column_count, *slice, *slice_count;

    __device__ Tables(const TableBlur& of, char* shared)
        : sums(reinterpret_cast<A*>(shared)),
          along(reinterpret_cast<Entry*>(sums + of.slices * Thread::count)),
          rows(along + of.box[0] * of.most[0]),
          columns(rows + of.box[1] * of.most[1]),
          along_count(reinterpret_cast<int*>(columns + of.box[2] * of.most[2])),
          row_count(along_count + of.box[0]),
          column_count(row_count + of.box[1]),
          slice(column_count + of.box[2]),
          slice_count(slice + of.slices) {}
  };

  __device__ void fill(const Tables& tables, int top, int row, int column) const {
    for (int c = int(threadIdx.x); c < box[0] + box[1] + box[2]; c += Thread::count) {
      const int b = c - box[0], w = b - box[1];
      if (b < 0) tabulate(0, top + c, 1, tables.along + c * most[0], tables.along_count[c]);
      else if (w < 0) tabulate(1, row + b, x.strides.axis[1], tables.rows + b * most[1], tables.row_count[b]);
      else tabulate(2, column + w, x.strides.axis[2], tables.columns + w * most[2], tables.column_count[w]);
    }
  }
  // The entries of coordinate r of a result.
  __device__ void tabulate(int a, int r, int stride, Entry* to, int& count) const {
    int n = 0;
    if (r < size[a])
      this->each(a, r, [&](int source, int tap) {
        const A weight = per_channel ? bit_cast<A>(Number(weights.number(a, tap))) : weights.tap(a, tap, 0);
        to[n++] = {weight, source * stride};
      });
    count = n;
  }
  // Makes slices of the sources of the first axis, each once. Thread i of a warp has entry i.
  __device__ void number_slices(const Tables& tables) const {
    const int i = int(threadIdx.x), coordinate = i / most[0];
    const bool is_there = coordinate < box[0] && i % most[0] < tables.along_count[coordinate];
    const int source = is_there ? tables.along[i].offset : 0;
    int first = i;
    for (int j = i - 1; is_there && j >= 0; --j)
      if (j % most[0] < tables.along_count[j / most[0]] && tables.along[j].offset == source) first = j;
    __syncthreads();
    if (i >= most_entries) {
      if (i < slices) tables.slice[i] = 0;
      return;
    }
    const uint32_t firsts = __ballot_sync(~0u, is_there && first == i);
    const int count = __popc(firsts), number = __popc(firsts & ((1u << first) - 1));
    if (is_there) tables.along[i].offset = number * Thread::count;
    if (is_there && first == i) tables.slice[number] = source * x.strides.axis[0];
    // Loads of the last few go by as many as others.
    if (i >= count && i < slices) tables.slice[i] = 0;
    if (i == 0) *tables.slice_count = count;
  }

  template <class PerChannel>
  __device__ void make(const Tables& tables, PerChannel, int first_lane, int top, int row, int column, int first_outer,
                       int outers_here) const {
    const int items = outers_here * (lanes * box[1] * box[2]), slice_count = *tables.slice_count,
              count = min(box[0], size[0] - top);
    A* const sums = tables.sums + threadIdx.x;
    AABLUR_NO_UNROLL
    for (int i = int(threadIdx.x); i < items; i += Thread::count) {
      uint32_t left = uint32_t(i);
      int channel = first_lane + int(of_lanes.split(left));
      const int c = int(of_box[1].split(left)), b = int(of_box[0].split(left));
      if (row + b >= size[1] || column + c >= size[2] || (channels_last && channel >= channels)) continue;
      uint32_t image = uint32_t(first_outer) + left;
      if (!channels_last) channel = int(of_channels.split(image));
      const From* const from = x.data + (int(image) * x.strides.image + channel * x.strides.channel);
      const A* const filter = weights.of_channel(channel);
      auto weight = [&](const Entry& entry) {
        if constexpr (!PerChannel::value) return entry.weight;
        const Number tap = bit_cast<Number>(entry.weight);
        return tap < 0 ? A(1) : filter[tap];
      };
      const Entry* const rows = tables.rows + b * most[1];
      const Entry* const columns = tables.columns + c * most[2];
      const int row_count = tables.row_count[b], column_count = tables.column_count[c];
      AABLUR_NO_UNROLL
      for (int s = 0; s < slice_count; s += at_once) {
        const From* slice[at_once];
        A sum[at_once] = {};
        AABLUR_UNROLL
        for (int k = 0; k < at_once; ++k) slice[k] = from + tables.slice[s + k];
        AABLUR_NO_UNROLL
        for (int r = 0; r < row_count; ++r) {
          const Entry of_row = rows[r];
          A across[at_once] = {};
          AABLUR_NO_UNROLL
          for (int e = 0; e < column_count; ++e) {
            const Entry of_column = columns[e];
            const int at = of_row.offset + of_column.offset;
            const A w = weight(of_column);
            AABLUR_UNROLL
            for (int k = 0; k < at_once; ++k) across[k] += w * widen(slice[k][at]);
          }
          const A w = weight(of_row);
          AABLUR_UNROLL
          for (int k = 0; k < at_once; ++k) sum[k] += w * across[k];
        }
        AABLUR_UNROLL
        for (int k = 0; k < at_once; ++k) sums[(s + k) * Thread::count] = sum[k];
      }
      To* to = out + (int(image) * out_strides.image + channel * out_strides.channel + top * out_strides.axis[0] +
                      (row + b) * out_strides.axis[1] + (column + c) * out_strides.axis[2]);
      AABLUR_NO_UNROLL
      for (int a = 0; a < count; ++a, to += out_strides.axis[0]) {
        A total = 0;
        const Entry* const along = tables.along + a * most[0];
        const int entries = tables.along_count[a];
#pragma unroll 2
        for (int e = 0; e < entries; ++e) total += weight(along[e]) * sums[along[e].offset];
        *to = narrow<To>(total);
      }
    }
  }
#endif
};

}  // namespace aablur::gpu
