// The blur of a plane, row by row: three sparse matrices applied to the rows of a source.
#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "cpu/permute_blur.h"
#include "cpu/row_ops.h"
#include "cpu/work.h"

namespace aablur::AABLUR_ISA {

// A row of the blur (or, Transposed, of its adjoint): the matrices of depth and height weigh the rows of the
// source, that of width their sum. A Source has row(depth, height), and pixel(), the elements between pixels.
template <class T, bool Transposed>
class RowBlur {
 public:
  using A = accumulator<T>;

  // With `sums_rows`, row_sum() alone is asked for.
  explicit RowBlur(const Plan& plan, bool sums_rows = false)
      : plan_(plan),
        terms_(std::max<int64_t>({1, plan.longest[0] * plan.longest[1], plan.longest[2]})),
        direct_(!plan.per_channel && plan.longest[0] * plan.longest[1] <= most_direct_terms &&
                plan.longest[0] * plan.longest[1] * plan.longest[2] <= most_direct_terms),
        rows_(new const T*[terms_]),
        pixels_(new const A*[terms_]),
        pointers_(new const A*[terms_]),
        weights_(terms_ * (plan.per_channel ? plan.tile : 1)),
        pixel_weights_(terms_),
        splits_(!Transposed && !sums_rows && plan.lanes == 1 && plan.axis[2].stride == 2),
        sum_((splits_ ? plan.source[2] / 2 + 1 : plan.source[2] + 1) * plan.tile),
        odd_(splits_ ? plan.source[2] / 2 + 1 : 0),
        rolls_(!Transposed && plan.lanes > 1 && !plan.per_channel && plan.axis[2].taps >= 2 && plan.axis[2].taps <= 7 &&
               plan.axis[2].stride <= 2 && plan.tile >= 2 * lanes<A>),
        columns_(rolls_ ? plan.axis[2].taps * (plan.tile + 2 * lanes<A>) : 0) {
    if constexpr (has_permute<A>) {
      if (plan.lanes == 1 && !plan.per_channel && std::max(plan.source[2], plan.result[2]) <= longest_permuted<A>)
        permute_.emplace(plan.table[2], static_cast<const A*>(plan.taps[2]), plan.source[2], plan.result[2]);
    }
  }

  // Row (d, h) of the result for plane `plane`, `pixel` elements from pixel to pixel.
  template <class Source, class O>
  void row(Source&& source, int64_t plane, Tile tile, int64_t d, int64_t h, O* out, int64_t pixel) {
    gather(source, plane, tile, d, h);
    if constexpr (has_permute<A>) {
      if (by_permute()) {
        return permute_->with_pass([&](const auto& pass) {
          pass(count_, [&](int64_t r) { return std::pair(rows_[r], weights_.get()[r]); }, out);
        });
      }
    }
    blend(source.pixel(), plane, tile, out, pixel);
  }

