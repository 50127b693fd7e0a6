// One spatial axis of a blur pool, and the strides of the maps about it.
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
};

// Of a batch of maps: elements between neighbours along images, channels and the three axes.
struct Strides {
  int64_t image = 0, channel = 0, axis[3] = {};
};

// Those of a dense map of `size`: the channel lies last in memory, or the width.
constexpr Strides dense_strides(int64_t channels, const int64_t (&size)[3], bool channels_last) {
  const int64_t pixel = channels_last ? channels : 1, volume = size[0] * size[1] * size[2];
  return {channels * volume, channels_last ? 1 : volume, {size[1] * size[2] * pixel, size[2] * pixel, pixel}};
}

}  // namespace aablur
