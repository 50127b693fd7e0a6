// What generic kernels with a max put before the blur and behind its transpose. A workspace lies between, of some
// images at a time.
//
//   forward:  global x --a window an element--> maxima --> workspace; codes --> global     (then the generic blur)
//   backward: (first the transposed blur) workspace: gradients of maxima; global codes
//             --every window that holds an element, if it chose it--> registers: one sum --> global gradient
#pragma once

#include <cmath>

#include "gpu/indices.h"

namespace aablur::gpu {

// What of a window lies in a map: of at most 32 elements a bit each, in row-major order.
template <class I>
struct Window {
  static constexpr int most = 32;
  BasicAxis<I> axis[3];
  int volume, apart[3];  // bits from an element to the next along an axis
  uint32_t repeat[3];    // ones where what lies further along an axis begins again

  explicit Window(const Shape& shape)
      : axis{in_type<I>(shape.axis[0]), in_type<I>(shape.axis[1]), in_type<I>(shape.axis[2])} {
    volume = int(axis[0].window * axis[1].window * axis[2].window);
    int bits = 1;
    for (int a = 2; a >= 0; --a) {
      apart[a] = bits;
      bits *= int(axis[a].window);
      repeat[a] = 0;
      for (int bit = 0; bit < volume && bit < most; bit += bits) repeat[a] |= 1u << bit;
    }
  }
  // Element n's distance from the first one, in a map of these strides.
  I distance(int n, const BasicStrides<I>& strides) const {
    I sum = 0;
    for (int a = 0; a < 3; ++a) sum += I(n / apart[a]) % axis[a].window * axis[a].window_dilation * strides.axis[a];
    return sum;
  }
  // The elements c along an axis for which first + c * dilation lies in [0, size).
  AABLUR_HOST_DEVICE uint32_t inside(int a, I first, I size) const {
    const I step = axis[a].window_dilation, count = axis[a].window;
    int begin = 0, end = int(count);
    if (first < 0) begin = int(ceil_div<I>(-first, step));
    if (first + (count - 1) * step >= size) end = first < size ? int((size - 1 - first) / step) + 1 : 0;
    return begin < end ? (below(end * apart[a]) & ~below(begin * apart[a])) * repeat[a] : 0;
  }
  // Calls f(number, offsets from the first element) for every element, of windows of any volume.
  template <class F>
  AABLUR_HOST_DEVICE void each(F&& f) const {
    int number = 0;
    for (I a = 0; a < axis[0].window; ++a)
      for (I b = 0; b < axis[1].window; ++b)
        for (I c = 0; c < axis[2].window; ++c, ++number)
          f(number, a * axis[0].window_dilation, b * axis[1].window_dilation, c * axis[2].window_dilation);
  }

  // Of the window whose first element is at (d, h, w), `first` in the map; the code is the number of the element.
  template <class T>
  AABLUR_HOST_DEVICE accumulator<T> maximum(const View<T, I>& x, I first, I d, I h, I w, int& code) const {
    accumulator<T> best = 0;
    code = -1;
    auto has = [&](int a, I at) { return at >= 0 && at < axis[a].size; };
    each([&](int number, I a, I b, I c) {
      if (!has(0, d + a) || !has(1, h + b) || !has(2, w + c)) return;
      const accumulator<T> candidate =
          widen(x.data[first + a * x.strides.axis[0] + b * x.strides.axis[1] + c * x.strides.axis[2]]);
      if (code < 0 || Max::replaces(candidate, best)) best = candidate, code = number;
    });
    return best;
  }

 private:
  AABLUR_HOST_DEVICE static uint32_t below(int bits) { return bits < 32 ? (1u << bits) - 1 : ~0u; }
};

AABLUR_HOST_DEVICE inline int lowest_bit(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __ffs(int(bits)) - 1;
#else
  return __builtin_ctz(bits);
#endif
}

// Maxima (or their gradients), and their codes.
template <class A, class I>
struct Maxima {
  A* values;  // dense
  BasicStrides<I> strides;
  uint8_t* codes;  // or none
  int bits;
  I size[3], channels, plane_bytes, row_bytes[3];  // from one row of codes to the next; 0 along the row
  bool channels_last;

