// Prologue `max`: pooled rows and their codes, and the adjoint that sends gradients back to the maxima.
#pragma once

#include "cpu/argmax_codes.h"
#include "cpu/blur.h"
#include "cpu/work.h"

namespace aablur::AABLUR_ISA {

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
      : plan_(plan),
        volume_(plan.axis[0].window * plan.axis[1].window * plan.axis[2].window),
        candidates_(new const T*[2 * volume_]),
        codes_(new uint16_t[2 * volume_]) {}

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
    const int64_t end =
        std::max(begin, std::min(pooled, width.size + width.window_padding - (columns - 1) * width.window_dilation));
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

// Calls f(the run's first byte in a plane's codes, its offset in a row of the tile, length) for the runs of codes of
// pooled row (d, h): a tile begins with a byte.
template <class F>
inline void for_code_runs(const Plan& plan, int64_t d, int64_t h, Tile tile, F&& f) {
  const Packing& packing = plan.packing;
  const int64_t width = plan.axis[2].pooled(), row = d * plan.axis[1].pooled() + h;
  if (!plan.channels_last) return f(row * packing.row_bytes, int64_t(0), width);
  const int64_t first = row * width * packing.row_bytes + tile.first * packing.bits / 8;
  if (tile.count == plan.lanes && tile.count * packing.bits == packing.row_bytes * 8)
    return f(first, int64_t(0), width * tile.count);
  for (int64_t w = 0; w < width; ++w) f(first + w * packing.row_bytes, w * tile.count, tile.count);
}

// Pooled rows, each made once while it is in reach; with codes, those of the rows in `owned` are packed.
template <class T>
class PooledRows {
 public:
  PooledRows(const Plan& plan, const BlurArguments& arguments)
      : plan_(plan),
        arguments_(arguments),
        max_(plan),
        row_elements_(plan.axis[2].pooled() * plan.tile + Buffer<T>::margin),
        cache_(std::max<int64_t>(1, plan.longest[0] * plan.longest[1])),
        values_(cache_.slots() * row_elements_),
        codes_(plan.axis[2].pooled() * plan.tile),
        packed_rows_(new bool[arguments.codes ? plan.axis[0].pooled() * plan.axis[1].pooled() : 0]) {}