  // Rows of one plane of the result from a plane of the source, whose rows lie a stride apart.
  template <class O>
  void rows(const MemoryRows<T>& source, int64_t plane, Tile tile, RowRange range, O* out, const Strides& strides) {
    auto each = [&](auto&& f) {
      for (int64_t d = range.depth.begin; d < range.depth.end; ++d)
        for (int64_t h = range.height.begin; h < range.height.end; ++h)
          f(d, h, out + d * strides.axis[0] + h * strides.axis[1]);
    };
    if (plan_.per_channel || plan_.result[0] > most_listed_rows / plan_.result[1]) {
      return each([&](int64_t d, int64_t h, O* row) { this->row(source, plane, tile, d, h, row, strides.axis[2]); });
    }
    const Terms terms = terms_of(source.strides);
    if constexpr (has_permute<A>) {
      if (by_permute()) {
        return permute_->with_pass([&](auto pass) {
          // Locals by value: what a lambda holds by reference would be read again after every store.
          const auto [begin, list, height] = terms;
          const T* const base = source.base;
          auto blur_row = [begin = begin, list = list, base, pass](int64_t index, O* row, auto&& before) {
            const Term* const term = list + begin[index];
            const int64_t count = begin[index + 1] - begin[index];
            before(term, count);
            pass(count, [base, term](int64_t r) { return std::pair(base + term[r].offset, term[r].weight); }, row);
          };
          if (plan_.result[0] * plan_.result[1] == 1) {  // a small plane as a row
            ahead_(base);
            return blur_row(0, out, [](const Term*, int64_t) {});
          }
          const auto [depths, heights] = range;
          const int64_t depth_stride = strides.axis[0], height_stride = strides.axis[1];
          O* const plane_out = out;
          Ahead ahead = ahead_;
          for (int64_t d = depths.begin; d < depths.end; ++d)
            for (int64_t h = heights.begin; h < heights.end; ++h)
              blur_row(d * height + h, plane_out + d * depth_stride + h * height_stride,
                       [base, &ahead](const Term* term, int64_t count) {
                         if (count > 0) ahead(base + term[count - 1].offset);
                       });
          ahead_ = ahead;
        });
      }
    }
    each([&](int64_t d, int64_t h, O* row) {
      const int64_t index = d * terms.height + h;
      count_ = 0;
      for (int64_t t = terms.begin[index]; t < terms.begin[index + 1]; ++t) {
        rows_[count_] = source.base + terms.list[t].offset;
        weights_.get()[count_++] = terms.list[t].weight;
      }
      if (plan_.lanes == 1 && count_ > 0) ahead_(rows_[count_ - 1]);
      blend(source.pixel(), plane, tile, row, strides.axis[2]);
    });
  }

