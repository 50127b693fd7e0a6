// What the GPU kernels are given. Compiled without torch; gpu/backend.cpp makes the arguments.
#pragma once

#include <algorithm>

#include "core/backend.h"

namespace aablur::gpu {

// Taps as accumulators: (1 or channels, sum of sizes), the axes side by side; null for binomials.
struct Filters {
  const void* taps = nullptr;
  int64_t row = 0;         // sum of sizes
  int64_t offset[3] = {};  // of an axis in a row
  bool per_channel = false;
};

// Packed argmax codes, (images, planes, bytes), as core/argmax.h says.
struct Codes {
  uint8_t* data = nullptr;
  Packing packing;
};

struct BlurArguments {  // out = blur(prologue(x)), or without a window its transpose
  Shape shape;
  Filters filters;
  const void* x = nullptr;
  Strides x_strides;
  void* out = nullptr;             // dense
  Codes codes;                     // written if there
  Workspace* workspace = nullptr;  // of generic kernels
};

struct MaxBackwardArguments {  // out = the adjoint of max after the transposed blur of grad
  Shape shape;
  Filters filters;
  const void* grad = nullptr;
  Strides grad_strides;
  Codes codes;
  void* out = nullptr;  // dense
  Workspace* workspace = nullptr;
};

struct TapsArguments {  // out = d <grad, blur(x)> / d taps, as Filters lays them out
  Shape shape;
  Filters filters;
  const void* grad = nullptr;
  const void* x = nullptr;
  Strides grad_strides, x_strides;
  int64_t chunks = 1;           // pieces that the general kernel takes the sum in, whatever the device
  double* workspace = nullptr;  // (chunks, rows of taps, row), or what TapsGradientSplit says
  void* out = nullptr;
};

// The cut of the fast gradient of the taps (gpu/taps_gradient.h), of two alike axes: of all sums of the gradient times
// what a pair of taps reads. A lane is an output column of a channel, or with channels last a channel: its thread,
// which may have a vector of neighbouring lanes, goes over the rest of the outputs, every parts-th of them.
struct TapsGradientSplit {
  static constexpr int threads = 128;  // of a block
  int64_t taps = 0;                    // of each axis; 0 where only the general kernel serves
  int64_t lanes = 0, rest = 0, parts = 0;
  int64_t vector = 1;  // lanes a thread, where they lie aligned; else one
  int64_t rows = 0;    // of taps

  explicit TapsGradientSplit(const Shape& shape, const Filters& filters) {
    const Axis &depth = shape.axis[0], &height = shape.axis[1], &width = shape.axis[2];
    const bool flat = depth.size == 1 && depth.taps == 1 && depth.stride == 1 && depth.before == 0 &&
                      depth.after == 0 && filters.offset[0] < 0;
    lanes = shape.channels * (shape.channels_last ? 1 : width.out());
    rest = shape.images * height.out() * (shape.channels_last ? width.out() : 1);
    constexpr int64_t most_threads = 1 << 17, most = int64_t(1) << 31;
    if (!flat || filters.offset[1] < 0 || height.taps != width.taps || width.taps < 2 || width.taps > 5 ||
        lanes > 8 * most_threads || rest >= most)
      return;
    taps = width.taps;
    if (shape.channels_last && taps <= 3 && shape.channels % 4 == 0) vector = 4;
    rows = filters.per_channel ? shape.channels : 1;
    // With filters of each channel each lane's partial sums go to memory: fewer of them.
    const int64_t most_parts = most_threads * (rows > 1 ? 1 : vector) / lanes;
    parts = ceil_div(rest, ceil_div(rest, std::max<int64_t>(1, most_parts)));
  }
  int64_t blocks(int64_t lanes_a_thread) const { return ceil_div(parts * (lanes / lanes_a_thread), threads); }
  // Of the workspace, a sum: a lane's of each part, or where all share their taps a block's.
  int64_t entries(int64_t lanes_a_thread) const { return rows > 1 ? parts * lanes : blocks(lanes_a_thread); }
  int64_t doubles() const { return taps * taps * entries(1); }
};

// One dtype's kernels, queued on a stream. Each returns why it could not be queued, or null.
struct Kernels {
  const char* (*blur)(BlurArguments, void* stream);
  const char* (*blur_backward)(BlurArguments, void* stream);
  const char* (*max_blur)(BlurArguments, void* stream);
  const char* (*max_blur_backward)(MaxBackwardArguments, void* stream);
  const char* (*taps_gradient)(TapsArguments, void* stream);
};

extern const Kernels float16_kernels, bfloat16_kernels, float32_kernels, float64_kernels;

}  // namespace aablur::gpu