  Maxima(const Shape& shape, void* values, const Codes& codes)
      : values(static_cast<A*>(values)),
        strides(in_type<I>(dense_strides(shape.channels, of_maxima(shape).size, shape.channels_last))),
        codes(codes.data),
        bits(int(codes.packing.bits)),
        channels(I(shape.channels)),
        plane_bytes(I(codes.packing.plane_bytes)),
        channels_last(shape.channels_last) {
    for (int a = 0; a < 3; ++a) size[a] = I(shape.axis[a].pooled());
    row_bytes[2] = channels_last ? I(codes.packing.row_bytes) : 0;
    row_bytes[1] = I(codes.packing.row_bytes) * (channels_last ? size[2] : 1);
    row_bytes[0] = row_bytes[1] * size[1];
  }
  // Of codes.
  AABLUR_HOST_DEVICE I plane(I image, I channel) const { return channels_last ? image : image * channels + channel; }
};

// The columns of a map along its first axis, in pieces, of which `some` side by side are one thread's.
template <class I>
struct Columns {
  static constexpr int64_t longest = 8;
  I piece;
  Grid<I> grid;
  int64_t threads;

  Columns(const Shape& shape, Volume volume, int64_t some) : piece(I(ceil_div(volume.size[0], pieces(volume)))) {
    int64_t channels = shape.channels;
    volume.size[0] = pieces(volume);
    int64_t& last = shape.channels_last ? channels : volume.size[2];
    last = ceil_div(last, some);
    grid = Grid<I>(shape.channels_last, channels, volume);
    threads = shape.images * channels * volume.size[0] * volume.size[1] * volume.size[2];
  }
  static int64_t pieces(const Volume& volume) { return ceil_div(volume.size[0], longest); }
};

// The maxima of a map as a source of them.
template <class T>
struct MaximaOf {
  Window<int64_t> window;
  View<T, int64_t> x;

  MaximaOf(const Shape& shape, const void* x, const Strides& strides) : window(shape), x(x, strides) {}
  AABLUR_HOST_DEVICE accumulator<T> at(int64_t image, int64_t channel, int64_t d, int64_t h, int64_t w) const {
    d -= window.axis[0].window_padding, h -= window.axis[1].window_padding, w -= window.axis[2].window_padding;
    int code;
    return window.maximum(x,
                          image * x.strides.image + channel * x.strides.channel + d * x.strides.axis[0] +
                              h * x.strides.axis[1] + w * x.strides.axis[2],
                          d, h, w, code);
  }
};

// Maxima whose codes share a byte; without codes, or where a code takes a byte and more, one. HasBits: Window's.
template <class T, class I, bool HasBits>
struct MaxPool {
  using A = accumulator<T>;
  Window<I> window;
  View<T, I> x;
  Maxima<T, I> maxima;
  I some, last_size;
  Columns<I> columns;
  I distance[HasBits ? Window<I>::most : 1] = {};

