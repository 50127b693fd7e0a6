// Planes, row by row: where rows come from (the prologue), and the blur of a plane as three sparse
// matrices applied to them.
#pragma once

#include <algorithm>
#include <memory>

#include "rows.h"

namespace aablur::AABLUR_ISA {

// Zeroed room for n elements, with two vectors to spare on both sides.
template <class E>
class Buffer {
 public:
  explicit Buffer(int64_t n) : storage_(new E[n + 2 * margin]()) {}
  E* get() const { return storage_.get() + margin; }
  static constexpr int64_t margin = 2 * vector_bytes / sizeof(E) + 2;

 private:
  std::unique_ptr<E[]> storage_;
};

// The piece of the work that one call of a kernel's body does.
struct Unit {
  int64_t image, plane, band;
  Unit(const Plan& plan, int64_t index)
      : image(index / plan.bands / plan.planes), plane(index / plan.bands % plan.planes), band(index % plan.bands) {}
};

// Bands cut the first axis that has more than one row. Band `band` of `size` rows; all but the last end on
// a multiple of 4, so that no two bands of packed codes share a byte.
struct Range {
  int64_t begin, end;
  bool has(int64_t i) const { return i >= begin && i < end; }
};
inline Range band_range(int64_t size, int64_t band, int64_t bands) {
  const int64_t quads = ceil_div(size, 4);
  return {std::min(size, quads * band / bands * 4), std::min(size, quads * (band + 1) / bands * 4)};
}
struct RowRange {
  Range depth, height;
};
inline RowRange band_rows(int64_t depth, int64_t height, bool cut_depth, int64_t band, int64_t bands) {
  if (cut_depth) return {band_range(depth, band, bands), {0, height}};
  return {{0, depth}, band_range(height, band, bands)};
}
inline bool cuts_depth(const Plan& plan) { return plan.axis[0].pooled() > 1 || plan.axis[0].out() > 1; }

// Lanes [first, first + count) of a row.
struct Tile {
  int64_t first, count;
};

// Calls f for each run of a tile that is contiguous in a row with `pixel` elements from pixel to pixel:
// f(offset in the row, offset in a row of the tile alone, length).
template <class F>
inline void for_runs(int64_t width, Tile tile, int64_t pixel, F&& f) {
  if (pixel == tile.count) return f(int64_t(0), int64_t(0), width * tile.count);
  for (int64_t w = 0; w < width; ++w) f(w * pixel, w * tile.count, tile.count);
}

// ---- where rows come from ------------------------------------------------------------------------

// Prologue `identity`: rows as they lie in memory.
template <class T>
struct MemoryRows {
  const T* base = nullptr;
  Strides strides;

  MemoryRows() = default;
  MemoryRows(const void* data, const Strides& strides, const Unit& unit, Tile tile)
      : base(static_cast<const T*>(data) + unit.image * strides.image + unit.plane * strides.plane + tile.first),
        strides(strides) {}
  int64_t pixel() const { return strides.pixel; }
  const T* row(int64_t d, int64_t h) const { return base + d * strides.depth + h * strides.height; }
};

// The rows made last, found again by their number.
class RowCache {
 public:
  explicit RowCache(int64_t slots) : slots_(slots), keys_(new int64_t[2 * slots]), used_(keys_.get() + slots) {
    clear();
  }
  int64_t slots() const { return slots_; }
  void clear() {
    std::fill(keys_.get(), keys_.get() + slots_, int64_t(-1));
    std::fill(used_, used_ + slots_, int64_t(0));
  }
  // The slot of row `key`; `make(slot)` fills it if it is not there. The last `slots` rows asked for stay.
  template <class F>
  int64_t find(int64_t key, F&& make) {
    int64_t oldest = 0;
    for (int64_t slot = 0; slot < slots_; ++slot) {
      if (keys_[slot] == key) {
        used_[slot] = ++clock_;
        return slot;
      }
      if (used_[slot] < used_[oldest]) oldest = slot;
    }
    make(oldest);
    keys_[oldest] = key;
    used_[oldest] = ++clock_;
    return oldest;
  }

