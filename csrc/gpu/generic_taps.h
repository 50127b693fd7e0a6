// The gradient of the taps for every geometry: partial sums of chunks of outputs, in doubles, and their sum in a fixed
// order.
//
//   global grad, x --a thread: a tap's share of a chunk--> workspace --a thread a tap--> global gradient
#pragma once

#include "gpu/generic.h"

namespace aablur::gpu {

// Share of tap (i % row) of filter row (i / row % rows) that chunk (i / row / rows) of the outputs gives.
template <class T, class I>
struct TapsShare : Axes<I> {
  Weights<T> weights;
  View<T, I> grad, x;
  Grid<I> outputs;  // that a row of taps made: of one channel, or of all
  int64_t all, chunks, rows, row;
  int offset[3];
  bool per_channel;
  double* workspace;

  explicit TapsShare(const TapsArguments& a)
      : Axes<I>(a.shape),
        weights(a.filters, a.shape),
        grad(a.grad, a.grad_strides),
        x(a.x, a.x_strides),
        outputs(a.shape.channels_last, a.filters.per_channel ? 1 : a.shape.channels, of_output(a.shape)),
        all(elements(a.shape, of_output(a.shape)) / (a.filters.per_channel ? a.shape.channels : 1)),
        chunks(a.chunks),
        rows(a.filters.per_channel ? a.shape.channels : 1),
        row(a.filters.row),
        offset{int(a.filters.offset[0]), int(a.filters.offset[1]), int(a.filters.offset[2])},
        per_channel(a.filters.per_channel),
        workspace(a.workspace) {}
  int64_t count() const { return chunks * rows * row; }
  AABLUR_HOST_DEVICE void operator()(int64_t i) const {
    using A = accumulator<T>;
    const int64_t chunk = i / row / rows, channel = i / row % rows;
    int tap = int(i % row), own = 2;  // the axis of the tap
    while (offset[own] > tap) --own;
    tap -= offset[own];
    auto each = [&](int a, I o, auto&& f) {
      sources(this->axis[a], o, [&](I source, I t) {
        if (a != own) f(source, weights.tap(a, int(t), channel));
        else if (t == tap) f(source, A(1));
      });
    };
    double total = 0;
    for (int64_t e = all * chunk / chunks, end = all * (chunk + 1) / chunks; e < end; ++e) {
      Position<I> o = outputs.at(I(e));
      if (per_channel) o.channel = I(channel);
      const double dy = double(grad.at(o.image, o.channel, o.axis[0], o.axis[1], o.axis[2]));
      each(0, o.axis[0], [&](I d, A outer) {
        each(1, o.axis[1], [&](I h, A beside) {
          each(2, o.axis[2], [&](I w, A inner) {
            total += dy * double(outer * beside * inner) * double(x.at(o.image, o.channel, d, h, w));
          });
        });
      });
    }
    workspace[i] = total;
  }
};

// Adds the chunks' shares in their order.
template <class T>
struct TapsSum {
  TapsArguments arguments;

  int64_t count() const {
    return (arguments.filters.per_channel ? arguments.shape.channels : 1) * arguments.filters.row;
  }
  AABLUR_HOST_DEVICE void operator()(int64_t i) const {
    const int64_t taps = (arguments.filters.per_channel ? arguments.shape.channels : 1) * arguments.filters.row;
    double total = 0;
    for (int64_t chunk = 0; chunk < arguments.chunks; ++chunk) total += arguments.workspace[chunk * taps + i];
    static_cast<accumulator<T>*>(arguments.out)[i] = accumulator<T>(total);
  }
};

}  // namespace aablur::gpu
