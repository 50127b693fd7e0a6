// Arguments -> kernels, for one element type. `launch` is the device's, or a loop on the host.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "core/static_switch.h"
#include "gpu/generic_max.h"
#include "gpu/generic_taps.h"
#include "gpu/max_planes.h"
#include "gpu/taps_gradient.h"

namespace aablur::gpu {

// Runs kernel(0) ... kernel(count - 1) in any order; returns why it could not, or null.
template <class K>
const char* launch(const K& kernel, int64_t count, void* stream);

template <class K>
struct Type {
  using type = K;
};

template <int N>
using Constant = std::integral_constant<int, N>;

template <class K>
const char* launch(const K& kernel, void* stream) {
  return launch(kernel, kernel.count(), stream);
}

// The same of a kernel that prepares shared memory, for less than 2**31 threads.
template <class K>
const char* launch_prepared(const K& kernel, int64_t count, void* stream);

// Runs kernel.run(shared memory, block) for blocks 0 ... blocks - 1.
template <class K>
const char* launch_block_kernel(const K& kernel, int64_t blocks, int64_t shared_bytes, void* stream);

// Of the current device.
inline int64_t multiprocessors();

// ---- bands -----------------------------------------------------------------------------------------

// Whether vectors of `vector` channels lie aligned; single elements do wherever they lie.
template <class T>
bool has_vectors(const Shape& shape, const void* x, const Strides& strides, int64_t vector) {
  if (vector == 1) return true;
  const int64_t bytes = vector * int64_t(sizeof(T));
  bool all = reinterpret_cast<uintptr_t>(x) % uintptr_t(bytes) == 0;
  for (int64_t s : {shape.channels, strides.image, strides.axis[1], strides.axis[2]})
    all = all && s * int64_t(sizeof(T)) % bytes == 0;
  return all && shape.channels_last && (shape.channels == 1 || strides.channel == 1);
}

// What a kernel reads and writes: the result is dense.
struct Maps {
  const void* x;
  const Strides& strides;
  void* out;
  const Codes& codes;
};

// Lays out a kernel of BandTiles and queues it, as many images at a time as 32 bits reach; false where one is too
// large, or has no such vectors.
template <class Kernel>
bool queue_tiles(Kernel kernel, const Shape& shape, const Maps& maps, bool backward, void* stream, const char*& error) {
  constexpr int64_t bytes = sizeof(typename Kernel::Element), reach = (int64_t(1) << 32) - 1,
                    most = (int64_t(1) << 31) - 1;
  const Strides& strides = maps.strides;
  if (kernel.taps_row > 0 && !Kernel::has_filters) return false;
  if (!has_vectors<typename Kernel::Element>(shape, maps.x, strides, Kernel::V)) return false;
  const Axis &height = shape.axis[1], &width = shape.axis[2];
  const int64_t channels = shape.channels, pixel = shape.channels_last ? channels : 1;
  const int64_t larger[2] = {height.size, width.size}, smaller[2] = {height.out(), width.out()};
  const auto &x_size = backward ? smaller : larger, &out_size = backward ? larger : smaller;
  const Strides out = dense_strides(channels, {1, out_size[0], out_size[1]}, shape.channels_last);
  int64_t x_end = bytes, out_end = channels * out_size[0] * out_size[1] * bytes;  // of an image
  for (int64_t s : {strides.image, strides.channel, strides.axis[1], strides.axis[2]})
    if (s < 0 || s * bytes > reach) return false;
  x_end += ((channels - 1) * strides.channel + (x_size[0] - 1) * strides.axis[1] + (x_size[1] - 1) * strides.axis[2]) *
           bytes;
  if (x_end > reach || out_end > reach || channels > most) return false;
  kernel.x_image = uint32_t(strides.image * bytes), kernel.x_row = uint32_t(strides.axis[1] * bytes);
  kernel.x_plane = uint32_t(shape.channels_last ? 0 : strides.channel * bytes);
  kernel.x_lane = uint32_t(Kernel::V * (Kernel::V == 1 ? strides.channel : 1) * bytes);
  kernel.x_pixel = uint32_t(strides.axis[2] * bytes);
  kernel.out_image = uint32_t(out_end), kernel.out_row = uint32_t(out_size[1] * pixel * bytes);
  kernel.out_plane = uint32_t(shape.channels_last ? 0 : out.channel * bytes);
  kernel.out_pixel = uint32_t(pixel * bytes);
  kernel.divide(shape);
  const int64_t lanes = shape.channels_last ? channels / Kernel::V : 1, planes = shape.channels_last ? 1 : channels;
  const int64_t columns = ceil_div(kernel.column_groups, Kernel::own), groups = kernel.row_groups;
  kernel.segment = int(segment_of(groups, shape.images * planes * columns * lanes, multiprocessors()));
  const int64_t segments = ceil_div(groups, kernel.segment), threads = planes * segments * columns * lanes;
  if (threads > most) return false;
  kernel.lanes = Divisor(uint32_t(lanes)), kernel.columns = Divisor(uint32_t(columns));
  kernel.segments = Divisor(uint32_t(segments)), kernel.planes = Divisor(uint32_t(planes));
  int64_t step = std::min({most / threads, reach / out_end, shape.images});
  if (strides.image > 0) step = std::min(step, (reach - x_end) / (strides.image * bytes) + 1);
  if constexpr (Kernel::has_codes) {
    const Packing& packing = maps.codes.packing;
    if (packing.plane_bytes > reach) return false;
    step = std::min(step, reach / packing.plane_bytes);
    kernel.codes = {maps.codes.data, uint32_t(packing.plane_bytes), uint32_t(packing.row_bytes * width.pooled()),
                    uint32_t(packing.row_bytes)};
  }
  for (int64_t first = 0; first < shape.images && !error; first += step) {
    kernel.x = static_cast<const char*>(maps.x) + first * strides.image * bytes;
    kernel.out = static_cast<char*>(maps.out) + first * out_end;
    if constexpr (Kernel::has_codes) kernel.codes.data = maps.codes.data + first * maps.codes.packing.plane_bytes;
    error = launch_prepared(kernel, std::min(step, shape.images - first) * threads, stream);
  }
  return true;
}

// Whether maps of this size lie plane after plane.
inline bool are_planes(const Shape& shape, const Strides& strides, int64_t height, int64_t width) {
  auto follows = [](int64_t size, int64_t stride, int64_t elements) { return size == 1 || stride == elements; };
  return !shape.channels_last && follows(width, strides.axis[2], 1) && follows(height, strides.axis[1], width) &&
         follows(shape.channels, strides.channel, height * width) &&
         follows(shape.images, strides.image, shape.channels * height * width);
}

// Cuts dense planes for a kernel of PlaneBands and queues it; false where they do not fit shared memory.
template <class Kernel>
bool queue_planes(Kernel kernel, const Shape& shape, const Maps& maps, bool backward, void* stream,
                  const char*& error) {
  const Axis &height = shape.axis[1], &width = shape.axis[2];
  int64_t shared_bytes = 0;
  if (!are_planes(shape, maps.strides, backward ? height.out() : height.size, backward ? width.out() : width.size) ||
      !kernel.divide(shape, shape.images * shape.channels, shared_bytes))
    return false;
  kernel.channels = Divisor(uint32_t(shape.channels));
  kernel.x = static_cast<decltype(kernel.x)>(maps.x), kernel.out = static_cast<decltype(kernel.out)>(maps.out);
  if constexpr (Kernel::has_codes) kernel.codes = maps.codes;
  kernel.align();
  error = launch_block_kernel(kernel, kernel.blocks(), shared_bytes, stream);
  return true;
}

// The bands of both axes of maps without depth; false where only the generic kernel serves.
inline bool make_bands(const Shape& shape, const Filters& filters, bool backward, Band& rows, Band& columns,
                       bool& more) {
  const Axis &depth = shape.axis[0], &height = shape.axis[1], &width = shape.axis[2];
  const bool flat = depth.size == 1 && depth.taps == 1 && depth.stride == 1 && depth.before == 0 && depth.after == 0 &&
                    depth.window == 1 && depth.window_padding == 0 && filters.offset[0] < 0;
  const bool is_line = filters.offset[1] < 0;
  if (!flat || width.taps > 7 || width.stride > 4 || shape.images == 0 || shape.channels == 0 ||
      (!is_line && (height.taps != width.taps || height.stride != width.stride)))
    return false;
  for (int further = 0; further <= int(width.taps % 2 == 0); ++further) {
    more = further;
    rows = Band::identity({int(width.taps), int(width.stride), backward, more});
    if (Band::make(width, backward, columns, more) && (is_line || Band::make(height, backward, rows, more)))
      return true;
  }
  return false;
}

template <class Kernel>
Kernel with_bands(const Band& rows, const Band& columns, const Filters& filters) {
  Kernel kernel;
  kernel.height = rows, kernel.width = columns;
  const float* all = static_cast<const float*>(filters.taps);
  if (all && filters.offset[1] >= 0) kernel.row_taps = all + filters.offset[1];
  if (all) kernel.column_taps = all + filters.offset[2];
  if (filters.per_channel) kernel.taps_row = int(filters.row);
  return kernel;
}

// The blur or its transpose of maps without depth; false where only the generic kernel serves.
template <bool Backward, class T>
bool blur_by_bands(const BlurArguments& arguments, void* stream, const char*& error) {
  const Shape& shape = arguments.shape;
  const Filters& filters = arguments.filters;
  const Axis& width = shape.axis[2];
  const Maps maps{arguments.x, arguments.x_strides, arguments.out, arguments.codes};
  Band rows, columns;
  bool more = false;
  if (!make_bands(shape, filters, Backward, rows, columns, more)) return false;
  return static_switch<2, 3, 4, 5, 6, 7, 0>(width.taps, [&](auto taps) {
    return static_switch<1, 2, 4, 0>(width.stride, [&](auto stride) {
      if constexpr (taps == 0 || stride == 0) {
        return false;
      } else {
        auto serve = [&](auto further) {
          using Form = Bands<taps, stride, Backward, further>;
          using Vector = BandVector<T, Form>;
          auto queue = [&](auto vector, auto per_channel) {
            using Kernel = BandTile<T, Form, decltype(vector)::value, decltype(per_channel)::value>;
            return queue_tiles(with_bands<Kernel>(rows, columns, filters), shape, maps, Backward, stream, error);
          };
          auto queue_whole_planes = [&] {
            using Planes = BandPlanes<T, Form>;
            return queue_planes(with_bands<Planes>(rows, columns, filters), shape, maps, Backward, stream, error);
          };
          [[maybe_unused]] constexpr std::bool_constant<true> per_channel;
          constexpr std::bool_constant<false> shared;
          if (!filters.per_channel)
            return queue(Constant<Vector::wide>{}, shared) || queue(Constant<Vector::half>{}, shared) ||
                   queue_whole_planes() || queue(Constant<1>{}, shared);
          if constexpr (stride == 4) return queue_whole_planes();
          else
            return queue(Constant<Vector::per_channel>{}, per_channel) || queue_whole_planes() ||
                   queue(Constant<1>{}, per_channel);
        };
        constexpr bool has_further = (taps == 2 || taps == 4) && stride <= 2;
        if constexpr (has_further)
          if (more) return serve(std::true_type{});
        return !more && serve(std::false_type{});
      }
    });
  });
}

// ---- with a max ------------------------------------------------------------------------------------

// Calls f with the form of the bands and the window as constants, where tiles are compiled for them; false where not.
template <bool Backward, class F>
bool with_max_bands(const Shape& shape, const Filters& filters, F&& f) {
  const Axis &height = shape.axis[1], &width = shape.axis[2];
  Band rows, columns;
  bool more = false;
  if (filters.offset[1] < 0 || height.window != width.window || height.window_dilation != 1 ||
      width.window_dilation != 1 || width.stride != 2 || height.misses() || width.misses() ||
      (width.window == 2 && (height.window_padding > 0 || width.window_padding > 0)) ||
      !make_bands(shape, filters, Backward, rows, columns, more) || rows.wraps || columns.wraps)
    return false;
  return static_switch<3, 4, 0>(width.taps, [&](auto taps) {
    return static_switch<2, 3, 0>(width.window, [&](auto window) {
      if constexpr (taps == 0 || window == 0) {
        return false;
      } else {
        if constexpr (taps == 4)
          if (more) return f(Type<Bands<taps, 2, Backward, true>>{}, window, rows, columns);
        return !more && f(Type<Bands<taps, 2, Backward>>{}, window, rows, columns);
      }
    });
  });
}

template <class T>
bool max_blur_by_bands(const BlurArguments& arguments, void* stream, const char*& error) {
  const Shape& shape = arguments.shape;
  const Filters& filters = arguments.filters;
  const Maps maps{arguments.x, arguments.x_strides, arguments.out, arguments.codes};
  // Of maxima that a crop leaves out nobody would write the codes.
  const bool crops = shape.axis[1].before < 0 || shape.axis[2].before < 0;
  if (crops && arguments.codes.data) return false;
  return with_max_bands<false>(shape, filters, [&](auto form, auto window, const Band& rows, const Band& columns) {
    using Form = typename decltype(form)::type;
    using Vector = MaxBandVector<T, Form, window>;
    auto queue = [&](auto vector, auto with_codes) {
      using Kernel = MaxBlurTile<T, Form, vector, window, with_codes>;
      return queue_tiles(with_bands<Kernel>(rows, columns, filters), shape, maps, false, stream, error);
    };
    auto queue_any = [&](auto with_codes) {
      using Kernel = MaxBlurPlanes<T, Form, window, with_codes>;
      return queue_planes(with_bands<Kernel>(rows, columns, filters), shape, maps, false, stream, error) ||
             queue(Constant<Vector::wide>{}, with_codes) || queue(Constant<Vector::half>{}, with_codes);
    };
    return arguments.codes.data ? queue_any(std::true_type{}) : queue_any(std::false_type{});
  });
}

template <class T>
bool max_blur_backward_by_bands(const MaxBackwardArguments& arguments, void* stream, const char*& error) {
  const Shape& shape = arguments.shape;
  const Filters& filters = arguments.filters;
  const Maps maps{arguments.grad, arguments.grad_strides, arguments.out, arguments.codes};
  return with_max_bands<true>(shape, filters, [&](auto form, auto window, const Band& rows, const Band& columns) {
    using Form = typename decltype(form)::type;
    using Planes = MaxBackwardPlanes<T, Form, window>;
    using Kernel = MaxBackwardTile<T, Form, MaxBandVector<T, Form, window>::backward, window>;
    return queue_planes(with_bands<Planes>(rows, columns, filters), shape, maps, true, stream, error) ||
           queue_tiles(with_bands<Kernel>(rows, columns, filters), shape, maps, true, stream, error);
  });
}

// ---- of any geometry ---------------------------------------------------------------------------------

// Calls f with a zero of the smallest type that the indices of generic kernels fit.
template <class F>
const char* with_index(const Shape& shape, std::initializer_list<Strides> read, F&& f) {
  return fits_in_32_bits(shape, read) ? f(int32_t(0)) : f(int64_t(0));
}

// Maps without depth as maps without height: generic kernels have columns along the first axis.
template <class Arguments>
Arguments turned(Arguments a, Strides Arguments::* strides) {
  const Axis& depth = a.shape.axis[0];
  const bool is_flat = depth.size == 1 && depth.taps == 1 && depth.stride == 1 && depth.before == 0 &&
                       depth.after == 0 && depth.window == 1 && depth.window_padding == 0;
  if (!is_flat) return a;
  std::swap(a.shape.axis[0], a.shape.axis[1]);
  std::swap(a.filters.offset[0], a.filters.offset[1]);
  std::swap((a.*strides).axis[0], (a.*strides).axis[1]);
  return a;
}

template <class From, class To>
const char* generic_blur(const GenericArguments& given, void* stream) {
  const GenericArguments arguments = turned(given, &GenericArguments::x_strides);
  if (fits_in_32_bits(arguments.shape, {arguments.x_strides})) {
    TableBlur<From, To> kernel(arguments);
    int64_t blocks = 0, shared_bytes = 0;
    if (kernel.divide(multiprocessors(), blocks, shared_bytes))
      return launch_block_kernel(kernel, blocks, shared_bytes, stream);
  }
  using Source = View<From, int64_t>;
  return launch(FarBlur<Source, To>(arguments, Source(arguments.x, arguments.x_strides)), stream);
}

// Has a long row of binomial taps made in a workspace, for kernels to read it as a given one.
template <class T, class Arguments>
const char* give_taps(Arguments& a, void* stream) {
  using A = accumulator<T>;
  if (a.filters.taps || a.filters.row <= Weights<T>::most) return nullptr;
  void* const row = a.workspace->allocate(a.filters.row * int64_t(sizeof(A)));
  a.filters.taps = row;
  return launch(BinomialRow<A>(a.shape, a.filters, row), stream);
}

// The same, and whether a window is small; 64 bits serve all windows.
template <class F>
const char* with_window(const Shape& shape, std::initializer_list<Strides> read, F&& f) {
  const int64_t volume = shape.axis[0].window * shape.axis[1].window * shape.axis[2].window;
  if (!fits_in_32_bits(shape, read)) return f(int64_t(0), std::false_type{});
  return volume <= Window<int32_t>::most ? f(int32_t(0), std::true_type{}) : f(int32_t(0), std::false_type{});
}

// How many images' maxima a workspace has at a time: some MB, which stay in the cache.
inline int64_t images_at_once(int64_t images, int64_t bytes) {
  constexpr int64_t enough = 32 << 20;
  return std::clamp<int64_t>(enough / std::max<int64_t>(bytes, 1), 1, std::max<int64_t>(images, 1));
}

// The shape of the blur of the maxima.
inline Shape without_windows(Shape shape) {
  for (Axis& axis : shape.axis) {
    axis.size = axis.pooled();
    axis.window = axis.window_dilation = 1, axis.window_padding = 0;
  }
  return shape;
}
inline Strides of_dense_maxima(const Shape& shape) {
  return dense_strides(shape.channels, of_maxima(shape).size, shape.channels_last);
}

// Bytes of an image: of its maxima in a workspace, elements of `maximum` bytes, and in memory.
struct BytesOfImage {
  int64_t maxima, codes, larger, smaller;

