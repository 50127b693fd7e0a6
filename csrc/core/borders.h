// All that is known of borders: which element of an axis a padded position reads, and back. Host and device; no torch.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/axis.h"

namespace aablur {

constexpr int64_t outside = -1;

// Index in the pooled map that padded position p reads, or `outside`.
AABLUR_HOST_DEVICE constexpr int64_t fold(const Axis& axis, int64_t p) {
  const int64_t n = axis.pooled();
  if (p >= 0 && p < n) return p;
  switch (axis.padding_mode) {
    case PaddingMode::zeros: return outside;
    case PaddingMode::replicate: return p < 0 ? 0 : n - 1;
    case PaddingMode::circular: return modulo(p, n);
    case PaddingMode::reflect: break;
  }
  if (n == 1) return 0;
  const int64_t period = 2 * (n - 1);
  const int64_t q = modulo(p, period);
  return q < n ? q : period - q;
}

// Calls f(p) for every padded position p, -before <= p < pooled + after, with fold(p) == i, in order.
template <class F>
AABLUR_HOST_DEVICE constexpr void unfold(const Axis& axis, int64_t i, F&& f) {
  const int64_t n = axis.pooled(), low = -axis.before, high = n + axis.after;
  // They lie step, other, step, other ... apart.
  int64_t first = i, end = high, step = high - low, other = step;
  const bool reflects = axis.padding_mode == PaddingMode::reflect && n > 1;
  const bool alone =
      0 < i && i < n - 1 && (reflects ? -i : i - n) < low && (reflects ? 2 * (n - 1) - i : i + n) >= high;
  if (alone || axis.padding_mode == PaddingMode::zeros) {
    end = i + 1 < high ? i + 1 : high;
  } else if (axis.padding_mode == PaddingMode::circular) {
    first = low + modulo(i - low, n);
    step = other = n;
  } else if (reflects) {
    const int64_t period = 2 * (n - 1), copy = modulo(i - low, period), mirror = modulo(-i - low, period);
    first = low + (copy < mirror ? copy : mirror);
    step = copy < mirror ? mirror - copy : copy - mirror;
    if (step == 0) step = period;
    other = step == period ? period : period - step;
  } else {  // the outermost values go on for ever
    step = other = 1;
    if (i == 0 && low < 0) first = low;
    if (i < n - 1) end = i + 1 < high ? i + 1 : high;
  }
  for (int64_t p = first; p < end;) {
    if (p >= low) f(p);
    p += step;
    const int64_t next = other;
    other = step;
    step = next;
  }
}

// Calls f(o, tap) for every output o and tap that read pooled index i: a column of the axis' matrix.
template <class F>
AABLUR_HOST_DEVICE constexpr void readers(const Axis& axis, int64_t i, F&& f) {
  const int64_t outputs = axis.out();
  unfold(axis, i, [&](int64_t p) {
    const int64_t q = p + axis.before;  // tap = q - o * stride
    int64_t o = q - axis.taps < 0 ? 0 : ceil_div(q - axis.taps + 1, axis.stride);
    for (; o < outputs && o * axis.stride <= q; ++o) f(o, q - o * axis.stride);
  });
}

// Fills an axis' matrix, which has add(source, tap), end_row() and an interior, the rows that are shifted copies of one
// another. Row o: what output o reads.
template <class Matrix>
void list_reads(const Axis& axis, Matrix& m) {
  const int64_t out = axis.out(), n = axis.pooled();
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t tap = 0; tap < axis.taps; ++tap) {
      const int64_t source = fold(axis, o * axis.stride - axis.before + tap);
      if (source != outside) m.add(source, tap);
    }
    m.end_row();
  }
  m.interior_begin = std::clamp<int64_t>(ceil_div(axis.before, axis.stride), 0, out);
  m.interior_end = std::clamp(floor_div(n - axis.taps + axis.before, axis.stride) + 1, m.interior_begin, out);
}

// Row i: the outputs that read pooled index i.
template <class Matrix>
void list_readers(const Axis& axis, Matrix& m) {
  const int64_t out = axis.out(), n = axis.pooled();
  bool ended = false;
  for (int64_t i = 0; i < n; ++i) {
    readers(axis, i, [&](int64_t o, int64_t tap) { m.add(o, tap); });
    m.end_row();
    // Interior: i is read as itself alone, and no tap falls on an output that is not there.
    int64_t copies = 0;
    unfold(axis, i, [&](int64_t p) { copies += p == i ? 1 : 2; });
    const bool interior = copies == 1 && i + axis.before >= axis.taps - 1 && i + axis.before < out * axis.stride;
    if (interior && !ended) {
      if (m.interior_begin == m.interior_end) m.interior_begin = i;
      m.interior_end = i + 1;
    } else if (m.interior_end > 0) {
      ended = true;
    }
  }
}

}  // namespace aablur
