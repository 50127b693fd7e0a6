// The prologue table: what a blur pool reads. Host and device; no torch.
//
//   prologue   | reads at pooled position p                    | saved for the backward
//   -----------|-----------------------------------------------|-------------------------------
//   Identity   | x[p]                                          | nothing
//   Max        | max over the window of x at p (stride 1)      | argmax codes, or x to recompute
#pragma once

#include <cstdint>

#include "geometry.h"

namespace aablur {

struct Identity {
  static constexpr bool selects = false;
};

struct Max {
  static constexpr bool selects = true;

  // F.max_pool2d's rule, for scalars and vectors: the first maximum wins a tie, a NaN wins always.
  template <class V>
  AABLUR_HOST_DEVICE static constexpr auto replaces(const V& candidate, const V& best) {
    return (candidate > best) | (candidate != candidate);
  }
};

// An argmax code is the row-major position in the window, packed in the fewest of 2, 4, 8 or 16 bits, lowest
// bits first. Codes lie on the grid of x or, along axes where it is larger, of the pooled map, so that a whole
// plane's codes can be made in one run; what lies between the pooled map's rows is zero or has no meaning.
constexpr int64_t max_window_volume = 65535;

AABLUR_HOST_DEVICE constexpr int64_t code_bits(int64_t window_volume) {
  return window_volume <= 4 ? 2 : window_volume <= 16 ? 4 : window_volume <= 256 ? 8 : 16;
}

// Grid positions of a plane up to the last that has a code.
AABLUR_HOST_DEVICE constexpr int64_t code_positions(const Axis (&axis)[3]) {
  int64_t last = 0;
  for (const Axis& a : axis) last = last * (a.size > a.pooled() ? a.size : a.pooled()) + a.pooled() - 1;
  return last + 1;
}

}  // namespace aablur