 private:
  int64_t slots_, clock_ = 0;
  std::unique_ptr<int64_t[]> keys_;
  int64_t* used_;
};

// Makes pooled rows, and the code of each maximum: prologue `max`.
template <class T>
class MaxRow {
 public:
  explicit MaxRow(const Plan& plan)
      : plan_(plan), volume_(plan.axis[0].window * plan.axis[1].window * plan.axis[2].window),
        candidates_(new const T*[2 * volume_]), codes_(new uint16_t[2 * volume_]) {}

  // Pooled row (d, h) of width pixels times tile.count lanes, contiguous.
  template <bool WithCodes>
  void make(const MemoryRows<T>& x, int64_t d, int64_t h, Tile tile, T* out, uint16_t* out_codes) const {
    const Axis& width = plan_.axis[2];
    const int64_t pooled = width.pooled(), columns = width.window, pixel = x.pixel();
    int64_t count = 0;  // candidates, at the pooled column 0
    each_row(d, h, [&](int64_t depth, int64_t height, int64_t code) {
      for (int64_t c = 0; c < columns; ++c) {
        candidates_[count] = x.row(depth, height) + (c * width.window_dilation - width.window_padding) * pixel;
        codes_[count++] = uint16_t(code * columns + c);
      }
    });
    const T** shifted = candidates_.get() + volume_;
    uint16_t* kept = codes_.get() + volume_;
    auto select = [&](int64_t w, int64_t n, bool border) {  // n elements from pooled column w
      int64_t terms = 0;
      for (int64_t e = 0; e < count; ++e) {
        const int64_t source = w + e % columns * width.window_dilation - width.window_padding;
        if (border && (source < 0 || source >= width.size)) continue;
        shifted[terms] = candidates_[e] + w * pixel;
        kept[terms++] = codes_[e];
      }
      const int64_t at = w * tile.count;
      select_max<WithCodes>(shifted, kept, terms, n, out + at, WithCodes ? out_codes + at : nullptr);
    };
    const int64_t begin = std::min(width.window_padding, pooled);
    const int64_t end = std::max(begin, std::min(pooled, width.size + width.window_padding - (columns - 1) * width.window_dilation));
    // Left to right: a row of codes is written in whole vectors, which the next run overwrites.
    for (int64_t w = 0; w < begin; ++w) select(w, tile.count, true);
    if (pixel == tile.count) {
      if (begin < end) select(begin, (end - begin) * tile.count, false);
    } else {
      for (int64_t w = begin; w < end; ++w) select(w, tile.count, false);
    }
    for (int64_t w = end; w < pooled; ++w) select(w, tile.count, true);
  }

 private:
  // Calls f(depth, height, code / columns) for the rows of the window at pooled row (d, h).
  template <class F>
  void each_row(int64_t d, int64_t h, F&& f) const {
    const Axis &depth = plan_.axis[0], &height = plan_.axis[1];
    for (int64_t a = 0; a < depth.window; ++a) {
      const int64_t z = d - depth.window_padding + a * depth.window_dilation;
      if (z < 0 || z >= depth.size) continue;
      for (int64_t b = 0; b < height.window; ++b) {
        const int64_t y = h - height.window_padding + b * height.window_dilation;
        if (y >= 0 && y < height.size) f(z, y, a * height.window + b);
      }
    }
  }