  void start(const Unit& unit, Tile tile, RowRange owned) {
    x_ = MemoryRows<T>(arguments_.x, arguments_.x_strides, unit, tile);
    tile_ = tile;
    owned_ = owned;
    cache_.clear();
    if (!arguments_.codes) return;
    plane_ = arguments_.codes + (unit.image * plan_.planes + unit.plane) * plan_.packing.plane_bytes;
    std::fill(packed_rows_.get(), packed_rows_.get() + plan_.axis[0].pooled() * plan_.axis[1].pooled(), false);
  }
  int64_t pixel() const { return tile_.count; }
  const T* row(int64_t d, int64_t h) {
    const int64_t slot =
        cache_.find(number(d, h), [&](int64_t slot) { make(d, h, values_.get() + slot * row_elements_); });
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
    static_switch<2, 4, 8, 16>(plan_.packing.bits, [&](auto bits) {
      for_code_runs(plan_, d, h, tile_, [&](int64_t byte, int64_t at, int64_t n) {
        pack_codes<bits>(codes_.get() + at, n, plane_ + byte, ceil_div(n * bits, 8));
      });
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

// No maximum has this code.
constexpr uint16_t no_code = 0xffff;

// ---- the adjoint of the max ----------------------------------------------------------------------

// Rows of the input's gradient: each gathers the gradients of the pooled rows that it was a maximum in.
template <class T>
class SelectingRows {
 public:
  using A = accumulator<T>;

  SelectingRows(const Plan& plan, const MaxBackwardArguments& arguments)
      : plan_(plan),
        arguments_(arguments),
        max_(plan),
        // Codes that no maximum has surround a row, so that readers past its ends find nothing.
        halo_((plan.axis[2].window - 1) * plan.axis[2].window_dilation * plan.tile),
        row_elements_(plan.axis[2].pooled() * plan.tile + 2 * halo_ + Buffer<uint16_t>::margin),
        cache_(plan.axis[0].window * plan.axis[1].window),
        grads_(cache_.slots() * row_elements_),
        codes_(cache_.slots() * row_elements_),
        values_(arguments.codes ? 0 : plan.axis[2].pooled() * plan.tile),
        sum_(plan.axis[2].size * plan.tile),
        readers_(new Reader<A>[plan.axis[0].window * plan.axis[1].window * plan.axis[2].window]) {}

  void start(const Unit& unit, Tile tile) {
    grad_ = MemoryRows<T>(arguments_.grad, arguments_.grad_strides, unit, tile);
    if (arguments_.codes)
      plane_ = arguments_.codes + (unit.image * plan_.planes + unit.plane) * plan_.packing.plane_bytes;
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
      static_switch<2, 4, 8, 16>(plan_.packing.bits, [&](auto bits) {
        for_code_runs(plan_, d, h, tile_, [&](int64_t byte, int64_t at, int64_t count) {
          unpack_codes<bits>(plane_ + byte, plan_.packing.plane_bytes - byte, count, codes + at);
        });
      });
    } else {
      max_.template make<true>(x_, d, h, tile_, values_.get(), codes);
    }
    std::fill(codes - halo_, codes, no_code);
    std::fill(codes + n, codes + n + halo_ + lanes<A>, no_code);
  }

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

// ---- whole planes --------------------------------------------------------------------------------

// Where a window's positions lie in a dense plane, and their codes.
class Window {
 public:
  explicit Window(const Plan& plan)
      : volume_(plan.axis[0].window * plan.axis[1].window * plan.axis[2].window), offsets_(new int64_t[volume_]) {
    const Axis &depth = plan.axis[0], &height = plan.axis[1], &width = plan.axis[2];
    int64_t code = 0;
    for (int64_t a = 0; a < depth.window; ++a)
      for (int64_t b = 0; b < height.window; ++b)
        for (int64_t c = 0; c < width.window; ++c)
          offsets_[code++] = (a * depth.window_dilation * height.size + b * height.window_dilation) * width.size +
                             c * width.window_dilation;
  }
  int64_t volume() const { return volume_; }
  int64_t offset(int64_t code) const { return offsets_[code]; }
  int64_t last_offset() const { return offsets_[volume_ - 1]; }

 private:
  int64_t volume_;
  std::unique_ptr<int64_t[]> offsets_;
};

// A plane's max in one run over the grid of x: what lies between the pooled rows is made and never read.
template <class T>
class MaxPlane {
 public:
  explicit MaxPlane(const Plan& plan)
      : window_(plan),
        positions_(plan.grid_positions),
        candidates_(new const T*[window_.volume()]),
        codes_(new uint16_t[window_.volume()]) {
    for (int64_t e = 0; e < window_.volume(); ++e) codes_[e] = uint16_t(e);
  }
  template <bool WithCodes>
  void make(const T* x, T* out, uint16_t* out_codes) const {
    for (int64_t e = 0; e < window_.volume(); ++e) candidates_[e] = x + window_.offset(e);
    select_max<WithCodes>(candidates_.get(), codes_.get(), window_.volume(), positions_, out, out_codes);
  }

 private:
  Window window_;
  int64_t positions_;
  std::unique_ptr<const T*[]> candidates_;
  std::unique_ptr<uint16_t[]> codes_;
};

// Where the rows of a plane on the grid of x lie.
inline Strides grid_strides(const Plan& plan) {
  return {0, 0, {plan.axis[1].size * plan.axis[2].size, plan.axis[2].size, 1}};
}

// Calls f(the first byte of a row of maxima in a plane's codes, its position on the grid of x, its length) for all
// rows, in order.
template <class F>
inline void for_code_rows(const Plan& plan, F&& f) {
  const Strides grid = grid_strides(plan);
  const int64_t height = plan.axis[1].pooled(), width = plan.axis[2].pooled(), row_bytes = plan.packing.row_bytes;
  int64_t byte = 0;
  for (int64_t d = 0; d < plan.axis[0].pooled(); ++d)
    for (int64_t h = 0; h < height; ++h, byte += row_bytes) f(byte, d * grid.axis[0] + h * grid.axis[1], width);
}

// Pooled planes on the grid of x, for plans with whole_planes.
template <class T>
class PooledPlane {
 public:
  PooledPlane(const Plan& plan, const BlurArguments& arguments)
      : plan_(plan),
        arguments_(arguments),
        max_(plan),
        values_(plan.grid_positions),
        codes_(arguments.codes ? plan.grid_positions : 0) {
    rows_.base = values_.get();
    rows_.strides = grid_strides(plan);
  }

  const MemoryRows<T>& make(const Unit& unit) {
    const MemoryRows<T> x(arguments_.x, arguments_.x_strides, unit, Tile{0, 1});
    if (arguments_.codes) {
      max_.template make<true>(x.base, values_.get(), codes_.get());
      const Packing& packing = plan_.packing;
      uint8_t* const plane = arguments_.codes + (unit.image * plan_.planes + unit.plane) * packing.plane_bytes;
      static_switch<2, 4, 8, 16>(packing.bits, [&](auto bits) {
        for_code_rows(plan_, [&](int64_t byte, int64_t at, int64_t n) {
          pack_codes<bits>(codes_.get() + at, n, plane + byte, packing.plane_bytes - byte);
        });
      });
    } else {
      max_.template make<false>(x.base, values_.get(), nullptr);
    }
    return rows_;
  }

 private:
  const Plan& plan_;
  const BlurArguments& arguments_;
  MaxPlane<T> max_;
  Buffer<T> values_;
  Buffer<uint16_t> codes_;
  MemoryRows<T> rows_;
};

// The input's gradient for plans with whole_planes, a plane at a time.
template <class T>
class SelectingPlane {
 public:
  using A = accumulator<T>;

  SelectingPlane(const Plan& plan, const MaxBackwardArguments& arguments)
      : plan_(plan),
        arguments_(arguments),
        max_(plan),
        window_(plan),
        elements_(plan.axis[0].size * plan.axis[1].size * plan.axis[2].size),
        halo_(window_.last_offset()),
        grads_(elements_ + halo_),
        codes_(elements_ + halo_ + lanes<A>),
        values_(arguments.codes ? 0 : plan.grid_positions),
        readers_(new Reader<A>[window_.volume()]) {
    std::fill(codes_.get(), codes_.get() + elements_ + halo_ + lanes<A>, no_code);
    for (int64_t e = 0; e < window_.volume(); ++e)
      readers_[e] = {grads_.get() + halo_ - window_.offset(e), codes_.get() + halo_ - window_.offset(e), int32_t(e)};
  }

  void plane(RowBlur<T, true>& blur, const Unit& unit, T* out) {
    const MemoryRows<T> grad(arguments_.grad, arguments_.grad_strides, unit, Tile{0, 1});
    A* grads = grads_.get() + halo_;
    uint16_t* codes = codes_.get() + halo_;
    const RowRange all{{0, plan_.result[0]}, {0, plan_.result[1]}};
    blur.rows(grad, unit.plane, Tile{0, 1}, all, grads, grid_strides(plan_));
    const int64_t n = plan_.grid_positions;
    if (arguments_.codes) {
      const Packing& packing = plan_.packing;
      const uint8_t* const plane = arguments_.codes + (unit.image * plan_.planes + unit.plane) * packing.plane_bytes;
      static_switch<2, 4, 8, 16>(packing.bits, [&](auto bits) {
        for_code_rows(plan_, [&](int64_t byte, int64_t at, int64_t n) {
          unpack_codes<bits>(plane + byte, packing.plane_bytes - byte, n, codes + at);
        });
      });
    } else {
      const MemoryRows<T> x(arguments_.x, arguments_.x_strides, unit, Tile{0, 1});
      max_.template make<true>(x.base, values_.get(), codes);
      std::fill(codes + n, codes + std::max(n + lanes<A>, elements_ + lanes<A>), no_code);
    }
    selected_sum(readers_.get(), window_.volume(), elements_, out);
  }

 private:
  const Plan& plan_;
  const MaxBackwardArguments& arguments_;
  MaxPlane<T> max_;
  Window window_;
  int64_t elements_, halo_;
  Buffer<A> grads_;  // what lies between the pooled rows stays zero
  Buffer<uint16_t> codes_;
  Buffer<T> values_;
  std::unique_ptr<Reader<A>[]> readers_;
};

}  // namespace aablur::AABLUR_ISA
