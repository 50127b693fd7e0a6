// The fast gradient of the taps, of two alike axes of up to 5 taps. Sum (b, c) is, over all outputs, the gradient times
// what taps b of the height and c of the width read; a tap's gradient is these sums, weighed by the taps of the other
// axis. Three launches, each added in one fixed order:
//
//   grad, x --Partials--> workspace[sum][part][lane]     a thread: all sums of every parts-th output of a lane
//           --Pieces----> workspace[row][sum][piece]     a thread: every pieces-th partial sum of a row of taps
//           --Total-----> gradient[row][taps]            a thread: a tap
//
// Loads are of neighbours by neighbours (coalesced), sums stay in registers, and nothing is shared but the workspace.
#pragma once

#include "gpu/tile.h"

namespace aablur::gpu {

// Lane i % lanes, part i / lanes: workspace[sum][part][lane].
template <class T, int K>
struct TapsGradientPartials {
  TapsArguments arguments;
  TapsGradientSplit split;
  Divisor heights, widths;

  TapsGradientPartials(const TapsArguments& arguments, const TapsGradientSplit& split)
      : arguments(arguments),
        split(split),
        heights(uint32_t(arguments.shape.axis[1].out())),
        widths(uint32_t(arguments.shape.axis[2].out())) {}
  int64_t count() const { return split.parts * split.lanes; }

  AABLUR_HOST_DEVICE void operator()(int64_t i) const {
    using A = accumulator<T>;
    const Shape& shape = arguments.shape;
    const Axis &height = shape.axis[1], &width = shape.axis[2];
    const int64_t lane = i % split.lanes, part = i / split.lanes;
    const bool last = shape.channels_last;
    const int64_t channel = last ? lane : lane / width.out();
    int64_t w = last ? 0 : lane % width.out();
    const T* grad = static_cast<const T*>(arguments.grad) + channel * arguments.grad_strides.channel;
    const T* x = static_cast<const T*>(arguments.x) + channel * arguments.x_strides.channel;
    A sum[K][K] = {};
    int64_t columns[K];
    auto fold_columns = [&] {
      AABLUR_UNROLL
      for (int c = 0; c < K; ++c) columns[c] = fold(width, w * width.stride - width.before + c);
    };
    if (!last) fold_columns();
    for (int64_t at = part; at < split.rest; at += split.parts) {
      uint32_t image = uint32_t(at);
      if (last) {
        w = widths.split(image);
        fold_columns();
      }
      const int64_t h = heights.split(image);
      const A dy = widen(grad[image * arguments.grad_strides.image + h * arguments.grad_strides.axis[1] +
                              w * arguments.grad_strides.axis[2]]);
      AABLUR_UNROLL
      for (int b = 0; b < K; ++b) {
        const int64_t row = fold(height, h * height.stride - height.before + b);
        if (row == outside) continue;
        const T* from = x + image * arguments.x_strides.image + row * arguments.x_strides.axis[1];
        AABLUR_UNROLL
        for (int c = 0; c < K; ++c)
          if (columns[c] != outside) sum[b][c] += dy * widen(from[columns[c] * arguments.x_strides.axis[2]]);
      }
    }
    AABLUR_UNROLL
    for (int m = 0; m < K * K; ++m) arguments.workspace[m * split.parts * split.lanes + i] = double(sum[m / K][m % K]);
  }
};

// Every pieces-th partial sum of a row of taps: [row][sum][piece].
struct TapsGradientPieces {
  TapsGradientSplit split;
  double* workspace;

  int64_t count() const { return split.rows * split.taps * split.taps * split.pieces; }
  AABLUR_HOST_DEVICE void operator()(int64_t i) const {
    const int64_t squared = split.taps * split.taps;
    const int64_t piece = i % split.pieces, sum = i / split.pieces % squared, row = i / split.pieces / squared;
    double total = 0;
    for (int64_t e = piece; e < split.parts * split.run; e += split.pieces)
      total += workspace[(sum * split.parts + e / split.run) * split.lanes + row * split.run + e % split.run];
    workspace[split.shares() + i] = total;
  }
};

// Tap i % (2 * taps) of a row: of the height, then of the width.
template <class T>
struct TapsGradientTotal {
  TapsGradientSplit split;
  Weights<T> weights;
  const double* workspace;
  accumulator<T>* out;

  TapsGradientTotal(const TapsArguments& a, const TapsGradientSplit& split)
      : split(split), weights(a.filters, a.shape), workspace(a.workspace), out(static_cast<accumulator<T>*>(a.out)) {}
  int64_t count() const { return split.rows * 2 * split.taps; }
  AABLUR_HOST_DEVICE void operator()(int64_t i) const {
    const int64_t k = split.taps, row = i / (2 * k), tap = i % k;
    const bool of_width = i % (2 * k) >= k;
    const double* sums = workspace + split.shares() + row * k * k * split.pieces;
    double total = 0;
    for (int64_t other = 0; other < k; ++other) {
      const int64_t at = of_width ? other * k + tap : tap * k + other;
      double sum = 0;
      for (int64_t piece = 0; piece < split.pieces; ++piece) sum += sums[at * split.pieces + piece];
      total += sum * double(weights.tap(of_width ? 1 : 2, int(other), row));
    }
    out[i] = accumulator<T>(total);
  }
};

}  // namespace aablur::gpu