  const Plan& plan_;
  int64_t volume_;
  std::unique_ptr<const T*[]> candidates_;
  std::unique_ptr<uint16_t[]> codes_;
};

// Packed codes lie on the grid of x or, along axes where it is larger, of the pooled map.
inline int64_t code_position(const Plan& plan, int64_t d, int64_t h, int64_t w) {
  const Axis &height = plan.axis[1], &width = plan.axis[2];
  return ((d * std::max(height.size, height.pooled()) + h) * std::max(width.size, width.pooled()) + w) * plan.lanes;
}

// Calls f(first position of the run in the plane's codes, its offset in a row of the tile, length) for the
// runs of pooled row (d, h).
template <class F>
inline void for_code_runs(const Plan& plan, int64_t d, int64_t h, Tile tile, F&& f) {
  const int64_t row = code_position(plan, d, h, 0) + tile.first;
  for_runs(plan.axis[2].pooled(), tile, plan.lanes, [&](int64_t offset, int64_t at, int64_t n) { f(row + offset, at, n); });
}

// Pooled rows, each made once while it is in reach; with codes, those of the rows in `owned` are packed.
template <class T>
class PooledRows {
 public:
  PooledRows(const Plan& plan, const BlurArguments& arguments)
      : plan_(plan), arguments_(arguments), max_(plan), row_elements_(plan.axis[2].pooled() * plan.tile + Buffer<T>::margin),
        cache_(std::max<int64_t>(1, plan.longest[0] * plan.longest[1])), values_(cache_.slots() * row_elements_),
        codes_(plan.axis[2].pooled() * plan.tile),
        packed_rows_(new bool[arguments.codes ? plan.axis[0].pooled() * plan.axis[1].pooled() : 0]) {}

  void start(const Unit& unit, Tile tile, RowRange owned) {
    x_ = MemoryRows<T>(arguments_.x, arguments_.x_strides, unit, tile);
    tile_ = tile;
    owned_ = owned;
    cache_.clear();
    if (!arguments_.codes) return;
    plane_ = arguments_.codes + (unit.image * plan_.planes + unit.plane) * plan_.code_bytes;
    std::fill(packed_rows_.get(), packed_rows_.get() + plan_.axis[0].pooled() * plan_.axis[1].pooled(), false);
  }
  int64_t pixel() const { return tile_.count; }
  const T* row(int64_t d, int64_t h) {
    const int64_t slot = cache_.find(number(d, h), [&](int64_t slot) { make(d, h, values_.get() + slot * row_elements_); });
    return values_.get() + slot * row_elements_;
  }
  // Packs the codes of the owned rows that no output asked for.
  void finish() {
    if (!plane_) return;
    for (int64_t d = owned_.depth.begin; d < owned_.depth.end; ++d)
      for (int64_t h = owned_.height.begin; h < owned_.height.end; ++h)
        if (!packed_rows_[number(d, h)]) row(d, h);
  }

 private:
  int64_t number(int64_t d, int64_t h) const { return d * plan_.axis[1].pooled() + h; }
  void make(int64_t d, int64_t h, T* out) {
    const bool pack = plane_ && owned_.depth.has(d) && owned_.height.has(h) && !packed_rows_[number(d, h)];
    if (!pack) return max_.template make<false>(x_, d, h, tile_, out, nullptr);
    max_.template make<true>(x_, d, h, tile_, out, codes_.get());
    for_code_runs(plan_, d, h, tile_, [&](int64_t start, int64_t at, int64_t n) {
      pack_codes(codes_.get() + at, n, plan_.code_bits, start, plane_);
    });
    packed_rows_[number(d, h)] = true;
  }

  const Plan& plan_;
  const BlurArguments& arguments_;
  MemoryRows<T> x_;
  Tile tile_{};
  RowRange owned_{};
  MaxRow<T> max_;
  int64_t row_elements_;
  RowCache cache_;
  Buffer<T> values_;
  Buffer<uint16_t> codes_;
  uint8_t* plane_ = nullptr;
  std::unique_ptr<bool[]> packed_rows_;
};

// ---- the blur of a plane -------------------------------------------------------------------------

// A row of the blur (or, Transposed, of its adjoint): the matrices of depth and height weigh the rows of the
// source, that of width their sum.
template <class T, bool Transposed>
class RowBlur {
 public:
  using A = accumulator<T>;

  explicit RowBlur(const Plan& plan)
      : plan_(plan), rows_(new const T*[std::max<int64_t>(1, plan.longest[0] * plan.longest[1])]),
        terms_(std::max<int64_t>({1, plan.longest[0] * plan.longest[1], plan.longest[2]})),
        weights_(new const A*[terms_]), pixels_(new const A*[terms_]),
        products_(terms_ * (plan.per_channel ? plan.tile : 1)), sum_(row_size()), odd_(plan.lanes == 1 ? row_size() : 0) {
  }