  MaxPool(const BlurArguments& a, void* values)
      : window(a.shape),
        x(a.x, a.x_strides),
        maxima(a.shape, values, a.codes),
        some(a.codes.data && maxima.bits < 8 ? 8 / maxima.bits : 1),
        last_size(maxima.channels_last ? maxima.channels : maxima.size[2]),
        columns(a.shape, of_maxima(a.shape), some) {
    for (int n = 0; HasBits && n < window.volume; ++n) distance[n] = window.distance(n, x.strides);
  }
  int64_t count() const { return columns.threads; }
  AABLUR_HOST_DEVICE void operator()(int64_t i) const {
    const Position<I> p = columns.grid.at(I(i));
    const bool last = maxima.channels_last;
    const I begin = p.axis[0] * columns.piece, group = last ? p.channel : p.axis[2], first = group * some;
    const I end = begin + columns.piece < maxima.size[0] ? begin + columns.piece : maxima.size[0];
    const I channel = last ? first : p.channel, column = last ? p.axis[2] : first;
    const I members = first + some < last_size ? some : last_size - first;
    T* to = maxima.values +
            (p.image * maxima.strides.image + channel * maxima.strides.channel + begin * maxima.strides.axis[0] +
             p.axis[1] * maxima.strides.axis[1] + column * maxima.strides.axis[2]);
    uint8_t* codes = maxima.codes + (maxima.plane(p.image, channel) * maxima.plane_bytes + begin * maxima.row_bytes[0] +
                                     p.axis[1] * maxima.row_bytes[1] + column * maxima.row_bytes[2] +
                                     group * (maxima.bits == 16 ? 2 : 1));
    I at[3] = {begin, p.axis[1], column};  // of the window's first element
    AABLUR_UNROLL
    for (int a = 0; a < 3; ++a) at[a] -= window.axis[a].window_padding;
    const I from =
        p.image * x.strides.image + channel * x.strides.channel + at[1] * x.strides.axis[1] + at[2] * x.strides.axis[2];
    const I next = last ? x.strides.channel : x.strides.axis[2];
    const uint32_t rows = inside(1, at[1]), columns_of_first = inside(2, at[2]);
    AABLUR_NO_UNROLL
    for (I d = begin; d < end; ++d, ++at[0]) {
      const uint32_t slices = rows & inside(0, at[0]);
      int packed = 0;
      AABLUR_NO_UNROLL
      for (I member = 0; member < members; ++member) {
        const I width = at[2] + (last ? 0 : member);
        const uint32_t there = slices & (last ? columns_of_first : inside(2, width));
        int code = 0;
        to[member] =
            narrow<T>(maximum(from + (at[0] * x.strides.axis[0] + member * next), there, at[0], at[1], width, code));
        packed |= code << int(member * maxima.bits);
      }
      if (maxima.codes) {
        codes[0] = uint8_t(packed);
        if (maxima.bits == 16) codes[1] = uint8_t(packed >> 8);
      }
      to += maxima.strides.axis[0], codes += maxima.row_bytes[0];
    }
  }

 private:
  AABLUR_HOST_DEVICE uint32_t inside(int a, I first) const {
    return HasBits ? window.inside(a, first, window.axis[a].size) : 0;
  }
  // Of the window whose first element is here, at (d, h, w); the code is the number of the element in it.
  AABLUR_HOST_DEVICE A maximum(I here, uint32_t there, I d, I h, I w, int& code) const {
    if constexpr (!HasBits) {
      return window.maximum(x, here, d, h, w, code);
    } else {
      constexpr int at_once = 4;
      A best = -A(INFINITY);
      code = lowest_bit(there);
      AABLUR_NO_UNROLL
      for (int n = 0; n < window.volume; n += at_once, there >>= at_once) {
        A candidate[at_once];
        AABLUR_UNROLL
        for (int k = 0; k < at_once; ++k) {
          candidate[k] = -A(INFINITY);
          if (there & 1u << k) candidate[k] = widen(x.data[here + distance[n + k]]);
        }
        AABLUR_UNROLL
        for (int k = 0; k < at_once; ++k)
          if (Max::replaces(candidate[k], best)) best = candidate[k], code = n + k;
      }
      return best;
    }
  }
};

// The gradient of an element: the sum over the windows that chose it.
template <class T, class I, bool HasBits>
struct MaxUnpool {
  using A = accumulator<T>;
  using Unsigned = std::make_unsigned_t<I>;
  Window<I> window;
  Maxima<A, I> maxima;  // their gradients
  Columns<I> columns;
  BasicStrides<I> out_strides;
  T* out;
  // From the window in which the element is the first to the one in which it has a number: values, bytes, bits.
  I to_value[HasBits ? Window<I>::most : 1] = {}, to_byte[HasBits ? Window<I>::most : 1] = {},
                                         to_field[HasBits ? Window<I>::most : 1] = {};

