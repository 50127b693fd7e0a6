// The generic kernels: for every geometry, dtype, layout and size.
//
//   global x --an element a tap (and window position), folded at borders--> registers: one sum --> global out
//
// A thread makes one element of the result, alone: forward it goes over the taps of each axis, backward over the
// outputs that read the element (core/borders.h). Neighbouring threads take neighbouring elements, so that loads are
// coalesced where the map is dense; indices have 64 bits. The gradient of the taps goes through a workspace in two
// launches: partial sums of chunks of outputs, and their sum in a fixed order.
//
// A kernel is a functor of the thread's number, called from one __global__ template.
#pragma once

#define AABLUR_ISA gpu
#include "core/borders.h"
#include "core/dtype.h"
#include "gpu/params.h"

namespace aablur::gpu {

// Where an element of a dense map is.
struct Position {
  int64_t image, channel, axis[3];
};

AABLUR_HOST_DEVICE inline Position position_of(int64_t i, const Shape& shape, const int64_t (&size)[3]) {
  Position p{};
  auto next = [&](int64_t n) {
    const int64_t index = i % n;
    i /= n;
    return index;
  };
  if (shape.channels_last) p.channel = next(shape.channels);
  for (int a = 2; a >= 0; --a) p.axis[a] = next(size[a]);
  if (!shape.channels_last) p.channel = next(shape.channels);
  p.image = i;
  return p;
}

AABLUR_HOST_DEVICE inline int64_t offset_of(const Strides& strides, const Position& p) {
  return p.image * strides.image + p.channel * strides.channel + p.axis[0] * strides.axis[0] +
         p.axis[1] * strides.axis[1] + p.axis[2] * strides.axis[2];
}

AABLUR_HOST_DEVICE inline int64_t elements(const Shape& shape, const int64_t (&size)[3]) {
  return shape.images * shape.channels * size[0] * size[1] * size[2];
}

template <class A>
AABLUR_HOST_DEVICE inline A binomial_tap(int64_t taps, int64_t t) {
  double value = 1;  // of (1 + z)**(taps - 1) / 2**(taps - 1)
  for (int64_t i = 0; i < t; ++i) value = value * double(taps - 1 - i) / double(i + 1);
  for (int64_t i = 1; i < taps; ++i) value /= 2;
  return A(value);
}

template <class A>
AABLUR_HOST_DEVICE inline A tap_of(const Filters& filters, const Shape& shape, int axis, int64_t t, int64_t channel) {
  if (!filters.taps) return binomial_tap<A>(shape.axis[axis].taps, t);
  if (filters.offset[axis] < 0) return A(1);
  const A* row = static_cast<const A*>(filters.taps) + (filters.per_channel ? channel * filters.row : 0);
  return row[filters.offset[axis] + t];
}

// The max over the window at pooled position p, and its code.
template <class T>
AABLUR_HOST_DEVICE inline accumulator<T> pooled_value(const Shape& shape, const T* x, const Strides& strides,
                                                      Position p, int64_t* code = nullptr) {
  const Axis &depth = shape.axis[0], &height = shape.axis[1], &width = shape.axis[2];
  accumulator<T> best = 0;
  int64_t index = 0, winner = -1;
  Position q = p;
  for (int64_t a = 0; a < depth.window; ++a)
    for (int64_t b = 0; b < height.window; ++b)
      for (int64_t c = 0; c < width.window; ++c, ++index) {
        q.axis[0] = p.axis[0] - depth.window_padding + a * depth.window_dilation;
        q.axis[1] = p.axis[1] - height.window_padding + b * height.window_dilation;
        q.axis[2] = p.axis[2] - width.window_padding + c * width.window_dilation;
        bool inside = true;
        for (int d = 0; d < 3; ++d) inside = inside && q.axis[d] >= 0 && q.axis[d] < shape.axis[d].size;
        if (!inside) continue;
        const accumulator<T> candidate = widen(x[offset_of(strides, q)]);
        if (winner < 0 || Max::replaces(candidate, best)) {
          best = candidate;
          winner = index;
        }
      }
  if (code) *code = winner;
  return best;
}

// Output element i of the blur of the prologue of x.
template <class T>
struct BlurPoint {
  BlurArguments arguments;

