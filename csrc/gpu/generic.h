// The generic kernels: for every geometry, dtype, layout and size.
//
//   global x --an element a tap (and window position), folded at borders--> registers: one sum --> global out
//
// A thread makes one element of the result, alone: forward it goes over the taps of each axis, backward over the
// outputs that read the element (core/borders.h). Neighbouring threads take neighbouring elements, so that loads are
// coalesced where the map is dense. Indices have 32 bits where all of them fit, else 64. The gradient of the taps goes
// through a workspace in two launches: partial sums of chunks of outputs, and their sum in a fixed order.
//
// A kernel is a functor of the thread's number, called from one __global__ template.
#pragma once

#define AABLUR_ISA gpu
#include "core/borders.h"
#include "core/dtype.h"
#include "gpu/divisor.h"
#include "gpu/params.h"

namespace aablur::gpu {

// ---- indices ---------------------------------------------------------------------------------------

template <class I>
BasicAxis<I> in_type(const Axis& a) {
  return {I(a.size),      I(a.taps),   I(a.stride),         I(a.before),         I(a.after),
          a.padding_mode, I(a.window), I(a.window_padding), I(a.window_dilation)};
}
template <class I>
struct Axes {
  BasicAxis<I> axis[3];  // depth, height, width

  explicit Axes(const Shape& shape)
      : axis{in_type<I>(shape.axis[0]), in_type<I>(shape.axis[1]), in_type<I>(shape.axis[2])} {}
};
template <class I>
BasicStrides<I> in_type(const Strides& s) {
  return {I(s.image), I(s.channel), {I(s.axis[0]), I(s.axis[1]), I(s.axis[2])}};
}

struct Volume {
  int64_t size[3];
};
inline Volume of_input(const Shape& shape) {
  return {{shape.axis[0].size, shape.axis[1].size, shape.axis[2].size}};
}
inline Volume of_output(const Shape& shape) {
  return {{shape.axis[0].out(), shape.axis[1].out(), shape.axis[2].out()}};
}
inline int64_t elements(const Shape& shape, const Volume& volume) {
  return shape.images * shape.channels * volume.size[0] * volume.size[1] * volume.size[2];
}

// Whether all that a kernel computes of the axes, and of maps read with these strides, fits 31 bits.
inline bool fits_in_32_bits(const Shape& shape, std::initializer_list<Strides> read) {
  constexpr int64_t most = (int64_t(1) << 30) - 1;
  int64_t larger[3];
  for (int a = 0; a < 3; ++a) {
    const Axis& axis = shape.axis[a];
    larger[a] = std::max({axis.size, axis.pooled(), axis.out()});
    // The last is what a modulo's period is at most, and where a window may begin.
    for (int64_t v : {larger[a], axis.taps, axis.stride, axis.before, -axis.before, axis.after, -axis.after,
                      axis.window_padding, axis.window * axis.window_dilation, axis.out() * axis.stride})
      if (v > most) return false;
  }
  if (16 * std::max(shape.channels, larger[2]) > most) return false;  // bits of a row of codes
  auto product_fits = [&](std::initializer_list<int64_t> factors) {
    int64_t product = 1;
    for (int64_t f : factors) {
      if (f > 0 && product > most / f) return false;
      product *= std::max<int64_t>(f, 1);
    }
    return true;
  };
  // Bytes of the codes, of 16 bits at most, are counted, too.
  if (!product_fits({2, shape.images, shape.channels, larger[0], larger[1], larger[2]})) return false;
  for (const Strides& s : read) {
    int64_t end = 0;
    auto add = [&](int64_t size, int64_t stride) {
      const int64_t last = std::max<int64_t>(size - 1, 0);
      if (stride < 0 || (last > 0 && stride > most / last)) end = most + 1;
      else end += stride * last;
    };
    add(shape.images, s.image), add(shape.channels, s.channel);
    for (int a = 0; a < 3; ++a) add(larger[a], s.axis[a]);
    if (end > most) return false;
  }
  return true;
}

// Where an element of a dense map is.
template <class I>
struct Position {
  I image, channel, axis[3];
};

// The positions of a dense map in the order in which they lie.
template <class I>
class Grid {
  static constexpr bool is_small = sizeof(I) == 4;
  using Number = std::conditional_t<is_small, uint32_t, int64_t>;
  using By = std::conditional_t<is_small, Divisor, WideDivisor>;

