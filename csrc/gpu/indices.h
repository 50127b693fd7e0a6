// Numbers of generic kernels: axes, maps and positions in 32 bits where all of them fit, else in 64.
#pragma once

#define AABLUR_ISA gpu
#include "core/borders.h"
#include "core/dtype.h"
#include "gpu/divisor.h"
#include "gpu/params.h"

namespace aablur::gpu {

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
inline Volume of_maxima(const Shape& shape) {
  return {{shape.axis[0].pooled(), shape.axis[1].pooled(), shape.axis[2].pooled()}};
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
  Grid() = default;
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

}  // namespace aablur::gpu
