// Bands: what a kernel has to know of an axis. Host and device; no torch.
//
// Along an axis a blur and its transpose are both
//
//   result[r] = sum over j < reach of weight(r, j) * source[first(r) + j],
//
// a matrix that is periodic inside. Results come in groups of `up` (the blur 1, its transpose `stride`), whose sources
// begin `down` apart (the blur `stride`, its transpose 1). A weight is a sum of taps: of one inside; near a border of
// those that padding sends to the same source. So a border is another row of weights, and no other path. (An infinity
// there under taps of both signs stays one, and is no NaN.)
#pragma once

#include <algorithm>

#include "core/borders.h"

namespace aablur {

// What of it is the same for all sizes, pads and modes: taps, the stride, and which of the two it is. With `more`,
// groups reach one source further: the blur one before, its transpose one behind. There the reflection behind an axis
// sends the taps of even filters.
struct BandForm {
  int taps, stride;
  bool is_backward, more = false;

  AABLUR_HOST_DEVICE constexpr int up() const { return is_backward ? stride : 1; }
  AABLUR_HOST_DEVICE constexpr int down() const { return is_backward ? 1 : stride; }
  AABLUR_HOST_DEVICE constexpr int inside() const { return is_backward ? (taps + stride - 1) / stride : taps; }
  AABLUR_HOST_DEVICE constexpr int reach() const { return inside() + more; }
  AABLUR_HOST_DEVICE constexpr bool is_further(int j) const { return more && j == (is_backward ? inside() : 0); }
  // The tap that is the weight of source j for result `phase` of a group inside, or -1.
  AABLUR_HOST_DEVICE constexpr int tap(int phase, int j) const {
    const int t = is_backward ? phase + stride * (inside() - 1 - j) : j - more;
    return t >= 0 && t < taps ? t : -1;
  }
};

// The same in constants, for kernels. At stride 1 both run one.
template <int K, int S, bool Backward, bool More = false>
struct Bands {
  static constexpr bool is_backward = Backward && (S > 1 || More), more = More;
  static constexpr int taps = K, up = BandForm{K, S, is_backward, More}.up(),
                       down = BandForm{K, S, is_backward, More}.down(),
                       reach = BandForm{K, S, is_backward, More}.reach();
  static constexpr int entries = up * reach;                        // weights of a group: [phase][source]
  static constexpr int origin = is_backward ? (K - 1) / 2 % S : 0;  // Band::origin, where padding is the default
  static_assert(entries <= 8 && K <= 8);
  // The weight of the further source where there is none: bits that no sum of taps has.
  static constexpr uint32_t absent = ~0u;

  AABLUR_HOST_DEVICE static constexpr bool is_further(int j) { return BandForm{K, S, is_backward, More}.is_further(j); }
  AABLUR_HOST_DEVICE static constexpr bool has(int phase, int j) {
    return BandForm{K, S, is_backward, More}.tap(phase, j) >= 0;
  }
};

struct Band {
  static constexpr int most_rows = 24;
  int sources = 0, results = 0, groups = 0;
  int first = 0;                 // group g reads sources from g * down + first on; those outside of the axis are 0
  int origin = 0;                // result `phase` of group g is g * up + phase - origin
  bool is_identity = false;      // the axis has no taps: its one result is its one source
  bool wraps = false;            // sources outside of the axis are those of its other end
  int head = 0, tail = 0;        // groups before head and from tail on have rows of their own, the others share one
  uint64_t row[most_rows] = {};  // a byte an entry, a bit a tap: what its weight is the sum of

  // Where source s is read; outside of [0, sources) there is none.
  AABLUR_HOST_DEVICE int source(int s) const {
    return !wraps ? s : s < 0 ? s + sources : s < sources ? s : s - sources;
  }
  AABLUR_HOST_DEVICE int row_of(int group) const {
    return group < head ? group : group < tail ? head : group - tail + head + 1;
  }
  // That of the nearest group there is.
  AABLUR_HOST_DEVICE int row_near(int group) const {
    return row_of(group < 0 ? 0 : group < groups ? group : groups - 1);
  }
  AABLUR_HOST_DEVICE int rows() const { return head + 1 + groups - tail; }