  int64_t count() const {
    const Axis(&axis)[3] = arguments.shape.axis;
    return elements(arguments.shape, {axis[0].out(), axis[1].out(), axis[2].out()});
  }
  AABLUR_HOST_DEVICE void operator()(int64_t i) const {
    using A = accumulator<T>;
    const Shape& shape = arguments.shape;
    const Axis &depth = shape.axis[0], &height = shape.axis[1], &width = shape.axis[2];
    const Position o = position_of(i, shape, {depth.out(), height.out(), width.out()});
    const T* x = static_cast<const T*>(arguments.x);
    Position p = o;
    A total = 0;
    for (int64_t a = 0; a < depth.taps; ++a) {
      p.axis[0] = fold(depth, o.axis[0] * depth.stride - depth.before + a);
      if (p.axis[0] == outside) continue;
      for (int64_t b = 0; b < height.taps; ++b) {
        p.axis[1] = fold(height, o.axis[1] * height.stride - height.before + b);
        if (p.axis[1] == outside) continue;
        const A outer =
            tap_of<A>(arguments.filters, shape, 0, a, o.channel) * tap_of<A>(arguments.filters, shape, 1, b, o.channel);
        A row = 0;
        for (int64_t c = 0; c < width.taps; ++c) {
          p.axis[2] = fold(width, o.axis[2] * width.stride - width.before + c);
          if (p.axis[2] == outside) continue;
          row += tap_of<A>(arguments.filters, shape, 2, c, o.channel) * pooled_value(shape, x, arguments.x_strides, p);
        }
        total += outer * row;
      }
    }
    static_cast<T*>(arguments.out)[i] = narrow<T>(total);
  }
};

// The padded, blurred gradient that pooled position p of a channel gets.
template <class T>
AABLUR_HOST_DEVICE inline accumulator<T> gathered(const Shape& shape, const Filters& filters, const T* grad,
                                                  const Strides& strides, const Position& p) {
  using A = accumulator<T>;
  A total = 0;
  Position o = p;
  readers(shape.axis[0], p.axis[0], [&](int64_t d, int64_t a) {
    o.axis[0] = d;
    readers(shape.axis[1], p.axis[1], [&](int64_t h, int64_t b) {
      o.axis[1] = h;
      const A outer = tap_of<A>(filters, shape, 0, a, p.channel) * tap_of<A>(filters, shape, 1, b, p.channel);
      A row = 0;
      readers(shape.axis[2], p.axis[2], [&](int64_t w, int64_t c) {
        o.axis[2] = w;
        row += tap_of<A>(filters, shape, 2, c, p.channel) * widen(grad[offset_of(strides, o)]);
      });
      total += outer * row;
    });
  });
  return total;
}

// Element i of the input's gradient, without a window.
template <class T>
struct BlurBackwardPoint {
  BlurArguments arguments;  // x is the output's gradient

  int64_t count() const {
    const Axis(&axis)[3] = arguments.shape.axis;
    return elements(arguments.shape, {axis[0].size, axis[1].size, axis[2].size});
  }
  AABLUR_HOST_DEVICE void operator()(int64_t i) const {
    const Shape& shape = arguments.shape;
    const Position p = position_of(i, shape, {shape.axis[0].size, shape.axis[1].size, shape.axis[2].size});
    static_cast<T*>(arguments.out)[i] =
        narrow<T>(gathered(shape, arguments.filters, static_cast<const T*>(arguments.x), arguments.x_strides, p));
  }
};

// ---- argmax codes --------------------------------------------------------------------------------

AABLUR_HOST_DEVICE inline int64_t planes_of(const Shape& shape) {
  return shape.channels_last ? shape.images : shape.images * shape.channels;
}

AABLUR_HOST_DEVICE inline int64_t code_at(const Shape& shape, const Codes& codes, const Position& p) {
  const Packing& packing = codes.packing;
  const bool last = shape.channels_last;
  int64_t row = last ? p.image : p.image * shape.channels + p.channel;
  for (int a = 0; a < 2 + last; ++a) row = row * shape.axis[a].pooled() + p.axis[a];
  const int64_t bit = (last ? p.channel : p.axis[2]) * packing.bits;
  const uint8_t* byte = codes.data + row * packing.row_bytes + bit / 8;
  if (packing.bits == 16) return byte[0] | byte[1] << 8;
  return byte[0] >> (bit % 8) & ((1 << packing.bits) - 1);
}

// Byte i of the codes: all that share it are made by one thread.
template <class T>
struct CodesPoint {
  BlurArguments arguments;

  int64_t count() const { return planes_of(arguments.shape) * arguments.codes.packing.plane_bytes; }
  AABLUR_HOST_DEVICE void operator()(int64_t i) const {
    const Shape& shape = arguments.shape;
    const Codes& codes = arguments.codes;
    const int64_t bits = codes.packing.bits;
    int64_t row = i / codes.packing.row_bytes, byte = i % codes.packing.row_bytes;
    Position p{};
    for (int a = 1 + shape.channels_last; a >= 0; --a) {
      p.axis[a] = row % shape.axis[a].pooled();
      row /= shape.axis[a].pooled();
    }
    p.image = shape.channels_last ? row : row / shape.channels;
    p.channel = shape.channels_last ? 0 : row % shape.channels;
    int64_t &last = shape.channels_last ? p.channel : p.axis[2],
            end = shape.channels_last ? shape.channels : shape.axis[2].pooled();
    int64_t packed = 0, code = 0;
    for (int64_t bit = 0; bit < 8; bit += bits) {
      last = (byte * 8 + bit) / bits;
      if (last >= end) break;
      pooled_value(shape, static_cast<const T*>(arguments.x), arguments.x_strides, p, &code);
      packed |= bits == 16 ? code >> (8 * (byte % 2)) : code << bit;
    }
    codes.data[i] = uint8_t(packed);
  }
};

// Element i of the input's gradient: from every window that holds it and that it was the maximum of.
template <class T>
struct MaxBackwardPoint {
  MaxBackwardArguments arguments;