 public:
  Grid(bool channels_last, int64_t channels, const Volume& volume) : channels_last_(channels_last) {
    const int64_t (&size)[3] = volume.size;
    const int64_t in_order[4] = {channels_last ? channels : size[2], size[channels_last ? 2 : 1],
                                 size[channels_last ? 1 : 0], channels_last ? size[0] : channels};
    for (int a = 0; a < 4; ++a) size_[a] = By(Number(std::max<int64_t>(in_order[a], 1)));
  }
  AABLUR_HOST_DEVICE Position<I> at(I i) const {
    Number rest = Number(i);
    I next[4];
    AABLUR_UNROLL
    for (int a = 0; a < 4; ++a) next[a] = I(size_[a].split(rest));
    if (channels_last_) return {I(rest), next[0], {next[3], next[2], next[1]}};
    return {I(rest), next[3], {next[2], next[1], next[0]}};
  }

 private:
  bool channels_last_;
  By size_[4];
};

// ---- taps ------------------------------------------------------------------------------------------

// The taps of all axes, one after the other: given ones, or binomial ones of up to 8 taps an axis.
template <class T>
class Weights {
  using A = accumulator<T>;

 public:
  Weights(const Filters& filters, const Shape& shape)
      : given_(static_cast<const A*>(filters.taps)), row_(int(filters.row)), per_channel_(filters.per_channel) {
    for (int a = 0; a < 3; ++a) offset_[a] = int(filters.offset[a]);
    for (int a = 0; a < 3 && !given_; ++a)
      for (int64_t t = 0; t < shape.axis[a].taps && offset_[a] >= 0; ++t)
        binomial_[offset_[a] + t] = binomial(shape.axis[a].taps, t);
  }
  // Tap t of an axis of channel's filter; 1 of an axis that has none.
  AABLUR_HOST_DEVICE A tap(int axis, int t, int64_t channel) const {
    const int offset = offset_[axis];
    if (offset < 0) return 1;
    if (!given_) return binomial_[offset + t];
    return given_[(per_channel_ ? channel * row_ : 0) + offset + t];
  }

 private:
  static A binomial(int64_t taps, int64_t t) {
    double value = 1;  // of (1 + z)**(taps - 1) / 2**(taps - 1)
    for (int64_t i = 0; i < t; ++i) value = value * double(taps - 1 - i) / double(i + 1);
    for (int64_t i = 1; i < taps; ++i) value /= 2;
    return A(value);
  }

  const A* given_;
  int row_, offset_[3];
  bool per_channel_;
  A binomial_[24] = {};
};

// ---- what is read ----------------------------------------------------------------------------------

// A map where it lies.
template <class T, class I>
struct View {
  const T* data;
  BasicStrides<I> strides;

  View(const void* data, const Strides& strides) : data(static_cast<const T*>(data)), strides(in_type<I>(strides)) {}
  AABLUR_HOST_DEVICE accumulator<T> at(I image, I channel, I d, I h, I w) const {
    return widen(data[image * strides.image + channel * strides.channel + d * strides.axis[0] + h * strides.axis[1] +
                      w * strides.axis[2]]);
  }
};

// The max over the window at pooled position p, and its code.
template <class T, class I>
AABLUR_HOST_DEVICE inline accumulator<T> pooled_value(const BasicAxis<I> (&axis)[3], const View<T, I>& x,
                                                      const Position<I>& p, int* code = nullptr) {
  I begin[3];
  AABLUR_UNROLL
  for (int a = 0; a < 3; ++a) begin[a] = p.axis[a] - axis[a].window_padding;
  accumulator<T> best = 0;
  int index = 0, winner = -1;
  auto has = [&](int a, I at) { return at >= 0 && at < axis[a].size; };
  I d = begin[0];
  for (I a = 0; a < axis[0].window; ++a, d += axis[0].window_dilation) {
    I h = begin[1];
    for (I b = 0; b < axis[1].window; ++b, h += axis[1].window_dilation) {
      I w = begin[2];
      for (I c = 0; c < axis[2].window; ++c, ++index, w += axis[2].window_dilation) {
        if (!has(0, d) || !has(1, h) || !has(2, w)) continue;
        const accumulator<T> candidate = x.at(p.image, p.channel, d, h, w);
        if (winner < 0 || Max::replaces(candidate, best)) {
          best = candidate;
          winner = index;
        }
      }
    }
  }
  if (code) *code = winner;
  return best;
}

// Calls f(source, tap) for each that output o of an axis reads.
template <class I, class F>
AABLUR_HOST_DEVICE inline void sources(const BasicAxis<I>& axis, I o, F&& f) {
  const I first = o * axis.stride - axis.before;
  for (I t = 0; t < axis.taps; ++t) {
    const I source = fold(axis, first + t);
    if (source != outside) f(source, t);
  }
}

// ---- the blur and its adjoint ----------------------------------------------------------------------

// What every kernel has: a thread makes an element of a dense result.
template <class T, class I>
struct Generic : Axes<I> {
  Weights<T> weights;
  Grid<I> results;
  T* out;
  int64_t threads;