  BytesOfImage(Shape shape, const Codes& of, int64_t maximum, int64_t element) {
    shape.images = 1;
    maxima = elements(shape, of_maxima(shape)) * maximum;
    codes = of.packing.plane_bytes * (shape.channels_last ? 1 : shape.channels);
    larger = elements(shape, of_input(shape)) * element, smaller = elements(shape, of_output(shape)) * element;
  }
};
inline const void* further(const void* data, int64_t bytes) {
  return static_cast<const char*>(data) + bytes;
}
inline void* further(void* data, int64_t bytes) {
  return static_cast<char*>(data) + bytes;
}

template <class T>
const char* generic_max_blur(const BlurArguments& given, void* stream) {
  BlurArguments a = turned(given, &BlurArguments::x_strides);
  if (!a.codes.data && !fits_in_32_bits(a.shape, {a.x_strides}))  // what no output reads is not made
    return launch(FarBlur<MaximaOf<T>, T>({without_windows(a.shape), a.filters, false, nullptr, {}, a.out},
                                          MaximaOf<T>(a.shape, a.x, a.x_strides)),
                  stream);
  const BytesOfImage bytes(a.shape, a.codes, sizeof(T), sizeof(T));
  const int64_t images = a.shape.images, step = images_at_once(images, bytes.maxima);
  void* const maxima = a.workspace->allocate(step * bytes.maxima);
  const char* error = nullptr;
  for (int64_t first = 0; first < images && !error; first += step) {
    a.shape.images = std::min(step, images - first);
    error = with_window(a.shape, {a.x_strides}, [&](auto index, auto has_bits) {
      return launch(MaxPool<T, decltype(index), has_bits>(a, maxima), stream);
    });
    if (!error)
      error = generic_blur<T, T>({without_windows(a.shape), a.filters, false, maxima, of_dense_maxima(a.shape), a.out},
                                 stream);
    a.x = further(a.x, step * a.x_strides.image * int64_t(sizeof(T)));
    a.out = further(a.out, step * bytes.smaller);
    if (a.codes.data) a.codes.data += step * bytes.codes;
  }
  return error;
}

template <class T>
const char* generic_max_blur_backward(const MaxBackwardArguments& given, void* stream) {
  MaxBackwardArguments a = turned(given, &MaxBackwardArguments::grad_strides);
  const BytesOfImage bytes(a.shape, a.codes, sizeof(accumulator<T>), sizeof(T));
  const int64_t images = a.shape.images, step = images_at_once(images, bytes.maxima);
  void* const gradients = a.workspace->allocate(step * bytes.maxima);
  const char* error = nullptr;
  for (int64_t first = 0; first < images && !error; first += step) {
    a.shape.images = std::min(step, images - first);
    error = generic_blur<T, accumulator<T>>(
        {without_windows(a.shape), a.filters, true, a.grad, a.grad_strides, gradients}, stream);
    if (!error)
      error = with_window(a.shape, {of_dense_maxima(a.shape)}, [&](auto index, auto has_bits) {
        return launch(MaxUnpool<T, decltype(index), has_bits>(a, gradients), stream);
      });
    a.grad = further(a.grad, step * a.grad_strides.image * int64_t(sizeof(T)));
    a.out = further(a.out, step * bytes.larger);
    a.codes.data += step * bytes.codes;
  }
  return error;
}

// ---- all of them -----------------------------------------------------------------------------------

template <class T>
struct Dispatch {
  static const char* blur(BlurArguments arguments, void* stream) { return blur<false>(arguments, stream); }
  static const char* blur_backward(BlurArguments arguments, void* stream) { return blur<true>(arguments, stream); }
  template <bool Backward>
  static const char* blur(BlurArguments& a, void* stream) {
    const char* error = nullptr;
    if constexpr (!std::is_same_v<T, double>)
      if (blur_by_bands<Backward, T>(a, stream, error)) return error;
    error = give_taps<T>(a, stream);
    return error ? error : generic_blur<T, T>({a.shape, a.filters, Backward, a.x, a.x_strides, a.out}, stream);
  }
  static const char* max_blur(BlurArguments a, void* stream) {
    const char* error = nullptr;
    if constexpr (!std::is_same_v<T, double>)
      if (max_blur_by_bands<T>(a, stream, error)) return error;
    error = give_taps<T>(a, stream);
    return error ? error : generic_max_blur<T>(a, stream);
  }
  static const char* max_blur_backward(MaxBackwardArguments a, void* stream) {
    const char* error = nullptr;
    if constexpr (!std::is_same_v<T, double>)
      if (max_blur_backward_by_bands<T>(a, stream, error)) return error;
    error = give_taps<T>(a, stream);
    return error ? error : generic_max_blur_backward<T>(a, stream);
  }
  static const char* taps_gradient(TapsArguments arguments, void* stream) {
    const TapsGradientSplit split(arguments.shape, arguments.filters);
    if (split.taps) return from_partial_sums(arguments, split, stream);
    const char* error = with_index(arguments.shape, {arguments.grad_strides, arguments.x_strides}, [&](auto index) {
      return launch(TapsShare<T, decltype(index)>(arguments), stream);
    });
    return error ? error : launch(TapsSum<T>{arguments}, stream);
  }
  static const char* from_partial_sums(const TapsArguments& arguments, const TapsGradientSplit& split, void* stream) {
    return with_index(arguments.shape, {arguments.grad_strides, arguments.x_strides}, [&](auto index) {
      constexpr bool may_have_vectors = sizeof(T) <= 4 && sizeof(index) == 4;
      const bool has = may_have_vectors &&
                       has_vectors<T>(arguments.shape, arguments.x, arguments.x_strides, split.vector) &&
                       has_vectors<T>(arguments.shape, arguments.grad, arguments.grad_strides, split.vector);
      const int64_t vector = has ? split.vector : 1;
      const char* error = static_switch<2, 3, 4, 5>(split.taps, [&](auto taps) {
        return static_switch<4, 1>(vector, [&](auto lanes) {
          constexpr int some = may_have_vectors && taps <= 3 ? int(lanes) : 1;
          using Kernel = TapsGradientPartials<T, taps, some, decltype(index)>;
          return launch_block_kernel(Kernel(arguments, split), split.blocks(some), Kernel::shared_bytes, stream);
        });
      });
      const TapsGradientTotal<T> total(arguments, split, vector);
      return error ? error : launch_block_kernel(total, split.rows, total.shared_bytes(), stream);
    });
  }
  static constexpr Kernels kernels{blur, blur_backward, max_blur, max_blur_backward, taps_gradient};
};

// `float32_kernels`, say, of element type float.
#define AABLUR_DEFINE_KERNELS(element, type) AABLUR_DEFINE_KERNELS_(element, type)
#define AABLUR_DEFINE_KERNELS_(element, type) const Kernels element##_kernels = Dispatch<type>::kernels;

}  // namespace aablur::gpu