  MaxUnpool(const MaxBackwardArguments& a, void* gradients)
      : window(a.shape),
        maxima(a.shape, gradients, a.codes),
        columns(a.shape, of_input(a.shape), 1),
        out_strides(in_type<I>(dense_strides(a.shape.channels, of_input(a.shape).size, a.shape.channels_last))),
        out(static_cast<T*>(a.out)) {
    const bool last = maxima.channels_last;
    const BasicStrides<I> bytes{0, 0, {maxima.row_bytes[0], maxima.row_bytes[1], maxima.row_bytes[2]}},
        fields{0, 0, {0, 0, last ? 0 : 1}};
    for (int n = 0; HasBits && n < window.volume; ++n) {
      to_value[n] = -window.distance(n, maxima.strides);
      to_byte[n] = -window.distance(n, bytes), to_field[n] = -window.distance(n, fields) * maxima.bits;
    }
  }
  int64_t count() const { return columns.threads; }
  AABLUR_HOST_DEVICE void operator()(int64_t i) const {
    const Position<I> p = columns.grid.at(I(i));
    const I begin = p.axis[0] * columns.piece, size = window.axis[0].size;
    const I end = begin + columns.piece < size ? begin + columns.piece : size;
    I at[3] = {begin, p.axis[1], p.axis[2]};  // the window in which the element is the first
    AABLUR_UNROLL
    for (int a = 0; a < 3; ++a) at[a] += window.axis[a].window_padding;
    I value = p.image * maxima.strides.image + p.channel * maxima.strides.channel + at[0] * maxima.strides.axis[0] +
              at[1] * maxima.strides.axis[1] + at[2] * maxima.strides.axis[2];
    I byte = maxima.plane(p.image, p.channel) * maxima.plane_bytes + at[0] * maxima.row_bytes[0] +
             at[1] * maxima.row_bytes[1] + at[2] * maxima.row_bytes[2];
    const I field = (maxima.channels_last ? p.channel : at[2]) * maxima.bits;
    const uint32_t rows = inside(1, at[1]) & inside(2, at[2]), mask = (1u << maxima.bits) - 1;
    T* to = out + (p.image * out_strides.image + p.channel * out_strides.channel + begin * out_strides.axis[0] +
                   p.axis[1] * out_strides.axis[1] + p.axis[2] * out_strides.axis[2]);
    AABLUR_NO_UNROLL
    for (I d = begin; d < end; ++d, ++at[0]) {
      A total = 0;
      if constexpr (HasBits) {
        constexpr int at_once = 4;
        uint32_t there = rows & inside(0, at[0]);
        AABLUR_NO_UNROLL
        for (int n = 0; n < window.volume; n += at_once, there >>= at_once) {
          uint32_t bits[at_once];
          bool is_there[at_once];
          AABLUR_UNROLL
          for (int k = 0; k < at_once; ++k) {
            is_there[k] = (there & 1u << k) != 0;
            const Unsigned bit = Unsigned(field + to_field[n + k]), at_byte = Unsigned(byte + to_byte[n + k]) + bit / 8;
            bits[k] = uint32_t(maxima.codes[is_there[k] ? at_byte : 0]) >> (bit % 8);
          }
          AABLUR_UNROLL
          for (int k = 0; k < at_once; ++k)
            if (is_there[k] && (bits[k] & mask) == uint32_t(n + k)) total += maxima.values[value + to_value[n + k]];
        }
      } else {
        window.each([&](int number, I a, I b, I c) {
          auto has = [&](int axis, I at) { return at >= 0 && at < maxima.size[axis]; };
          if (!has(0, at[0] - a) || !has(1, at[1] - b) || !has(2, at[2] - c)) return;
          const I bytes = a * maxima.row_bytes[0] + b * maxima.row_bytes[1] + c * maxima.row_bytes[2],
                  before = a * maxima.strides.axis[0] + b * maxima.strides.axis[1] + c * maxima.strides.axis[2];
          const I bit = field - (maxima.channels_last ? 0 : c * maxima.bits);
          const uint8_t* const code = maxima.codes + (byte - bytes + bit / 8);
          const int found = maxima.bits == 16 ? code[0] | code[1] << 8 : int(code[0] >> (bit % 8) & mask);
          if (found == number) total += maxima.values[value - before];
        });
      }
      *to = narrow<T>(total);
      to += out_strides.axis[0], value += maxima.strides.axis[0], byte += maxima.row_bytes[0];
    }
  }

 private:
  // The windows along an axis that there are.
  AABLUR_HOST_DEVICE uint32_t inside(int a, I at) const {
    return HasBits ? window.inside(a, maxima.size[a] - 1 - at, maxima.size[a]) : 0;
  }
};

}  // namespace aablur::gpu
