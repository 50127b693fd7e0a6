// What the GPU kernels are given. Compiled without torch; gpu.cpp makes the arguments.
#pragma once

#include "geometry.h"
#include "prologue.h"

namespace aablur::gpu {

// A batch of maps where it lies: elements between neighbours along images, channels and the three axes.
struct Grid {
  int64_t image = 0, channel = 0, axis[3] = {};
};

// What every kernel knows: the axes, and how a dense map lies (the channel last, or the width).
struct Shape {
  Axis axis[3];
  int64_t images = 0, channels = 0;
  bool channels_last = false;
};

// Taps as accumulators: (1 or channels, sum of sizes), the axes side by side; null for binomials of up to 8 taps.
struct Filters {
  const void* taps = nullptr;
  int64_t row = 0;         // sum of sizes
  int64_t offset[3] = {};  // of an axis in a row
  bool per_channel = false;
};

// Packed argmax codes, (images, planes, bytes), as prologue.h says.
struct Codes {
  uint8_t* data = nullptr;
  int64_t bits = 0, plane_bytes = 0;
};

struct BlurArguments {  // out = blur(prologue(x)), or without a window its transpose
  Shape shape;
  Filters filters;
  const void* x = nullptr;
  Grid x_grid;
  void* out = nullptr;  // dense
  Codes codes;          // written if there
};

struct MaxBackwardArguments {  // out = the adjoint of max after the transposed blur of grad
  Shape shape;
  Filters filters;
  const void* grad = nullptr;
  Grid grad_grid;
  Codes codes;
  void* out = nullptr;  // dense
};

struct TapsArguments {  // out = d <grad, blur(x)> / d taps, as Filters lays them out
  Shape shape;
  Filters filters;
  const void* grad = nullptr;
  const void* x = nullptr;
  Grid grad_grid, x_grid;
  int64_t chunks = 1;           // pieces that the sum is taken in, whatever the device
  double* workspace = nullptr;  // (chunks, rows of taps, row)
  void* out = nullptr;
};

// One dtype's kernels, queued on a stream. Each returns why it could not be queued, or null.
struct Kernels {
  const char* (*blur)(const BlurArguments&, void* stream);
  const char* (*blur_backward)(const BlurArguments&, void* stream);
  const char* (*max_blur)(const BlurArguments&, void* stream);
  const char* (*max_blur_backward)(const MaxBackwardArguments&, void* stream);
  const char* (*taps_gradient)(const TapsArguments&, void* stream);
};

extern const Kernels float16_kernels, bfloat16_kernels, float32_kernels, float64_kernels;

}  // namespace aablur::gpu
