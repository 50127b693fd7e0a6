// One spatial axis of a blur pool: its sizes and all that is known of its borders. Strides of the maps about it.
// Host and device; no torch.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define AABLUR_HOST_DEVICE __host__ __device__
#define AABLUR_UNROLL _Pragma("unroll")
#define AABLUR_NO_UNROLL _Pragma("unroll 1")
#else
#define AABLUR_HOST_DEVICE
#define AABLUR_UNROLL
#define AABLUR_NO_UNROLL
#endif

namespace aablur {

enum class PaddingMode { zeros, reflect, replicate, circular };

constexpr int64_t outside = -1;

AABLUR_HOST_DEVICE constexpr int64_t floor_div(int64_t a, int64_t b) {
  return a / b - (a % b != 0 && (a < 0) != (b < 0));
}
AABLUR_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return -floor_div(-a, b);
}
AABLUR_HOST_DEVICE constexpr int64_t modulo(int64_t a, int64_t b) {
  return a - floor_div(a, b) * b;
}

struct Axis {
  int64_t size = 1;  // of the input
  int64_t taps = 1;
  int64_t stride = 1;
  int64_t before = 0, after = 0;  // padding of the pooled map; negative crops
  PaddingMode padding_mode = PaddingMode::zeros;
  int64_t window = 1, window_padding = 0, window_dilation = 1;  // of the max

  // Size after the max over the window, at stride 1: what the blur reads.
  AABLUR_HOST_DEVICE constexpr int64_t pooled() const {
    return size + 2 * window_padding - window_dilation * (window - 1);
  }
  AABLUR_HOST_DEVICE constexpr int64_t out() const { return floor_div(pooled() + before + after - taps, stride) + 1; }

  // Whether the window lies wholly outside of the map somewhere: a dilated one can step over a small map.
  AABLUR_HOST_DEVICE constexpr bool misses() const {
    if (window_padding == 0 || size >= window_dilation) return false;
    for (int64_t i = 0; i < pooled(); ++i) {
      bool inside = false;
      for (int64_t a = 0; a < window; ++a) {
        const int64_t source = i - window_padding + a * window_dilation;
        inside = inside || (source >= 0 && source < size);
      }
      if (!inside) return true;
    }
    return false;
  }

  // Index in the pooled map that padded position p reads, or `outside`.
  AABLUR_HOST_DEVICE constexpr int64_t fold(int64_t p) const {
    const int64_t n = pooled();
    if (p >= 0 && p < n) return p;
    switch (padding_mode) {
      case PaddingMode::zeros: return outside;
      case PaddingMode::replicate: return p < 0 ? 0 : n - 1;
      case PaddingMode::circular: return modulo(p, n);
      case PaddingMode::reflect: break;
    }
    if (n == 1) return 0;
    const int64_t period = 2 * (n - 1);
    const int64_t q = modulo(p, period);
    return q < n ? q : period - q;
  }

  // Calls f(p) for every padded position p, -before <= p < pooled + after, with fold(p) == i, in order.
  template <class F>
  AABLUR_HOST_DEVICE constexpr void unfold(int64_t i, F&& f) const {
    const int64_t n = pooled(), low = -before, high = n + after;
    // They lie step, other, step, other ... apart.
    int64_t first = i, end = high, step = high - low, other = step;
    const bool reflects = padding_mode == PaddingMode::reflect && n > 1;
    const bool alone =
        0 < i && i < n - 1 && (reflects ? -i : i - n) < low && (reflects ? 2 * (n - 1) - i : i + n) >= high;
    if (alone || padding_mode == PaddingMode::zeros) {
      end = i + 1 < high ? i + 1 : high;
    } else if (padding_mode == PaddingMode::circular) {
      first = low + modulo(i - low, n);
      step = other = n;
    } else if (reflects) {
      const int64_t period = 2 * (n - 1), copy = modulo(i - low, period), mirror = modulo(-i - low, period);
      first = low + (copy < mirror ? copy : mirror);
      step = copy < mirror ? mirror - copy : copy - mirror;
      if (step == 0) step = period;
      other = step == period ? period : period - step;
    } else {  // the outermost values go on for ever
      step = other = 1;
      if (i == 0 && low < 0) first = low;
      if (i < n - 1) end = i + 1 < high ? i + 1 : high;
    }
    for (int64_t p = first; p < end;) {
      if (p >= low) f(p);
      p += step;
      const int64_t next = other;
      other = step;
      step = next;
    }
  }

  // Calls f(o, tap) for every output o and tap that read pooled index i: a column of the axis' matrix.
  template <class F>
  AABLUR_HOST_DEVICE constexpr void readers(int64_t i, F&& f) const {
    const int64_t outputs = out();
    unfold(i, [&](int64_t p) {
      const int64_t q = p + before;  // tap = q - o * stride
      int64_t o = q - taps < 0 ? 0 : ceil_div(q - taps + 1, stride);
      for (; o < outputs && o * stride <= q; ++o) f(o, q - o * stride);
    });
  }
};

enum class Dtype { float16, bfloat16, float32, float64 };

// Elements between neighbours of a (image, plane, depth, height, pixel) grid of rows.
struct Strides {
  int64_t image = 0, plane = 0, depth = 0, height = 0, pixel = 1;
};

}  // namespace aablur
