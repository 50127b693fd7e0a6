// Arguments -> kernels, for one element type. `launch` is the device's, or a loop on the host.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "gpu_tiles.h"

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

// Where maps lie for tiles of pixels of V elements: the source's grid, and the dense result. False where they do not
// fit.
inline bool lay_out(Tiling& tiling, const Shape& shape, const Grid& source, const int64_t (&source_size)[2],
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

inline bool aligned(const void* p, std::initializer_list<int64_t> strides, int64_t elements, int64_t bytes) {
  bool all = reinterpret_cast<uintptr_t>(p) % (elements * bytes) == 0;
  for (int64_t stride : strides) all = all && stride % elements == 0;
  return all;
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
  auto with_stride = [&](auto taps) {
    if (axis.stride == 1) return f(taps, std::integral_constant<int, 1>{});
    if (axis.stride == 2) return f(taps, std::integral_constant<int, 2>{});
    return false;
  };
  switch (axis.taps) {
    case 2: return with_stride(std::integral_constant<int, 2>{});
    case 3: return with_stride(std::integral_constant<int, 3>{});
    case 4: return with_stride(std::integral_constant<int, 4>{});
    case 5: return with_stride(std::integral_constant<int, 5>{});
    default: return false;
  }
}

// Queues a tile kernel; launches of less than 2**31 threads.
template <class K, class T>
const char* launch_tiles(Tiling tiling, const T* x, T* out, int64_t images, void* stream) {
  const int64_t step = ((int64_t(1) << 31) - 1) / tiling.threads(1);
  for (int64_t first = 0; first < images; first += step) {
    const K kernel{tiling, x + first * tiling.source_image, out + first * tiling.result_image};
    if (const char* error = launch(kernel, tiling.threads(std::min(step, images - first)), stream)) return error;
  }
  return nullptr;
}

// The blur or its adjoint by tiles of the best layout; false where only the general kernel serves.
template <bool Backward, class T>
bool blur_by_tiles(const BlurArguments& arguments, void* stream, const char*& error) {
  const Shape& shape = arguments.shape;
  const Axis &height = shape.axis[1], &width = shape.axis[2];
  if (!is_tileable(shape, arguments.filters) || height.window != 1 || width.window != 1) return false;
  const int64_t larger[2] = {height.size, width.size}, smaller[2] = {height.out(), width.out()};
  const int64_t (&source)[2] = Backward ? smaller : larger, (&result)[2] = Backward ? larger : smaller;
  const T* x = static_cast<const T*>(arguments.x);
  T* out = static_cast<T*>(arguments.out);
  constexpr int vector = 16 / sizeof(T);
  return with_taps(width, [&](auto taps, auto strides) {
    constexpr int K = decltype(taps)::value, S = decltype(strides)::value;
    auto queue = [&](auto of_kernel) {
      using Kernel = typename decltype(of_kernel)::type;
      if constexpr (Backward) {
        if (!Kernel::Down::reaches(height) || !Kernel::Along::reaches(width)) return false;
      }
      Tiling tiling;
      if (!lay_out(tiling, shape, arguments.x_grid, source, result, Kernel::lanes, Kernel::result_rows,
                   Kernel::result_columns))
        return false;
      tiling.taps = static_cast<const float*>(arguments.filters.taps);
      error = launch_tiles<Kernel>(tiling, x, out, shape.images, stream);
      return true;
    };
    const Grid& grid = arguments.x_grid;
    // Pixels of channels; rows of single elements that lie aligned; single elements.
    constexpr int wide_result = Backward ? vector : vector / S, wide_source = Backward ? vector / S : vector;
    const bool pixels = shape.channels_last && shape.channels % vector == 0 &&
                        aligned(x, {grid.image, grid.axis[1], grid.axis[2]}, vector, sizeof(T));
    const bool rows = !shape.channels_last && grid.axis[2] == 1 && larger[1] % vector == 0 &&
                      smaller[1] * S == larger[1] &&
                      aligned(x, {grid.image, grid.channel, grid.axis[1]}, wide_source, sizeof(T));
    if constexpr (Backward) {
      if (pixels) return queue(Type<BlurBackwardTile<T, vector, K, S, 2, 2, false>>{});
      if (rows) return queue(Type<BlurBackwardTile<T, 1, K, S, wide_result, 4, true>>{});
      return queue(Type<BlurBackwardTile<T, 1, K, S, 2, 4, false>>{});
    } else {
      if (pixels) return queue(Type<BlurTile<T, vector, K, S, 2, 4, false>>{});
      if (rows) return queue(Type<BlurTile<T, 1, K, S, wide_result, 4, true>>{});
      return queue(Type<BlurTile<T, 1, K, S, 2, 4, false>>{});
    }
  });
}

template <class T>
struct Dispatch {
  static const char* blur(const BlurArguments& arguments, void* stream) {
    const char* error = nullptr;
    if constexpr (!std::is_same_v<T, double>)
      if (blur_by_tiles<false, T>(arguments, stream, error)) return error;
    return launch(BlurPoint<T>{arguments}, stream);
  }
  static const char* blur_backward(const BlurArguments& arguments, void* stream) {
    const char* error = nullptr;
    if constexpr (!std::is_same_v<T, double>)
      if (blur_by_tiles<true, T>(arguments, stream, error)) return error;
    return launch(BlurBackwardPoint<T>{arguments}, stream);
  }
  static const char* max_blur(const BlurArguments& arguments, void* stream) {
    if (arguments.codes.data)
      if (const char* error = launch(CodesPoint<T>{arguments}, stream)) return error;
    return launch(BlurPoint<T>{arguments}, stream);
  }
  static const char* max_blur_backward(const MaxBackwardArguments& arguments, void* stream) {
    return launch(MaxBackwardPoint<T>{arguments}, stream);
  }
  static const char* taps_gradient(const TapsArguments& arguments, void* stream) {
    if (const char* error = launch(TapsShare<T>{arguments}, stream)) return error;
    return launch(TapsSum<T>{arguments}, stream);
  }
  static constexpr Kernels kernels{blur, blur_backward, max_blur, max_blur_backward, taps_gradient};
};

}  // namespace aablur::gpu