  // Row (d, h) of the result for plane `plane`, `pixel` elements from pixel to pixel.
  template <class Source, class O>
  void row(Source& source, int64_t plane, Tile tile, int64_t d, int64_t h, O* out, int64_t pixel) {
    gather(source, plane, tile, d, h);
    if (plan_.lanes > 1) return blend_pixels(source.pixel(), tile, out, pixel);
    const A* taps = tap(2, 0, plane, tile);
    const Axis& width = plan_.axis[2];
    if constexpr (Transposed) {
      if (width.stride == 1) transposed_row<1>(taps, out);
      else if (width.stride == 2) transposed_row<2>(taps, out);
      else transposed_row<0>(taps, out);
    } else {
      if (width.stride == 1) forward_row<1>(taps, out);
      else if (width.stride == 2) forward_row<2>(taps, out);
      else forward_row<0>(taps, out);
    }
  }

  // The row sum alone, before the blur along the width: (width, tile.count), contiguous.
  template <class Source>
  const A* row_sum(Source& source, int64_t plane, Tile tile, int64_t d, int64_t h) {
    gather(source, plane, tile, d, h);
    sum_rows(source.pixel(), tile);
    return sum_.get();
  }

  // The weight of one tap of an axis: a scalar, or a lane each with per_channel.
  const A* tap(int axis, int64_t index, int64_t plane, Tile tile) const {
    const A* taps = static_cast<const A*>(plan_.taps[axis]);
    if (!plan_.per_channel) return taps + index;
    if (plan_.lanes > 1) return taps + index * plan_.lanes + tile.first;
    return taps + plane * plan_.axis[axis].taps + index;
  }

 private:
  int64_t source_width() const { return Transposed ? plan_.axis[2].out() : plan_.axis[2].pooled(); }
  int64_t result_width() const { return Transposed ? plan_.axis[2].pooled() : plan_.axis[2].out(); }
  int64_t row_size() const { return (source_width() + 1) * plan_.tile; }

  template <class Source>
  void gather(Source& source, int64_t plane, Tile tile, int64_t d, int64_t h) {
    const Table &depth = plan_.table[0], &height = plan_.table[1];
    const int64_t lanes = plan_.per_channel && plan_.lanes > 1 ? tile.count : 1;
    count_ = 0;
    for (int64_t a = depth.begin[d]; a < depth.begin[d + 1]; ++a)
      for (int64_t b = height.begin[h]; b < height.begin[h + 1]; ++b) {
        const Entry &outer = depth.entries[a], &inner = height.entries[b];
        rows_[count_] = source.row(outer.source, inner.source);
        const A *left = tap(0, outer.tap, plane, tile), *right = tap(1, inner.tap, plane, tile);
        A* product = products_.get() + count_ * lanes;
        for (int64_t c = 0; c < lanes; ++c) product[c] = left[c] * right[c];
        weights_[count_++] = product;
      }
  }

  void sum_rows(int64_t pixel, Tile tile) {
    if (plan_.per_channel && plan_.lanes > 1) {
      for (int64_t w = 0; w < source_width(); ++w)
        weighted_sum<true>(rows_.get(), w * pixel, weights_.get(), count_, tile.count, sum_.get() + w * tile.count);
    } else {
      for_runs(source_width(), tile, pixel, [&](int64_t from, int64_t at, int64_t n) {
        weighted_sum<false>(rows_.get(), from, weights_.get(), count_, n, sum_.get() + at);
      });
    }
  }

  template <class O>
  void blend_pixels(int64_t source_pixel, Tile tile, O* out, int64_t pixel) {
    sum_rows(source_pixel, tile);
    const Table& table = plan_.table[2];
    for (int64_t o = 0; o < result_width(); ++o) {
      int64_t count = 0;
      for (int64_t e = table.begin[o]; e < table.begin[o + 1]; ++e) {
        pixels_[count] = sum_.get() + table.entries[e].source * tile.count;
        weights_[count++] = tap(2, table.entries[e].tap, 0, tile);
      }
      if (plan_.per_channel) weighted_sum<true>(pixels_.get(), 0, weights_.get(), count, tile.count, out + o * pixel);
      else weighted_sum<false>(pixels_.get(), 0, weights_.get(), count, tile.count, out + o * pixel);
    }
  }

