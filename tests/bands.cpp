// csrc/core/bands.h for test_bands.py: compiled by itself, on any machine.
#include "gpu/band_tiles.h"

using namespace aablur;

// The matrix (results, sources) of an axis with these taps, by its band; false where it has none.
extern "C" bool band(int64_t size, int64_t taps, int64_t stride, int64_t before, int64_t after, int padding_mode,
                     bool is_backward, const float* weights, double* matrix) {
  const Axis axis{size, taps, stride, before, after, PaddingMode(padding_mode)};
  Band band;
  bool more = false;
  while (!Band::make(axis, is_backward, band, more)) {
    if (more || taps % 2) return false;
    more = true;
  }
  const BandForm form{int(taps), int(stride), is_backward, more};
  for (int group = 0; group < band.groups; ++group)
    for (int phase = 0; phase < form.up(); ++phase)
      for (int j = 0; j < form.reach(); ++j) {
        const int result = group * form.up() + phase - band.origin,
                  source = band.source(group * form.down() + band.first + j);
        if (result < 0 || result >= band.results || source < 0 || source >= band.sources) continue;
        const uint64_t bits = band.row[band.row_of(group)] >> (8 * (phase * form.reach() + j));
        for (int tap = 0; tap < taps; ++tap)
          if (bits >> tap & 1) matrix[result * band.sources + source] += weights[tap];
      }
  return true;
}

extern "C" int64_t segment(int64_t groups, int64_t threads_a_row, int64_t multiprocessors) {
  return gpu::segment_of(groups, threads_a_row, multiprocessors);
}