  Generic(const Shape& shape, const Filters& filters, const Volume& result, void* out)
      : Axes<I>(shape),
        weights(filters, shape),
        results(shape.channels_last, shape.channels, result),
        out(static_cast<T*>(out)),
        threads(elements(shape, result)) {}
  int64_t count() const { return threads; }
};

// Output element i of the blur of the prologue of x.
template <class T, class I, class Prologue>
struct BlurPoint : Generic<T, I> {
  View<T, I> x;

  explicit BlurPoint(const BlurArguments& a)
      : Generic<T, I>(a.shape, a.filters, of_output(a.shape), a.out), x(a.x, a.x_strides) {}
  AABLUR_HOST_DEVICE void operator()(int64_t i) const {
    const Position<I> o = this->results.at(I(i));
    Position<I> p = o;
    accumulator<T> total = 0;
    sources(this->axis[0], o.axis[0], [&](I d, I a) {
      p.axis[0] = d;
      sources(this->axis[1], o.axis[1], [&](I h, I b) {
        p.axis[1] = h;
        accumulator<T> row = 0;
        sources(this->axis[2], o.axis[2], [&](I w, I c) {
          p.axis[2] = w;
          row += this->weights.tap(2, int(c), o.channel) * value(p);
        });
        total += this->weights.tap(0, int(a), o.channel) * this->weights.tap(1, int(b), o.channel) * row;
      });
    });
    this->out[i] = narrow<T>(total);
  }

 private:
  AABLUR_HOST_DEVICE accumulator<T> value(const Position<I>& p) const {
    if constexpr (Prologue::selects) return pooled_value(this->axis, x, p);
    else return x.at(p.image, p.channel, p.axis[0], p.axis[1], p.axis[2]);
  }
};

// The padded, blurred gradient that pooled position p of a channel gets.
template <class T, class I>
AABLUR_HOST_DEVICE inline accumulator<T> gathered(const Generic<T, I>& of, const View<T, I>& grad,
                                                  const Position<I>& p) {
  const BasicAxis<I>(&axis)[3] = of.axis;
  const Unfolded<I> depth(axis[0], p.axis[0]), height(axis[1], p.axis[1]), width(axis[2], p.axis[2]);
  accumulator<T> total = 0;
  readers(axis[0], depth, [&](I d, I a) {
    readers(axis[1], height, [&](I h, I b) {
      accumulator<T> row = 0;
      readers(axis[2], width,
              [&](I w, I c) { row += of.weights.tap(2, int(c), p.channel) * grad.at(p.image, p.channel, d, h, w); });
      total += of.weights.tap(0, int(a), p.channel) * of.weights.tap(1, int(b), p.channel) * row;
    });
  });
  return total;
}

// Element i of the input's gradient, without a window.
template <class T, class I>
struct BlurBackwardPoint : Generic<T, I> {
  View<T, I> grad;