  // One result of a row by the axis' matrix, for borders; element i of the source is at(i).
  template <class O, class At>
  void border(const A* taps, int64_t begin, int64_t end, O* out, At&& at) {
    const Table& table = plan_.table[2];
    for (int64_t o = begin; o < end; ++o) {
      A total = 0;
      for (int64_t e = table.begin[o]; e < table.begin[o + 1]; ++e)
        total += taps[table.entries[e].tap] * at(table.entries[e].source);
      out[o] = narrow_to<O>(total);
    }
  }
  template <class O>
  static O narrow_to(A v) {
    if constexpr (std::is_same_v<O, A>) return v;
    else return narrow<O>(v);
  }

  // Stride 1 or 2, or 0 for any other.
  template <int Stride, class O>
  void forward_row(const A* taps, O* out) {
    const Axis& width = plan_.axis[2];
    const Table& table = plan_.table[2];
    const int64_t begin = table.interior_begin, end = table.interior_end, n = width.pooled();
    A *even = sum_.get(), *odd = odd_.get();
    if constexpr (Stride == 2) {
      // Padded position p = i + before lies in phase p % 2: an odd `before` swaps the phases.
      const int64_t lead = modulo(width.before, 2), shift = floor_div(width.before, 2);
      weighted_sum_split(rows_.get(), weights_.get(), count_, n, even, odd);
      const A* const phase[2] = {(lead ? odd - 1 : even) - shift, (lead ? even : odd) - shift};
      correlate<2>(phase, taps, width.taps, begin, end, out);
      auto at = [&](int64_t i) { return (i % 2 ? odd : even)[i / 2]; };
      border(taps, 0, begin, out, at);
      border(taps, end, width.out(), out, at);
    } else {
      weighted_sum<false>(rows_.get(), 0, weights_.get(), count_, n, even);
      auto at = [&](int64_t i) { return even[i]; };
      if constexpr (Stride == 1) {
        const A* const phase[1] = {even - width.before};
        correlate<1>(phase, taps, width.taps, begin, end, out);
        border(taps, 0, begin, out, at);
        border(taps, end, width.out(), out, at);
      } else {
        border(taps, 0, width.out(), out, at);
      }
    }
  }

  template <int Stride, class O>
  void transposed_row(const A* taps, O* out) {
    const Axis& width = plan_.axis[2];
    const Table& table = plan_.table[2];
    const int64_t begin = table.interior_begin, end = table.interior_end;
    const A* v = sum_.get();
    weighted_sum<false>(rows_.get(), 0, weights_.get(), count_, width.out(), sum_.get());
    auto at = [&](int64_t i) { return v[i]; };
    if constexpr (Stride == 0) {
      border(taps, 0, width.pooled(), out, at);
    } else {
      spread<Stride>(v, taps, width.taps, width.before, begin, end, out);
      border(taps, 0, begin, out, at);
      border(taps, end, width.pooled(), out, at);
    }
  }

  const Plan& plan_;
  std::unique_ptr<const T*[]> rows_;
  int64_t terms_, count_ = 0;
  std::unique_ptr<const A*[]> weights_, pixels_;
  Buffer<A> products_, sum_, odd_;
};

// ---- the adjoint of the max ----------------------------------------------------------------------

// Rows of the input's gradient: each gathers the gradients of the pooled rows that it was a maximum in.
template <class T>
class SelectingRows {
 public:
  using A = accumulator<T>;