  int64_t count() const {
    const Axis(&axis)[3] = arguments.shape.axis;
    return elements(arguments.shape, {axis[0].size, axis[1].size, axis[2].size});
  }
  AABLUR_HOST_DEVICE void operator()(int64_t i) const {
    const Shape& shape = arguments.shape;
    const Axis &depth = shape.axis[0], &height = shape.axis[1], &width = shape.axis[2];
    const Position at = position_of(i, shape, {depth.size, height.size, width.size});
    accumulator<T> total = 0;
    int64_t index = 0;
    Position p = at;
    for (int64_t a = 0; a < depth.window; ++a)
      for (int64_t b = 0; b < height.window; ++b)
        for (int64_t c = 0; c < width.window; ++c, ++index) {
          p.axis[0] = at.axis[0] + depth.window_padding - a * depth.window_dilation;
          p.axis[1] = at.axis[1] + height.window_padding - b * height.window_dilation;
          p.axis[2] = at.axis[2] + width.window_padding - c * width.window_dilation;
          bool inside = true;
          for (int d = 0; d < 3; ++d) inside = inside && p.axis[d] >= 0 && p.axis[d] < shape.axis[d].pooled();
          if (!inside || code_at(shape, arguments.codes, p) != index) continue;
          total += gathered(shape, arguments.filters, static_cast<const T*>(arguments.grad), arguments.grad_strides, p);
        }
    static_cast<T*>(arguments.out)[i] = narrow<T>(total);
  }
};

// ---- the taps' gradient --------------------------------------------------------------------------

// Share of tap (i % row) of filter row (i / row % rows) that chunk (i / row / rows) of the outputs gives.
template <class T>
struct TapsShare {
  TapsArguments arguments;

  AABLUR_HOST_DEVICE int64_t rows() const { return arguments.filters.per_channel ? arguments.shape.channels : 1; }
  int64_t count() const { return arguments.chunks * rows() * arguments.filters.row; }
  AABLUR_HOST_DEVICE void operator()(int64_t i) const {
    using A = accumulator<T>;
    const Shape& shape = arguments.shape;
    const Filters& filters = arguments.filters;
    const int64_t chunk = i / filters.row / rows(), row = i / filters.row % rows();
    int64_t tap = i % filters.row;
    int own = 2;  // the axis of the tap
    while (filters.offset[own] > tap) --own;
    tap -= filters.offset[own];
    // The outputs that this row of taps made: of one channel, or of all.
    Shape part = shape;
    part.channels = filters.per_channel ? 1 : shape.channels;
    const int64_t out[3] = {shape.axis[0].out(), shape.axis[1].out(), shape.axis[2].out()};
    const int64_t all = elements(part, out);
    const int64_t begin = all * chunk / arguments.chunks, end = all * (chunk + 1) / arguments.chunks;
    const T *grad = static_cast<const T*>(arguments.grad), *x = static_cast<const T*>(arguments.x);
    double total = 0;
    for (int64_t e = begin; e < end; ++e) {
      Position o = position_of(e, part, out), p = o;
      if (filters.per_channel) o.channel = p.channel = row;
      const double dy = double(widen(grad[offset_of(arguments.grad_strides, o)]));
      int64_t first[3] = {}, last[3];
      for (int a = 0; a < 3; ++a) {
        last[a] = shape.axis[a].taps;
        if (a == own) first[a] = tap, last[a] = tap + 1;
      }
      for (int64_t a = first[0]; a < last[0]; ++a) {
        p.axis[0] = fold(shape.axis[0], o.axis[0] * shape.axis[0].stride - shape.axis[0].before + a);
        if (p.axis[0] == outside) continue;
        const A outer = own == 0 ? A(1) : tap_of<A>(filters, shape, 0, a, row);
        for (int64_t b = first[1]; b < last[1]; ++b) {
          p.axis[1] = fold(shape.axis[1], o.axis[1] * shape.axis[1].stride - shape.axis[1].before + b);
          if (p.axis[1] == outside) continue;
          const A middle = own == 1 ? outer : outer * tap_of<A>(filters, shape, 1, b, row);
          for (int64_t c = first[2]; c < last[2]; ++c) {
            p.axis[2] = fold(shape.axis[2], o.axis[2] * shape.axis[2].stride - shape.axis[2].before + c);
            if (p.axis[2] == outside) continue;
            const A weight = own == 2 ? middle : middle * tap_of<A>(filters, shape, 2, c, row);
            total += dy * double(weight) * double(widen(x[offset_of(arguments.x_strides, p)]));
          }
        }
      }
    }
    arguments.workspace[i] = total;
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