  static Band identity(const BandForm& form) {
    Band band;
    band.is_identity = true;
    band.sources = band.results = band.groups = band.head = band.tail = 1;
    const int own = form.is_backward ? form.inside() - 1 : form.reach() - 1;
    band.first = -own;
    band.row[0] = uint64_t(1) << (8 * own);
    return band;
  }
  // Of an axis; false where a result needs sources that are not near, or leaves one out in between: a weight of 0 would
  // let a NaN through.
  static bool make(const Axis& axis, bool is_backward, Band& band, bool more = false);
};

inline bool Band::make(const Axis& axis, bool is_backward, Band& band, bool more) {
  constexpr int64_t most = (int64_t(1) << 31) - 64, most_pads = 64;
  const int64_t n = axis.pooled(), out = axis.out(), pads = std::max<int64_t>({axis.before, axis.after, 0});
  if (n >= most || axis.before <= -most || pads > most_pads || axis.taps > 8 || axis.stride > 8 || n < 1 || out < 1)
    return false;
  const BandForm form{int(axis.taps), int(axis.stride), is_backward, more};
  const int reach = form.reach(), up = form.up();
  if (up * reach > 8) return false;
  const int64_t shift = is_backward ? floor_div(axis.before, axis.stride) : 0;
  band = Band();
  band.sources = int(is_backward ? out : n), band.results = int(is_backward ? n : out);
  band.origin = is_backward ? int(axis.before - shift * axis.stride) : 0;
  band.first = int(is_backward ? shift - form.inside() + 1 : -axis.before - more);
  band.groups = int(ceil_div(int64_t(band.results) + band.origin, up));
  band.wraps = !more && axis.padding_mode == PaddingMode::circular && band.sources >= reach && pads <= band.sources;
  uint64_t inside = 0;
  for (int phase = 0; phase < up; ++phase)
    for (int j = 0; j < reach; ++j)
      if (form.tap(phase, j) >= 0) inside |= uint64_t(1) << (8 * (phase * reach + j) + form.tap(phase, j));

  auto row_of = [&](int64_t group, uint64_t& row) {
    bool fits = true;
    row = 0;
    for (int phase = 0; phase < up; ++phase) {
      const int64_t result = group * up + phase - band.origin, from = group * form.down() + band.first;
      if (result < 0 || result >= band.results) continue;
      auto add = [&](int64_t source, int64_t tap) {
        const int64_t j = band.wraps ? modulo(source - from, band.sources) : source - from;
        if (j < 0 || j >= reach || (!form.is_further(int(j)) && form.tap(phase, int(j)) < 0)) fits = false;
        else row |= uint64_t(1) << (8 * (phase * reach + j) + tap);
      };
      if (is_backward) {
        readers(axis, result, add);
      } else {
        for (int64_t tap = 0; tap < axis.taps; ++tap) {
          const int64_t source = fold(axis, result * axis.stride - axis.before + tap);
          if (source != outside) add(source, tap);
        }
      }
      for (int j = 0; j < reach; ++j) {
        const bool there = band.wraps || (from + j >= 0 && from + j < band.sources);
        const bool weighs = row >> (8 * (phase * reach + j)) & 255;
        if (there && form.tap(phase, j) >= 0 && !weighs) fits = false;
      }
    }
    return fits;
  };
  // Further inside no padding reaches.
  const int64_t zone = std::min<int64_t>(band.groups, (pads + axis.taps) / axis.stride + 3);
  uint64_t row;
  band.head = 0, band.tail = band.groups;
  for (int64_t group = 0; group < zone; ++group) {
    if (!row_of(group, row)) return false;
    if (row != inside) band.head = int(group) + 1;
  }
  for (int64_t group = band.groups - 1; group >= std::max<int64_t>(band.groups - zone, band.head); --group) {
    if (!row_of(group, row)) return false;
    if (row != inside) band.tail = int(group);
  }
  if (band.rows() > most_rows) return false;
  for (int64_t group = 0; group < band.head; ++group) row_of(group, band.row[group]);
  band.row[band.head] = inside;
  for (int64_t group = band.tail; group < band.groups; ++group) row_of(group, band.row[band.row_of(int(group))]);
  return true;
}

}  // namespace aablur