  SelectingRows(const Plan& plan, const MaxBackwardArguments& arguments)
      : plan_(plan), arguments_(arguments), max_(plan),
        // Codes that no maximum has surround a row, so that readers past its ends find nothing.
        halo_((plan.axis[2].window - 1) * plan.axis[2].window_dilation * plan.tile),
        row_elements_(plan.axis[2].pooled() * plan.tile + 2 * halo_ + Buffer<uint16_t>::margin),
        cache_(plan.axis[0].window * plan.axis[1].window), grads_(cache_.slots() * row_elements_),
        codes_(cache_.slots() * row_elements_), values_(arguments.codes ? 0 : plan.axis[2].pooled() * plan.tile),
        sum_(plan.axis[2].size * plan.tile),
        readers_(new Reader<A>[plan.axis[0].window * plan.axis[1].window * plan.axis[2].window]) {}

  void start(const Unit& unit, Tile tile) {
    grad_ = MemoryRows<T>(arguments_.grad, arguments_.grad_strides, unit, tile);
    if (arguments_.codes) plane_ = arguments_.codes + (unit.image * plan_.planes + unit.plane) * plan_.code_bytes;
    else x_ = MemoryRows<T>(arguments_.x, arguments_.x_strides, unit, tile);
    tile_ = tile;
    plane_index_ = unit.plane;
    cache_.clear();
  }

  void row(RowBlur<T, true>& blur, int64_t d, int64_t h, T* out, int64_t pixel) {
    const Axis &depth = plan_.axis[0], &height = plan_.axis[1], &width = plan_.axis[2];
    int64_t count = 0;
    for (int64_t a = 0; a < depth.window; ++a) {
      const int64_t z = d + depth.window_padding - a * depth.window_dilation;
      if (z < 0 || z >= depth.pooled()) continue;
      for (int64_t b = 0; b < height.window; ++b) {
        const int64_t y = h + height.window_padding - b * height.window_dilation;
        if (y < 0 || y >= height.pooled()) continue;
        const int64_t slot = cache_.find(z * height.pooled() + y, [&](int64_t slot) { make(blur, z, y, slot); });
        const int64_t first = slot * row_elements_ + halo_;
        for (int64_t c = 0; c < width.window; ++c) {
          const int64_t at = first + (width.window_padding - c * width.window_dilation) * tile_.count;
          readers_[count++] = {grads_.get() + at, codes_.get() + at,
                               int32_t((a * height.window + b) * width.window + c)};
        }
      }
    }
    const int64_t n = width.size * tile_.count;
    if (pixel == tile_.count) return selected_sum(readers_.get(), count, n, out);
    selected_sum(readers_.get(), count, n, sum_.get());
    for (int64_t w = 0; w < width.size; ++w)
      std::memcpy(out + w * pixel, sum_.get() + w * tile_.count, tile_.count * sizeof(T));
  }

 private:
  void make(RowBlur<T, true>& blur, int64_t d, int64_t h, int64_t slot) {
    A* grads = grads_.get() + slot * row_elements_ + halo_;
    uint16_t* codes = codes_.get() + slot * row_elements_ + halo_;
    const int64_t n = plan_.axis[2].pooled() * tile_.count;
    blur.row(grad_, plane_index_, tile_, d, h, grads, tile_.count);
    if (plane_) {
      for_code_runs(plan_, d, h, tile_, [&](int64_t start, int64_t at, int64_t count) {
        unpack_codes(plane_, start, count, plan_.code_bits, codes + at);
      });
    } else {
      max_.template make<true>(x_, d, h, tile_, values_.get(), codes);
    }
    std::fill(codes - halo_, codes, no_code);
    std::fill(codes + n, codes + n + halo_ + lanes<A>, no_code);
  }
  static constexpr uint16_t no_code = 0xffff;

  const Plan& plan_;
  const MaxBackwardArguments& arguments_;
  MaxRow<T> max_;
  int64_t halo_, row_elements_;
  RowCache cache_;
  Buffer<A> grads_;
  Buffer<uint16_t> codes_;
  Buffer<T> values_, sum_;
  std::unique_ptr<Reader<A>[]> readers_;
  MemoryRows<T> grad_, x_;
  Tile tile_{};
  int64_t plane_index_ = 0;
  const uint8_t* plane_ = nullptr;
};

}  // namespace aablur::AABLUR_ISA
