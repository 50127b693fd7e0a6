// The fast gradient of the taps, of two alike axes of up to 5 taps. Moment (b, c) is the sum over outputs of the
// gradient times what taps b of the height and c of the width read; a tap's gradient is a sum of moments, weighed by
// the taps of the other axis. Three passes: threads' shares of all moments, sums of pieces of the shares, and the taps'
// gradients.
#pragma once

#include "gpu/tile.h"

namespace aablur::gpu {

// Lane i % lanes, part i / lanes: shares[moment][part][lane].
template <class T, int K>
struct MomentShares {
  TapsArguments arguments;
  Moments moments;
  Divisor heights, widths;

  MomentShares(const TapsArguments& arguments, const Moments& moments)
      : arguments(arguments),
        moments(moments),
        heights(uint32_t(arguments.shape.axis[1].out())),
        widths(uint32_t(arguments.shape.axis[2].out())) {}
  int64_t count() const { return moments.parts * moments.lanes; }

  AABLUR_HOST_DEVICE void operator()(int64_t i) const {
    using A = accumulator<T>;
    const Shape& shape = arguments.shape;
    const Axis &height = shape.axis[1], &width = shape.axis[2];
    const int64_t lane = i % moments.lanes, part = i / moments.lanes;
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
    for (int64_t at = part; at < moments.rest; at += moments.parts) {
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
    for (int m = 0; m < K * K; ++m)
      arguments.workspace[m * moments.parts * moments.lanes + i] = double(sum[m / K][m % K]);
  }
};

// Every pieces-th share of a moment of a row of taps: sums[row][moment][piece].
struct MomentPieces {
  Moments moments;
  double* workspace;

  int64_t count() const { return moments.rows * moments.taps * moments.taps * moments.pieces; }
  AABLUR_HOST_DEVICE void operator()(int64_t i) const {
    const int64_t squared = moments.taps * moments.taps;
    const int64_t piece = i % moments.pieces, moment = i / moments.pieces % squared, row = i / moments.pieces / squared;
    double total = 0;
    for (int64_t e = piece; e < moments.parts * moments.run; e += moments.pieces)
      total +=
          workspace[(moment * moments.parts + e / moments.run) * moments.lanes + row * moments.run + e % moments.run];
    workspace[moments.shares() + i] = total;
  }
};

// Tap i % (2 * taps) of a row: of the height, then of the width.
template <class T>
struct TapsFromMoments {
  TapsArguments arguments;
  Moments moments;

  int64_t count() const { return moments.rows * 2 * moments.taps; }
  AABLUR_HOST_DEVICE void operator()(int64_t i) const {
    const int64_t k = moments.taps, row = i / (2 * k), tap = i % k;
    const bool of_width = i % (2 * k) >= k;
    const double* sums = arguments.workspace + moments.shares() + row * k * k * moments.pieces;
    double total = 0;
    for (int64_t other = 0; other < k; ++other) {
      const int64_t moment = of_width ? other * k + tap : tap * k + other;
      double sum = 0;
      for (int64_t piece = 0; piece < moments.pieces; ++piece) sum += sums[moment * moments.pieces + piece];
      total += sum * double(tap_of<accumulator<T>>(arguments.filters, arguments.shape, of_width ? 1 : 2, other, row));
    }
    static_cast<accumulator<T>*>(arguments.out)[i] = accumulator<T>(total);
  }
};

}  // namespace aablur::gpu