  // The row sum alone, before the blur along the width: (width, tile.count), contiguous.
  template <class Source>
  const A* row_sum(Source&& source, int64_t plane, Tile tile, int64_t d, int64_t h) {
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
  bool by_permute() const { return permute_ && permute_->usable(); }

  // What gather() finds for every result row of a plane whose rows lie at fixed offsets, made once.
  struct Term {
    int64_t offset;
    A weight;
  };
  struct Terms {
    const int64_t* begin;
    const Term* list;
    int64_t height;
  };
  Terms terms_of(const Strides& strides) {
    if (term_begin_.empty()) {
      const Table &depth = plan_.table[0], &height = plan_.table[1];
      const A *left = static_cast<const A*>(plan_.taps[0]), *right = static_cast<const A*>(plan_.taps[1]);
      for (int64_t d = 0; d < plan_.result[0]; ++d)
        for (int64_t h = 0; h < plan_.result[1]; ++h) {
          term_begin_.push_back(int64_t(term_list_.size()));
          const Table::Row depths = depth.row(d), heights = height.row(h);
          for (const Entry& a : depths)
            for (const Entry& b : heights)
              term_list_.push_back({depths.source(a) * strides.axis[0] + heights.source(b) * strides.axis[1],
                                    left[a.tap] * right[b.tap]});
        }
      term_begin_.push_back(int64_t(term_list_.size()));
    }
    return {term_begin_.data(), term_list_.data(), plan_.result[1]};
  }

  bool per_lane() const { return plan_.per_channel && plan_.lanes > 1; }

  // The rows that result row (d, h) is a sum of, and their weights.
  template <class Source>
  void gather(Source&& source, int64_t plane, Tile tile, int64_t d, int64_t h) {
    const Table::Row depths = plan_.table[0].row(d), heights = plan_.table[1].row(h);
    const int64_t weights = per_lane() ? tile.count : 1;
    count_ = 0;
    for (const Entry& outer : depths)
      for (const Entry& inner : heights) {
        rows_[count_] = source.row(depths.source(outer), heights.source(inner));
        const A *left = tap(0, outer.tap, plane, tile), *right = tap(1, inner.tap, plane, tile);
        A* product = weights_.get() + count_++ * weights;
        for (int64_t c = 0; c < weights; ++c) product[c] = left[c] * right[c];
      }
  }

  // The row sum, blurred along the width.
  template <class O>
  void blend(int64_t source_pixel, int64_t plane, Tile tile, O* out, int64_t pixel) {
    if (plan_.lanes > 1) return blend_pixels(source_pixel, tile, out, pixel);
    const A* taps = tap(2, 0, plane, tile);
    static_switch<1, 2, 0>(plan_.axis[2].stride, [&](auto stride) { along<stride>(taps, out); });
  }

  void sum_rows(int64_t pixel, Tile tile) {
    if (per_lane()) {
      for (int64_t r = 0; r < count_; ++r) pointers_[r] = weights_.get() + r * tile.count;
      for (int64_t w = 0; w < plan_.source[2]; ++w)
        weighted_sum(rows_.get(), w * pixel, pointers_.get(), count_, tile.count, sum_.get() + w * tile.count);
    } else {
      for_runs(plan_.source[2], tile, pixel, [&](int64_t from, int64_t at, int64_t n) {
        weighted_sum(rows_.get(), from, weights_.get(), count_, n, sum_.get() + at);
      });
    }
  }

  // Along the width where pixels have lanes: weighted sums again, of pixels.
  template <class O>
  void blend_pixels(int64_t source_pixel, Tile tile, O* out, int64_t pixel) {
    if (direct_) return blend_at_once(source_pixel, tile, out, pixel);
    if (!rolls_) sum_rows(source_pixel, tile);
    const Table& table = plan_.table[2];
    const Axis& width = plan_.axis[2];
    int64_t begin = 0, end = 0;  // of what is not left to the matrix
    if (!Transposed && !plan_.per_channel) {
      begin = table.interior_begin;
      end = table.interior_end;
      const int64_t first = begin * width.stride - width.before;
      if (begin == end) {
        // Nothing reads the pixels from `first` on: they may lie outside of the map.
      } else if (rolls_) {
        roll(source_pixel, tile, first, end - begin, out + begin * pixel, pixel);
      } else {
        correlate_pixels(sum_.get() + first * tile.count, width.stride * tile.count, tile.count, tap(2, 0, 0, tile),
                         width.taps, end - begin, out + begin * pixel, pixel);
      }
    }
    for (int64_t o = begin == 0 ? end : 0; o < plan_.result[2]; o = o + 1 == begin ? end : o + 1) {
      int64_t count = 0;
      const Table::Row entries = table.row(o);
      for (const Entry& e : entries) {
        const int64_t w = entries.source(e);
        if (rolls_)
          weighted_sum(rows_.get(), w * source_pixel, weights_.get(), count_, tile.count, sum_.get() + w * tile.count);
        const A* weight = tap(2, e.tap, 0, tile);
        pixels_[count] = sum_.get() + w * tile.count;
        pointers_[count] = weight;
        if (!plan_.per_channel) pixel_weights_.get()[count] = *weight;
        ++count;
      }
      if (plan_.per_channel) weighted_sum(pixels_.get(), 0, pointers_.get(), count, tile.count, out + o * pixel);
      else weighted_sum(pixels_.get(), 0, pixel_weights_.get(), count, tile.count, out + o * pixel);
    }
  }

  // Outputs [0, outputs) of a row whose first reads the pixels from `first` on.
  template <class O>
  void roll(int64_t source_pixel, Tile tile, int64_t first, int64_t outputs, O* out, int64_t pixel) {
    if constexpr (!Transposed && std::is_same_v<O, T>) {
      for (int64_t r = 0; r < count_; ++r) rows_[r] += first * source_pixel;
      static_switch<1, 2>(plan_.axis[2].stride, [&](auto stride) {
        roll_pixels<stride>(rows_.get(), weights_.get(), count_, source_pixel, tile.count, tap(2, 0, 0, tile),
                            plan_.axis[2].taps, outputs, columns_.get(), out, pixel);
      });
      for (int64_t r = 0; r < count_; ++r) rows_[r] -= first * source_pixel;
    }
  }

  // The same with no row sum between, where a result has so few terms that both axes' fit one weighted sum.
  template <class O>
  void blend_at_once(int64_t source_pixel, Tile tile, O* out, int64_t pixel) {
    const Table& table = plan_.table[2];
    constexpr int longest = 7;  // of with_count's constants: the compiler checks all of its branches
    static_assert(most_direct_terms <= longest);
    const T* pixels[longest];
    A weights[longest];
    for (int64_t o = 0; o < plan_.result[2]; ++o) {
      int64_t count = 0;
      const Table::Row entries = table.row(o);
      for (const Entry& e : entries) {
        const A weight = *tap(2, e.tap, 0, tile);
        for (int64_t r = 0; r < count_; ++r) {
          pixels[count] = rows_[r] + entries.source(e) * source_pixel;
          weights[count++] = weights_.get()[r] * weight;
        }
      }
      weighted_sum(pixels, 0, weights, count, tile.count, out + o * pixel);
    }
  }

  // Results [begin, end) of a row by the axis' matrix, for borders; element i of the source is at(i).
  template <class O, class At>
  void border(const A* taps, int64_t begin, int64_t end, O* out, At&& at) {
    const Table& table = plan_.table[2];
    for (int64_t o = begin; o < end; ++o) {
      A total = 0;
      const Table::Row entries = table.row(o);
      for (const Entry& e : entries) total += taps[e.tap] * at(entries.source(e));
      if constexpr (std::is_same_v<O, A>) out[o] = total;
      else out[o] = narrow<O>(total);
    }
  }

  // Along the width where pixels are single: stride 1 or 2, or 0 for any other.
  template <int Stride, class O>
  void along(const A* taps, O* out) {
    const Axis& width = plan_.axis[2];
    const Table& table = plan_.table[2];
    const int64_t begin = table.interior_begin, end = table.interior_end;
    A *even = sum_.get(), *odd = odd_.get();
    auto whole = [&](int64_t i) { return even[i]; };
    if constexpr (Stride == 2 && !Transposed) {
      // Padded position p = i + before lies in phase p % 2: an odd `before` swaps the phases.
      const int64_t shift = floor_div(width.before, 2);
      const bool swap = modulo(width.before, 2) != 0;
      const A* const phase[2] = {(swap ? odd - 1 : even) - shift, (swap ? even : odd) - shift};
      weighted_sum_split(rows_.get(), weights_.get(), count_, plan_.source[2], even, odd);
      correlate<2>(phase, taps, width.taps, begin, end, out);
      auto split = [&](int64_t i) {
        const A* of_parity = i % 2 ? odd : even;
        return of_parity[i / 2];
      };
      border(taps, 0, begin, out, split);
      border(taps, end, plan_.result[2], out, split);
      return;
    }
    weighted_sum(rows_.get(), 0, weights_.get(), count_, plan_.source[2], even);
    if constexpr (Stride == 0) return border(taps, 0, plan_.result[2], out, whole);
    if constexpr (Stride == 1 && !Transposed) {
      const A* const phase[1] = {even - width.before};
      correlate<1>(phase, taps, width.taps, begin, end, out);
    } else if constexpr (Transposed && Stride > 0) {
      spread<Stride>(even, taps, width.taps, width.before, begin, end, out);
    }
    border(taps, 0, begin, out, whole);
    border(taps, end, plan_.result[2], out, whole);
  }

  const Plan& plan_;
  static constexpr int64_t most_direct_terms = 4;
  int64_t terms_, count_ = 0;
  bool direct_;
  std::unique_ptr<const T*[]> rows_;
  std::unique_ptr<const A*[]> pixels_, pointers_;
  Buffer<A> weights_, pixel_weights_;
  bool splits_;  // a row of single pixels is summed as its even and its odd ones
  Buffer<A> sum_, odd_;
  Ahead ahead_;
  bool rolls_;  // a row of pixels is blurred by roll_pixels
  Buffer<A> columns_;
  std::optional<RegisterPermute<T>> permute_;
  std::vector<int64_t> term_begin_;
  std::vector<Term> term_list_;
};

}  // namespace aablur::AABLUR_ISA
