// All that is known of borders: which element of an axis a padded position reads, and back. Host and device; no torch.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/axis.h"

namespace aablur {

constexpr int outside = -1;

// Index in the pooled map that padded position p reads, or `outside`.
template <class I>
AABLUR_HOST_DEVICE constexpr I fold(const BasicAxis<I>& axis, std::common_type_t<I> p) {
  const I n = axis.pooled();
  if (p >= 0 && p < n) return p;
  if (axis.padding_mode == PaddingMode::zeros) return outside;
  if (axis.padding_mode == PaddingMode::replicate || n == 1) return p < 0 ? 0 : n - 1;
  const I period = axis.padding_mode == PaddingMode::circular ? n : 2 * (n - 1);
  const I q = modulo<I>(p, period);
  return q < n ? q : period - q;
}

// Every padded position p, -before <= p < pooled + after, with fold(p) == i.
template <class I>
struct Unfolded {
  I first, end, step, other;  // step, other, step, other ... apart
  I low;                      // the first may lie before that, and is none then

  AABLUR_HOST_DEVICE constexpr Unfolded(const BasicAxis<I>& axis, I i)
      : first(i), end(axis.pooled() + axis.after), step(end + axis.before), other(step), low(-axis.before) {
    const I n = axis.pooled(), high = end;
    const bool reflects = axis.padding_mode == PaddingMode::reflect && n > 1;
    const bool alone =
        0 < i && i < n - 1 && (reflects ? -i : i - n) < low && (reflects ? 2 * (n - 1) - i : i + n) >= high;
    if (alone || axis.padding_mode == PaddingMode::zeros) {
      end = i + 1 < high ? i + 1 : high;
    } else if (axis.padding_mode == PaddingMode::circular) {
      first = low + modulo<I>(i - low, n);
      step = other = n;
    } else if (reflects) {
      const I period = 2 * (n - 1), copy = modulo<I>(i - low, period), mirror = modulo<I>(-i - low, period);
      first = low + (copy < mirror ? copy : mirror);
      step = copy < mirror ? mirror - copy : copy - mirror;
      if (step == 0) step = period;
      other = step == period ? period : period - step;
    } else {  // the outermost values go on for ever
      step = other = 1;
      if (i == 0 && low < 0) first = low;
      if (i < n - 1) end = i + 1 < high ? i + 1 : high;
    }
  }
  // Calls f(p) for each, in order.
  template <class F>
  AABLUR_HOST_DEVICE constexpr void each(F&& f) const {
    I to_next = step, after_it = other;
    for (I p = first; p < end;) {
      if (p >= low) f(p);
      p += to_next;
      const I next = after_it;
      after_it = to_next;
      to_next = next;
    }
  }
};

// Calls f(o, tap) for every output o and tap that read p, which unfolds from a pooled index: a column of the axis'
// matrix.
template <class I, class F>
AABLUR_HOST_DEVICE constexpr void readers(const BasicAxis<I>& axis, const Unfolded<I>& unfolded, F&& f) {
  const I outputs = axis.out();
  unfolded.each([&](I p) {
    const I q = p + axis.before;  // tap = q - o * stride
    I o = q - axis.taps < 0 ? 0 : ceil_div<I>(q - axis.taps + 1, axis.stride);
    for (; o < outputs && o * axis.stride <= q; ++o) f(o, q - o * axis.stride);
  });
}
template <class I, class F>
AABLUR_HOST_DEVICE constexpr void readers(const BasicAxis<I>& axis, std::common_type_t<I> i, F&& f) {
  readers(axis, Unfolded<I>(axis, i), f);
}

struct Range {
  int64_t begin = 0, end = 0;
  constexpr int64_t count() const { return end - begin; }
  constexpr bool has(int64_t i) const { return i >= begin && i < end; }
};

// The outputs that read no border.
inline Range interior_of_reads(const Axis& axis) {
  const int64_t out = axis.out(), begin = std::clamp<int64_t>(ceil_div(axis.before, axis.stride), 0, out);
  return {begin, std::clamp(floor_div(axis.pooled() - axis.taps + axis.before, axis.stride) + 1, begin, out)};
}

// The pooled indices that are read as themselves alone, and by every tap that could: none falls on an output that is
// not there.
inline Range interior_of_readers(const Axis& axis) {
  const int64_t n = axis.pooled(), before = axis.before, after = axis.after;
  int64_t begin = std::max<int64_t>(0, -before), end = std::min(n, n + after);
  if (axis.padding_mode == PaddingMode::replicate || (axis.padding_mode == PaddingMode::reflect && n == 1)) {
    if (before > 0) begin = 1;
    if (after > 0) end = n - 1;
  } else if (axis.padding_mode == PaddingMode::circular) {
    begin = std::max(begin, after);
    end = std::min(end, n - before);
  } else if (axis.padding_mode == PaddingMode::reflect) {  // the outermost elements are their own mirrors
    if (before > 0) begin = before + 1;
    if (after > 0) end = n - 1 - after;
    begin = std::max(begin, after + 2 - n);
    end = std::min(end, 2 * n - 2 - before);
  }
  begin = std::max(begin, axis.taps - 1 - before);
  end = std::min(end, axis.out() * axis.stride - before);
  return begin < end ? Range{begin, end} : Range{};
}

// Calls f(o, tap, p) for every tap of every output o but for those on padded positions p in `left_out`: p by p, and o
// by o for each. Steps over what no output reads.
template <class F>
void positions(const Axis& axis, Range left_out, F&& f) {
  const int64_t outputs = axis.out(), stride = axis.stride, taps = axis.taps;
  const Range jump{left_out.begin + axis.before, left_out.end + axis.before};
  int64_t first = 0;  // of the outputs that may read q
  for (int64_t q = 0;; ++q) {
    for (;;) {
      while (first < outputs && q >= first * stride + taps) ++first;
      if (first == outputs) return;
      q = std::max(q, first * stride);
      if (!jump.has(q)) break;
      q = jump.end;
      first = std::clamp(ceil_div(q - taps + 1, stride), first, outputs);
    }
    for (int64_t o = first; o < outputs && o * stride <= q; ++o) f(o, q - o * stride, q - axis.before);
  }
}

}  // namespace aablur