  explicit BlurBackwardPoint(const BlurArguments& a)
      : Generic<T, I>(a.shape, a.filters, of_input(a.shape), a.out), grad(a.x, a.x_strides) {}
  AABLUR_HOST_DEVICE void operator()(int64_t i) const {
    this->out[i] = narrow<T>(gathered<T, I>(*this, grad, this->results.at(I(i))));
  }
};

// ---- argmax codes --------------------------------------------------------------------------------

// Where the codes of maxima lie.
template <class I>
class CodesAt {
 public:
  CodesAt(const Codes& codes, const Shape& shape)
      : data_(codes.data),
        bits_(int(codes.packing.bits)),
        row_bytes_(I(codes.packing.row_bytes)),
        channels_(I(shape.channels)),
        channels_last_(shape.channels_last) {
    for (int a = 0; a < 3; ++a) pooled_[a] = I(shape.axis[a].pooled());
  }
  AABLUR_HOST_DEVICE int at(const Position<I>& p) const {
    I row = channels_last_ ? p.image : p.image * channels_ + p.channel;
    for (int a = 0; a < 2 + channels_last_; ++a) row = row * pooled_[a] + p.axis[a];
    const I bit = (channels_last_ ? p.channel : p.axis[2]) * bits_;
    const uint8_t* byte = data_ + row * row_bytes_ + bit / 8;
    if (bits_ == 16) return byte[0] | byte[1] << 8;
    return byte[0] >> (bit % 8) & ((1 << bits_) - 1);
  }

 private:
  const uint8_t* data_;
  int bits_;
  I row_bytes_, channels_, pooled_[3];
  bool channels_last_;
};

// Byte i of the codes: all that share it are made by one thread.
template <class T, class I>
struct CodesPoint : Axes<I> {
  View<T, I> x;
  Grid<I> bytes;
  uint8_t* codes;
  int bits;
  I end;  // of what lies last
  int64_t threads;
  bool channels_last;

  explicit CodesPoint(const BlurArguments& a)
      : Axes<I>(a.shape),
        x(a.x, a.x_strides),
        bytes(a.shape.channels_last, a.shape.channels_last ? a.codes.packing.row_bytes : a.shape.channels, of_codes(a)),
        codes(a.codes.data),
        bits(int(a.codes.packing.bits)),
        end(I(a.shape.channels_last ? a.shape.channels : a.shape.axis[2].pooled())),
        threads(a.shape.images * (a.shape.channels_last ? 1 : a.shape.channels) * a.codes.packing.plane_bytes),
        channels_last(a.shape.channels_last) {}
  int64_t count() const { return threads; }
  AABLUR_HOST_DEVICE void operator()(int64_t i) const {
    Position<I> p = bytes.at(I(i));
    I& last = channels_last ? p.channel : p.axis[2];
    const I byte = last;
    int packed = 0, code = 0;
    for (int bit = 0; bit < 8; bit += bits) {
      last = (byte * 8 + bit) / bits;
      if (last >= end) break;
      pooled_value(this->axis, x, p, &code);
      packed |= bits == 16 ? code >> (8 * (byte % 2)) : code << bit;
    }
    codes[i] = uint8_t(packed);
  }

 private:
  static Volume of_codes(const BlurArguments& a) {
    const Axis(&axis)[3] = a.shape.axis;
    return {{axis[0].pooled(), axis[1].pooled(), a.shape.channels_last ? axis[2].pooled() : a.codes.packing.row_bytes}};
  }
};

// Element i of the input's gradient: from every window that holds it and that it was the maximum of.
template <class T, class I>
struct MaxBackwardPoint : Generic<T, I> {
  View<T, I> grad;
  CodesAt<I> codes;

  explicit MaxBackwardPoint(const MaxBackwardArguments& a)
      : Generic<T, I>(a.shape, a.filters, of_input(a.shape), a.out),
        grad(a.grad, a.grad_strides),
        codes(a.codes, a.shape) {}
  AABLUR_HOST_DEVICE void operator()(int64_t i) const {
    const BasicAxis<I>(&axis)[3] = this->axis;
    const Position<I> at = this->results.at(I(i));
    accumulator<T> total = 0;
    int index = 0;
    Position<I> p = at;
    for (I a = 0; a < axis[0].window; ++a)
      for (I b = 0; b < axis[1].window; ++b)
        for (I c = 0; c < axis[2].window; ++c, ++index) {
          p.axis[0] = at.axis[0] + axis[0].window_padding - a * axis[0].window_dilation;
          p.axis[1] = at.axis[1] + axis[1].window_padding - b * axis[1].window_dilation;
          p.axis[2] = at.axis[2] + axis[2].window_padding - c * axis[2].window_dilation;
          bool inside = true;
          for (int d = 0; d < 3; ++d) inside = inside && p.axis[d] >= 0 && p.axis[d] < axis[d].pooled();
          if (inside && codes.at(p) == index) total += gathered<T, I>(*this, grad, p);
        }
    this->out[i] = narrow<T>(total);
  }
};

// ---- the taps' gradient --------------------------------------------------------------------------

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
