// Arguments -> kernels, for one element type. `launch` is the device's, or a loop on the host.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "core/static_switch.h"
#include "gpu/register_tiles.h"
#include "gpu/smem_dispatch.h"
#include "gpu/taps_gradient.h"

namespace aablur::gpu {

// Runs kernel(0) ... kernel(count - 1) in any order; returns why it could not, or null.
template <class K>
const char* launch(const K& kernel, int64_t count, void* stream);

template <class K>
struct Type {
  using type = K;
};

template <class K>
const char* launch(const K& kernel, void* stream) {
  return launch(kernel, kernel.count(), stream);
}

// ---- which tile kernel -----------------------------------------------------------------------------

// Where maps lie for tiles of pixels of V elements: the source by its strides, the result dense. False where they do
// not fit.
inline bool lay_out(Tiling& tiling, const Shape& shape, const Strides& source, const int64_t (&source_size)[2],
                    const int64_t (&result_size)[2], int lanes, int64_t rows, int64_t columns) {
  constexpr int64_t most = (int64_t(1) << 31) - 1;
  const int64_t channels = shape.channels, pixel = shape.channels_last ? channels : 1;
  if (shape.channels_last && source.channel != 1 && channels > 1) return false;
  for (int64_t stride : {source.axis[1], source.axis[2]})
    if (stride < 0 || stride > most) return false;
  const int64_t source_end = source_size[0] * source.axis[1] + source_size[1] * source.axis[2] + channels;
  const int64_t result_end = (result_size[0] + rows) * (result_size[1] + columns) * pixel;
  if (source_end > most || result_end > most || channels > most || shape.images > most) return false;
  tiling.height = shape.axis[1];
  tiling.width = shape.axis[2];
  tiling.source_image = source.image;
  tiling.source_plane = shape.channels_last ? 0 : source.channel;
  tiling.source_row = int(source.axis[1]);
  tiling.source_pixel = int(source.axis[2]);
  tiling.result_image = channels * result_size[0] * result_size[1];
  tiling.result_plane = shape.channels_last ? 0 : result_size[0] * result_size[1];
  tiling.result_row = int(result_size[1] * pixel);
  tiling.result_pixel = int(pixel);
  tiling.source_height = int(source_size[0]);
  tiling.source_width = int(source_size[1]);
  tiling.result_height = int(result_size[0]);
  tiling.result_width = int(result_size[1]);
  tiling.lanes = Divisor(uint32_t(shape.channels_last ? channels / lanes : 1));
  tiling.planes = Divisor(uint32_t(shape.channels_last ? 1 : channels));
  tiling.rows = Divisor(uint32_t(ceil_div(result_size[0], rows)));
  tiling.columns = Divisor(uint32_t(ceil_div(result_size[1], columns)));
  return tiling.threads(1) <= most;
}

// Two alike axes with "same" padding before, and filters that all channels share.
inline bool is_tileable(const Shape& shape, const Filters& filters) {
  const Axis &depth = shape.axis[0], &height = shape.axis[1], &width = shape.axis[2];
  const bool flat = depth.size == 1 && depth.taps == 1 && depth.stride == 1 && depth.before == 0 && depth.after == 0 &&
                    depth.window == 1 && depth.window_padding == 0 && filters.offset[0] < 0;
  const bool same = height.taps == width.taps && height.stride == width.stride &&
                    height.before == (height.taps - 1) / 2 && width.before == height.before;
  return flat && same && !filters.per_channel;
}

// Calls f with taps and stride as constants, where tiles are compiled for them; false where not.
template <class F>
bool with_taps(const Axis& axis, F&& f) {
  return static_switch<2, 3, 4, 5, 0>(axis.taps, [&](auto taps) {
    return static_switch<1, 2, 0>(axis.stride, [&](auto stride) {
      if constexpr (taps == 0 || stride == 0) return false;
      else return f(taps, stride);
    });
  });
}

// Queues a tile kernel; launches of less than 2**31 threads.
template <class K, class T>
const char* launch_tiles(const Tiling& tiling, const T* x, T* out, int64_t images, void* stream) {
  const int64_t step = ((int64_t(1) << 31) - 1) / tiling.threads(1);
  for (int64_t first = 0; first < images; first += step) {
    Tiling part = tiling;
    if (part.codes.data) part.codes.data += first * tiling.planes_an_image * tiling.codes.packing.plane_bytes;
    const K kernel{part, x + first * tiling.source_image, out + first * tiling.result_image};
    if (const char* error = launch(kernel, tiling.threads(std::min(step, images - first)), stream)) return error;
  }
  return nullptr;
}

// Whether the channels of a pixel lie side by side and aligned in whole vectors of `vector` elements.
template <class T>
bool has_whole_pixels(const Shape& shape, const void* source, const Strides& strides, int64_t vector) {
  bool all = shape.channels_last && shape.channels % vector == 0 &&
             reinterpret_cast<uintptr_t>(source) % (vector * sizeof(T)) == 0;
  for (int64_t s : {strides.image, strides.axis[1], strides.axis[2]}) all = all && s % vector == 0;
  return all;
}

// Lays the maps out for Kernel and queues it; false where they do not fit it.
template <class Kernel, class T>
bool queue_tiles(const Shape& shape, const Filters& filters, const Codes& codes, const T* x, const Strides& strides,
                 T* out, bool backward, void* stream, const char*& error) {
  const Axis &height = shape.axis[1], &width = shape.axis[2];
  const int64_t larger[2] = {height.size, width.size}, smaller[2] = {height.out(), width.out()};
  Tiling tiling;
  if (!lay_out(tiling, shape, strides, backward ? smaller : larger, backward ? larger : smaller, Kernel::V,
               Kernel::Config::rows, Kernel::Config::columns))
    return false;
  tiling.taps = static_cast<const float*>(filters.taps);
  tiling.codes = codes;
  tiling.planes_an_image = uint32_t(shape.channels_last ? 1 : shape.channels);
  tiling.code_pixel = int(shape.channels_last ? codes.packing.row_bytes : 0);
  tiling.code_row = int(codes.packing.row_bytes * (shape.channels_last ? width.pooled() : 1));
  error = launch_tiles<Kernel>(tiling, x, out, shape.images, stream);
  return true;
}

// The blur or its adjoint by tiles of the best layout; false where only the general kernel serves.
template <bool Backward, class T>
bool blur_by_tiles(const BlurArguments& arguments, void* stream, const char*& error) {
  const Shape& shape = arguments.shape;
  const Axis &height = shape.axis[1], &width = shape.axis[2];
  if (!is_tileable(shape, arguments.filters) || height.window != 1 || width.window != 1) return false;
  return with_taps(width, [&](auto taps, auto strides) {
    constexpr int K = decltype(taps)::value, S = decltype(strides)::value;
    auto queue = [&](auto of_kernel) {
      using Kernel = typename decltype(of_kernel)::type;
      if constexpr (Backward) {
        if (!Kernel::Part::Down::reaches(height) || !Kernel::Part::Along::reaches(width)) return false;
      }
      return queue_tiles<Kernel>(shape, arguments.filters, {}, static_cast<const T*>(arguments.x), arguments.x_strides,
                                 static_cast<T*>(arguments.out), Backward, stream, error);
    };
    const bool pixels = has_whole_pixels<T>(shape, arguments.x, arguments.x_strides, widest<T>);
    if constexpr (Backward)
      return pixels ? queue(Type<BlurBackwardTile<T, K, S, BlurBackwardNhwc<T>, 1>>{})
                    : queue(Type<BlurBackwardTile<T, K, S, BlurBackwardElements, 1>>{});
    else return pixels ? queue(Type<BlurTile<T, K, S, BlurNhwc<T>>>{}) : queue(Type<BlurTile<T, K, S, BlurElements>>{});
  });
}

// The blur or its adjoint of dense planes through shared memory; false where not.
template <bool Backward, class T>
bool blur_by_planes(const BlurArguments& arguments, void* stream, const char*& error) {
  const Shape& shape = arguments.shape;
  const Axis &height = shape.axis[1], &width = shape.axis[2];
  if (!is_tileable(shape, arguments.filters) || height.window != 1 || width.window != 1) return false;
  return with_taps(width, [&](auto taps, auto strides) {
    constexpr int K = decltype(taps)::value, S = decltype(strides)::value;
    using Kernel = std::conditional_t<Backward, BlurBackwardPlanes<T, K, S>, BlurPlanes<T, K, S>>;
    return queue_planes<Kernel>(shape, arguments.filters, {}, static_cast<const T*>(arguments.x), arguments.x_strides,
                                static_cast<T*>(arguments.out), Backward, stream, error);
  });
}

// Calls f with taps and window as constants, for stride 2; false where no tiles are compiled for them.
template <class F>
bool with_window(const Shape& shape, F&& f) {
  const Axis &height = shape.axis[1], &width = shape.axis[2];
  const bool plain = height.window == width.window && height.window_padding == 0 && width.window_padding == 0 &&
                     height.window_dilation == 1 && width.window_dilation == 1 && width.stride == 2;
  if (!plain) return false;
  return static_switch<3, 4, 0>(width.taps, [&](auto taps) {
    return static_switch<2, 3, 0>(width.window, [&](auto window) {
      if constexpr (taps == 0 || window == 0) return false;
      else return f(taps, window);
    });
  });
}

// Max-blur by tiles. Single channels share bytes of codes, so that only the general kernel makes those.
template <class T>
bool max_blur_by_tiles(const BlurArguments& arguments, void* stream, const char*& error) {
  const Shape& shape = arguments.shape;
  const Axis &height = shape.axis[1], &width = shape.axis[2];
  const bool owned = 2 * height.out() >= height.pooled() && 2 * width.out() >= width.pooled();
  if (!is_tileable(shape, arguments.filters) || !owned) return false;
  return with_window(shape, [&](auto taps, auto windows) {
    constexpr int K = decltype(taps)::value, W = decltype(windows)::value;
    const bool pixels = has_whole_pixels<T>(shape, arguments.x, arguments.x_strides, MaxNhwc::vector);
    auto queue = [&](auto of_kernel, const Codes& codes) {
      using Kernel = typename decltype(of_kernel)::type;
      return queue_tiles<Kernel>(shape, arguments.filters, codes, static_cast<const T*>(arguments.x),
                                 arguments.x_strides, static_cast<T*>(arguments.out), false, stream, error);
    };
    auto queue_any = [&](auto with_codes, const Codes& codes) {
      constexpr bool C = decltype(with_codes)::value;
      return pixels ? queue(Type<MaxBlurTile<T, K, 2, MaxNhwc, W, C>>{}, codes)
                    : queue(Type<MaxBlurTile<T, K, 2, MaxElements, W, C>>{}, codes);
    };
    if (arguments.codes.data && (pixels || !shape.channels_last)) return queue_any(std::true_type{}, arguments.codes);
    if (!queue_any(std::false_type{}, {})) return false;
    if (arguments.codes.data && !error) error = launch(CodesPoint<T>{arguments}, stream);
    return true;
  });
}

// Max-blur of dense planes through shared memory; false where not.
template <class T>
bool max_blur_by_planes(const BlurArguments& arguments, void* stream, const char*& error) {
  const Shape& shape = arguments.shape;
  if (!is_tileable(shape, arguments.filters)) return false;
  return with_window(shape, [&](auto taps, auto windows) {
    constexpr int K = decltype(taps)::value, W = decltype(windows)::value;
    auto queue = [&](auto of_kernel) {
      using Kernel = typename decltype(of_kernel)::type;
      return queue_planes<Kernel>(shape, arguments.filters, arguments.codes, static_cast<const T*>(arguments.x),
                                  arguments.x_strides, static_cast<T*>(arguments.out), false, stream, error);
    };
    return arguments.codes.data ? queue(Type<MaxBlurPlanes<T, K, W, true>>{})
                                : queue(Type<MaxBlurPlanes<T, K, W, false>>{});
  });
}

template <class T>
bool max_blur_backward_by_planes(const MaxBackwardArguments& arguments, void* stream, const char*& error) {
  const Shape& shape = arguments.shape;
  if (!is_tileable(shape, arguments.filters)) return false;
  return with_window(shape, [&](auto taps, auto windows) {
    using Kernel = MaxBackwardPlanes<T, decltype(taps)::value, decltype(windows)::value>;
    return queue_planes<Kernel>(shape, arguments.filters, arguments.codes, static_cast<const T*>(arguments.grad),
                                arguments.grad_strides, static_cast<T*>(arguments.out), true, stream, error);
  });
}

// The adjoint of max-blur by tiles.
template <class T>
bool max_blur_backward_by_tiles(const MaxBackwardArguments& arguments, void* stream, const char*& error) {
  const Shape& shape = arguments.shape;
  const Axis &height = shape.axis[1], &width = shape.axis[2];
  if (!is_tileable(shape, arguments.filters)) return false;
  return with_window(shape, [&](auto taps, auto windows) {
    constexpr int K = decltype(taps)::value, W = decltype(windows)::value;
    const bool pixels = has_whole_pixels<T>(shape, arguments.grad, arguments.grad_strides, MaxBackwardNhwc::vector);
    auto queue = [&](auto of_kernel) {
      using Kernel = typename decltype(of_kernel)::type;
      return Kernel::Part::Down::reaches(height) && Kernel::Part::Along::reaches(width) &&
             queue_tiles<Kernel>(shape, arguments.filters, arguments.codes, static_cast<const T*>(arguments.grad),
                                 arguments.grad_strides, static_cast<T*>(arguments.out), true, stream, error);
    };
    return pixels ? queue(Type<BlurBackwardTile<T, K, 2, MaxBackwardNhwc, W>>{})
                  : queue(Type<BlurBackwardTile<T, K, 2, MaxBackwardElements, W>>{});
  });
}

template <class T>
struct Dispatch {
  static const char* blur(const BlurArguments& arguments, void* stream) {
    const char* error = nullptr;
    if constexpr (!std::is_same_v<T, double>)
      if (blur_by_planes<false, T>(arguments, stream, error) || blur_by_tiles<false, T>(arguments, stream, error))
        return error;
    return launch(BlurPoint<T>{arguments}, stream);
  }
  static const char* blur_backward(const BlurArguments& arguments, void* stream) {
    const char* error = nullptr;
    if constexpr (!std::is_same_v<T, double>)
      if (blur_by_planes<true, T>(arguments, stream, error) || blur_by_tiles<true, T>(arguments, stream, error))
        return error;
    return launch(BlurBackwardPoint<T>{arguments}, stream);
  }
  static const char* max_blur(const BlurArguments& arguments, void* stream) {
    const char* error = nullptr;
    if constexpr (!std::is_same_v<T, double>)
      if (max_blur_by_planes<T>(arguments, stream, error) || max_blur_by_tiles<T>(arguments, stream, error))
        return error;
    if (arguments.codes.data)
      if ((error = launch(CodesPoint<T>{arguments}, stream))) return error;
    return launch(BlurPoint<T>{arguments}, stream);
  }
  static const char* max_blur_backward(const MaxBackwardArguments& arguments, void* stream) {
    const char* error = nullptr;
    if constexpr (!std::is_same_v<T, double>)
      if (max_blur_backward_by_planes<T>(arguments, stream, error) ||
          max_blur_backward_by_tiles<T>(arguments, stream, error))
        return error;
    return launch(MaxBackwardPoint<T>{arguments}, stream);
  }
  static const char* taps_gradient(const TapsArguments& arguments, void* stream) {
    const TapsGradientSplit split(arguments.shape, arguments.filters);
    if (split.taps) return from_partial_sums(arguments, split, stream);
    if (const char* error = launch(TapsShare<T>{arguments}, stream)) return error;
    return launch(TapsSum<T>{arguments}, stream);
  }
  static const char* from_partial_sums(const TapsArguments& arguments, const TapsGradientSplit& split, void* stream) {
    const char* error = static_switch<2, 3, 4, 5>(
        split.taps, [&](auto taps) { return launch(TapsGradientPartials<T, taps>(arguments, split), stream); });
    if (error || (error = launch(TapsGradientPieces{split, arguments.workspace}, stream))) return error;
    return launch(TapsGradientTotal<T>{arguments, split}, stream);
  }
  static constexpr Kernels kernels{blur, blur_backward, max_blur, max_blur_backward, taps_gradient};
};

// `float32_kernels`, say, of element type float.
#define AABLUR_DEFINE_KERNELS(element, type) AABLUR_DEFINE_KERNELS_(element, type)
#define AABLUR_DEFINE_KERNELS_(element, type) const Kernels element##_kernels = Dispatch<type>::kernels;

}  // namespace aablur::gpu
