// One spatial axis of a blur pool, and the strides of the maps about it.
// Host and device; no torch.
#pragma once

#include <cstdint>
#include <type_traits>

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

// In 64 bits, or in those of I.
template <class I = int64_t>
AABLUR_HOST_DEVICE constexpr I floor_div(std::common_type_t<I> a, std::common_type_t<I> b) {
  return a / b - (a % b != 0 && (a < 0) != (b < 0));
}
template <class I = int64_t>
AABLUR_HOST_DEVICE constexpr I ceil_div(std::common_type_t<I> a, std::common_type_t<I> b) {
  return -floor_div<I>(-a, b);
}
template <class I = int64_t>
AABLUR_HOST_DEVICE constexpr I modulo(std::common_type_t<I> a, std::common_type_t<I> b) {
  return a - floor_div<I>(a, b) * b;
}

// In integers of type I.
template <class I>
struct BasicAxis {
  I size = 1;  // of the input
  I taps = 1;
  I stride = 1;
  I before = 0, after = 0;  // padding of the pooled map; negative crops
  PaddingMode padding_mode = PaddingMode::zeros;
  I window = 1, window_padding = 0, window_dilation = 1;  // of the max

  // Size after the max over the window, at stride 1: what the blur reads.
  AABLUR_HOST_DEVICE constexpr I pooled() const { return size + 2 * window_padding - window_dilation * (window - 1); }
  AABLUR_HOST_DEVICE constexpr I out() const { return floor_div<I>(pooled() + before + after - taps, stride) + 1; }

  // Whether the window lies wholly outside of the map somewhere: a dilated one can step over a small map.
  AABLUR_HOST_DEVICE constexpr bool misses() const {
    if (window_padding == 0 || size >= window_dilation) return false;
    for (I i = 0; i < pooled(); ++i) {
      bool inside = false;
      for (I a = 0; a < window; ++a) {
        const I source = i - window_padding + a * window_dilation;
        inside = inside || (source >= 0 && source < size);
      }
      if (!inside) return true;
    }
    return false;
  }
};
using Axis = BasicAxis<int64_t>;

// Of a batch of maps: elements between neighbours along images, channels and the three axes.
template <class I>
struct BasicStrides {
  I image = 0, channel = 0, axis[3] = {};
};
using Strides = BasicStrides<int64_t>;

// Those of a dense map of `size`: the channel lies last in memory, or the width.
constexpr Strides dense_strides(int64_t channels, const int64_t (&size)[3], bool channels_last) {
  const int64_t pixel = channels_last ? channels : 1, volume = size[0] * size[1] * size[2];
  return {channels * volume, channels_last ? 1 : volume, {size[1] * size[2] * pixel, size[2] * pixel, pixel}};
}

}  // namespace aablur
