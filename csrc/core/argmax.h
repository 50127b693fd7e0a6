// The prologue table: what a blur pool reads. Host and device; no torch.
//
//   prologue   | reads at pooled position p                    | saved for the backward
//   -----------|-----------------------------------------------|-------------------------------
//   Identity   | x[p]                                          | nothing
//   Max        | max over the window of x at p (stride 1)      | argmax codes, or x to recompute
#pragma once

#include <cstdint>

#include "core/axis.h"

namespace aablur {

struct Max {
  // F.max_pool2d's rule, for scalars and vectors: the first maximum wins a tie, a NaN wins always.
  template <class V>
  AABLUR_HOST_DEVICE static constexpr auto replaces(const V& candidate, const V& best) {
    return (candidate > best) | (candidate != candidate);
  }
};

// An argmax code is the row-major position in the window, in the fewest of 2, 4, 8 or 16 bits, lowest bits first.
constexpr int64_t max_window_volume = 65535;

AABLUR_HOST_DEVICE constexpr int64_t code_bits(int64_t window_volume) {
  return window_volume <= 4 ? 2 : window_volume <= 16 ? 4 : window_volume <= 256 ? 8 : 16;
}

// How a plane's codes lie: as its maxima do, row after row of what lies last (the channels, or else the width). A row
// begins with a byte; what it leaves of its last one is zero.
struct Packing {
  int64_t bits = 0, row_bytes = 0, plane_bytes = 0;

  Packing() = default;
  constexpr Packing(const Axis (&axis)[3], bool channels_last, int64_t channels)
      : bits(code_bits(axis[0].window * axis[1].window * axis[2].window)),
        row_bytes(ceil_div((channels_last ? channels : axis[2].pooled()) * bits, 8)),
        plane_bytes(axis[0].pooled() * axis[1].pooled() * (channels_last ? axis[2].pooled() : 1) * row_bytes) {}
};

}  // namespace aablur
