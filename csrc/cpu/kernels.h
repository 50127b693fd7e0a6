// What the CPU kernels are given. Compiled without torch; cpu/backend.cpp makes the plans.
#pragma once

#include <cstdint>

#include "core/backend.h"
#include "core/borders.h"

namespace aablur {

// An axis as a sparse matrix: row o lists what output o reads. Inside [interior_begin, interior_end) the rows are
// copies of one another: row o + period is row o, with every source `step` further. Of a long interior the first period
// alone is listed.
constexpr int64_t most_listed_rows = 1 << 16;  // an interior, or a plane, of more rows is not listed row by row
struct Entry {
  int64_t source, tap;
};
struct Table {
  const int64_t* begin = nullptr;  // (listed rows + 1,)
  const Entry* entries = nullptr;
  int64_t interior_begin = 0, interior_end = 0, period = 1, step = 0;
  Range left_out;  // rows that are not listed

  struct Row {
    const Entry *first, *last;
    int64_t shift;  // of every source
    int64_t source(const Entry& e) const { return e.source + shift; }
    const Entry* begin() const { return first; }
    const Entry* end() const { return last; }
  };
  Row row(int64_t o) const {
    int64_t shift = 0;
    if (o >= left_out.end) {
      o -= left_out.count();
    } else if (o >= left_out.begin) {
      const int64_t periods = (o - interior_begin) / period;
      o -= periods * period;
      shift = periods * step;
    }
    return {entries + begin[o], entries + begin[o + 1], shift};
  }
};

// Depth, height and width; the axes that a map lacks have size 1 and one tap. A row is one (depth, height)
// of a plane: `width` pixels of `lanes` values. Contiguous maps have a plane a channel and one lane,
// channels_last ones a plane an image and a lane a channel.
struct Plan {
  Axis axis[3];
  // The blur, or its transpose: a matrix an axis. A small dense plane is one row, and its matrix, that of width,
  // the product of the three.
  Table table[3];
  int64_t source[3] = {1, 1, 1}, result[3] = {1, 1, 1};  // sizes of what the matrices read and give
  int64_t longest[3] = {};                               // entries in the longest row of each
  const void* taps[3] = {};  // accumulators: (k,), or with per_channel (channels, k), transposed if lanes > 1
  bool per_channel = false;
  bool channels_last = false;
  int64_t images = 0, planes = 0, lanes = 1;
  int64_t tile = 1;   // lanes worked on together, so that their rows stay in the cache
  int64_t bands = 1;  // pieces that a plane's first axis of more than one row is cut into
  bool cut_depth = false;
  bool whole_planes = false;   // a plane's max is made in one run, on the grid of x
  int64_t grid_positions = 0;  // of that grid, up to the last that has a maximum
  Packing packing;
};

struct BlurArguments {  // out = blur(prologue(x)), or its transpose
  Plan plan;
  const void* x = nullptr;
  Strides x_strides, out_strides;
  void* out = nullptr;
  uint8_t* codes = nullptr;  // (images * planes, bytes of a plane), written if there
};

struct MaxBackwardArguments {  // out = the adjoint of max after the transposed blur of grad
  Plan plan;
  const void* grad = nullptr;
  const uint8_t* codes = nullptr;  // either the codes
  const void* x = nullptr;         // or what to make them from
  Strides grad_strides, x_strides, out_strides;
  void* out = nullptr;
};

struct TapsArguments {  // partial[unit] = the unit's share of d <grad, blur(x)> / d taps
  Plan plan;
  int rank = 0;
  Plan along_width;  // the transposed blur along the width alone
  const void* grad = nullptr;
  const void* x = nullptr;
  Strides grad_strides, x_strides;
  double* partial = nullptr;  // (images * planes * bands, sum of taps, lanes if per_channel else 1)
};

// Of an instruction set and an element type. Each works on units [begin, end) of images * planes * bands, in any order,
// on any thread.
struct CpuKernels {
  const char* isa;
  int64_t longest_permuted;  // row that is blurred inside registers
  void (*blur)(const BlurArguments&, bool transposed, int64_t begin, int64_t end);
  void (*max_blur)(const BlurArguments&, int64_t begin, int64_t end);
  void (*max_blur_backward)(const MaxBackwardArguments&, int64_t begin, int64_t end);
  void (*taps_gradient)(const TapsArguments&, int64_t begin, int64_t end);
};

}  // namespace aablur
