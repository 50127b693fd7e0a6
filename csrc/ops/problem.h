// The ops' arguments: axes from lists, maps and problems from tensors, and the tensors that the ops return.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "core/backend.h"

namespace aablur {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

inline Dtype dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Half: return Dtype::float16;
    case ScalarType::BFloat16: return Dtype::bfloat16;
    case ScalarType::Float: return Dtype::float32;
    case ScalarType::Double: return Dtype::float64;
    default: break;
  }
  STD_TORCH_CHECK(false, "aablur: x must be float16, bfloat16, float32 or float64");
  return Dtype::float32;
}

// A word among an op's arguments. Kernels take its handle, which torch leaves to them to delete: the std::string that
// TORCH_BOX would make of it is leaked by torch's header, up to 2.13.
class Word {
 public:
  explicit Word(StringHandle handle) : handle_(handle) {}
  Word(Word&&) = delete;
  ~Word() { torch_delete_string(handle_); }
  std::string read() const {
    size_t length = 0;
    const char* data = nullptr;
    TORCH_ERROR_CODE_CHECK(torch_string_length(handle_, &length));
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle_, &data));
    return {data, length};
  }

 private:
  StringHandle handle_;
};

// A word that an op returns: its characters. torch itself leaks a str of a stable library.
inline Ints characters(const char* word) {
  return {word, word + std::strlen(word)};
}

inline PaddingMode padding_mode_of(const std::string& name) {
  if (name == "zeros") return PaddingMode::zeros;
  if (name == "reflect") return PaddingMode::reflect;
  if (name == "replicate") return PaddingMode::replicate;
  if (name == "circular") return PaddingMode::circular;
  STD_TORCH_CHECK(false, "aablur: padding_mode must be zeros, reflect, replicate or circular, not ", name);
  return PaddingMode::zeros;
}

// Numbers of axes are bounded, so that no sum or product of them overflows.
constexpr int64_t largest = (int64_t(1) << 31) - 1, largest_size = int64_t(1) << 48;
inline bool within(int64_t low, int64_t value) {
  return low <= value && value <= largest;
}

// The product of sizes from 0 up: of no more than an int64 counts the bits and bytes of.
inline int64_t countable(std::initializer_list<int64_t> sizes) {
  constexpr int64_t most = int64_t(1) << 58;
  int64_t product = 1;
  bool empty = false;
  for (const int64_t size : sizes) {
    STD_TORCH_CHECK(size <= most / product, "aablur: the arguments ask for more than ", most, " numbers");
    product *= std::max<int64_t>(size, 1);
    empty = empty || size == 0;
  }
  return empty ? 0 : product;
}

// The op's arguments about its axes: the numbers of struct Axis, axis after axis; of a blur alone those up to the pads.
struct Geometry {
  int rank = 0;
  Axis axis[3];

  enum Numbers { of_blur = 4, of_max_blur = 7 };

  Geometry(Numbers numbers, const Ints& axes, StringHandle padding_mode) {
    const PaddingMode mode = padding_mode_of(Word(padding_mode).read());
    rank = int(axes.size() / numbers);
    STD_TORCH_CHECK(rank >= 1 && rank <= 3 && axes.size() == size_t(rank * numbers), "aablur: axes must have ",
                    int(numbers), " numbers for each of 1 to 3 axes, not ", axes.size());
    int64_t volume = 1;
    for (int i = 0; i < rank; ++i) {
      Axis& a = axis[3 - rank + i];
      const int64_t* number = axes.data() + i * numbers;
      a.padding_mode = mode;
      a.taps = *number++;
      a.stride = *number++;
      a.before = *number++;
      a.after = *number++;
      STD_TORCH_CHECK(
          within(1, a.taps) && within(1, a.stride) && within(-largest, a.before) && within(-largest, a.after),
          "aablur: taps and stride must be from 1, before and after from -", largest, " to ", largest);
      if (numbers == of_blur) continue;
      a.window = *number++;
      a.window_padding = *number++;
      a.window_dilation = *number++;
      STD_TORCH_CHECK(
          a.window >= 1 && within(1, a.window_dilation) && a.window_padding >= 0 && a.window_padding <= a.window / 2,
          "aablur: window and window_dilation must be positive, window_padding at most half the window");
      STD_TORCH_CHECK(a.window <= max_window_volume / volume, "aablur: window covers more than ", max_window_volume,
                      " positions");
      volume *= a.window;
    }
  }

  void set_size(const int64_t* size) {
    for (int i = 0; i < rank; ++i) {
      Axis& a = axis[3 - rank + i];
      a.size = size[i];
      STD_TORCH_CHECK(a.size >= 0 && a.size <= largest_size, "aablur: size must be from 0 to ", largest_size);
      STD_TORCH_CHECK(a.pooled() >= 1 && a.out() >= 1, "aablur: the output would be empty");
      STD_TORCH_CHECK(!a.misses(), "aablur: the dilated window steps over the map");
    }
  }
};

inline int32_t dtype_number(const Tensor& like) {
  int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  return dtype;
}

// A new tensor on the device of `like`.
inline Tensor empty(const Tensor& like, int64_t rank, const int64_t* sizes, const int64_t* strides, int32_t dtype) {
  int32_t device = 0, index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(rank, sizes, strides, dtype, device, index, &handle));
  return Tensor(handle);
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  int32_t devices[2] = {}, indices[2] = {};
  for (int i = 0; i < 2; ++i) {
    const Tensor& t = i ? b : a;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &devices[i]));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t.get(), &indices[i]));
  }
  return devices[0] == devices[1] && indices[0] == indices[1];
}

// A batch of maps: (images, channels, spatial axes), or unbatched without the first.
struct Map {
  int64_t images = 1, channels = 1, size[3] = {1, 1, 1};
  int rank = 0;
  bool batched = true, channels_last = false;

  Map(const Tensor& x, int rank_) : rank(rank_), batched(x.dim() == rank_ + 2) {
    STD_TORCH_CHECK(batched || x.dim() == rank + 1, "aablur: x must have ", rank + 1, " or ", rank + 2, " dimensions");
    images = batched ? x.size(0) : 1;
    channels = x.size(batched);
    for (int i = 0; i < rank; ++i) size[3 - rank + i] = x.size(batched + 1 + i);
    check();
  }
  void check() const { countable({images, channels, size[0], size[1], size[2]}); }
  int64_t positions() const { return size[0] * size[1] * size[2]; }
  bool empty() const { return images == 0 || channels == 0 || positions() == 0; }

  Tensor allocate(const Tensor& like) const {
    const Strides dense = dense_strides(channels, size, channels_last);
    int64_t sizes[5] = {images, channels}, strides[5] = {dense.image, dense.channel};
    std::copy(size + 3 - rank, size + 3, sizes + 2);
    std::copy(dense.axis + 3 - rank, dense.axis + 3, strides + 2);
    // An empty tensor's strides must be those that torch gives it.
    if (empty()) {
      int64_t stride = 1;
      for (int d = rank + 1; d >= 0; --d) strides[d] = stride, stride *= std::max<int64_t>(sizes[d], 1);
    }
    const int first = batched ? 0 : 1;
    return aablur::empty(like, rank + 2 - first, sizes + first, strides + first, dtype_number(like));
  }
  // Where x lies; 0 along what it lacks.
  Strides strides_of(const Tensor& x) const {
    Strides strides;
    strides.image = batched ? x.stride(0) : 0;
    strides.channel = x.stride(batched);
    for (int i = 0; i < rank; ++i) strides.axis[3 - rank + i] = x.stride(batched + 1 + i);
    return strides;
  }
  bool is_dense(const Strides& strides) const {
    const Strides dense = dense_strides(channels, size, channels_last);
    bool all = (images == 1 || strides.image == dense.image) && (channels == 1 || strides.channel == dense.channel);
    for (int i = 0; i < 3; ++i) all = all && (size[i] == 1 || strides.axis[i] == dense.axis[i]);
    return all;
  }
};

// torch's own choice: channels_last in, channels_last out.
inline bool prefers_channels_last(const Tensor& x, Map map) {
  if (map.rank < 2 || map.empty() || x.is_contiguous()) return false;
  map.channels_last = true;
  return map.is_dense(map.strides_of(x));
}

inline Map result_map(const Map& x, const Axis (&axis)[3], bool transposed) {
  Map out = x;
  for (int a = 0; a < 3; ++a) out.size[a] = transposed ? axis[a].size : axis[a].out();
  out.check();
  return out;
}

// The map of x; the axes are given its sizes.
inline Map map_of(const Tensor& x, Geometry& geometry) {
  Map map(x, geometry.rank);
  geometry.set_size(map.size + 3 - map.rank);
  map.channels_last = prefers_channels_last(x, map);
  return map;
}

// The map of an output's gradient; the axes are given x's sizes before.
inline Map gradient_map(const Tensor& grad, const Geometry& geometry, bool channels_last) {
  Map map(grad, geometry.rank);
  for (int a = 3 - geometry.rank; a < 3; ++a)
    STD_TORCH_CHECK(map.size[a] == geometry.axis[a].out(), "aablur: grad must have the output's size");
  map.channels_last = channels_last && geometry.rank > 1;
  return map;
}
inline Map gradient_map(const Tensor& grad, const Ints& size, Geometry& geometry, bool channels_last) {
  STD_TORCH_CHECK(int(size.size()) == geometry.rank, "aablur: size must have one entry an axis");
  geometry.set_size(size.data());
  return gradient_map(grad, geometry, channels_last);
}
inline Map gradient_map(const Tensor& grad, const Tensor& x, const Map& x_map, const Geometry& geometry) {
  STD_TORCH_CHECK(grad.scalar_type() == x.scalar_type() && same_device(grad, x),
                  "aablur: grad must have the dtype and device of x");
  const Map map = gradient_map(grad, geometry, x_map.channels_last);
  STD_TORCH_CHECK(map.images == x_map.images && map.channels == x_map.channels,
                  "aablur: grad must have the output's size");
  return map;
}

// Raises unless taps are what a kernel reads: (1 or channels, sum of sizes) accumulators beside x; or where there are
// none, and a binomial filter is so long that its outermost taps underflow.
inline void check_taps(const std::optional<Tensor>& taps, const Geometry& geometry, const Tensor& x, const Map& map) {
  constexpr int64_t largest_binomial = 1024;  // LARGEST_BINOMIAL of geometry.py
  int64_t total = 0;
  for (int a = 3 - geometry.rank; a < 3; ++a) {
    const int64_t size = geometry.axis[a].taps;
    total += size;
    STD_TORCH_CHECK(taps || size <= largest_binomial, "aablur: without taps, axes must have at most ", largest_binomial,
                    " taps, not ", size);
  }
  if (!taps) return;
  STD_TORCH_CHECK(same_device(*taps, x) && taps->dim() == 2 && taps->size(1) == total &&
                      (taps->size(0) == 1 || taps->size(0) == map.channels) && taps->is_contiguous(),
                  "aablur: taps must be a contiguous tensor (1 or channels, ", total, ") on the device of x");
  STD_TORCH_CHECK(
      taps->scalar_type() == (x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float),
      "aablur: taps must be float64 for float64 maps, else float32");
}

// The op's call, its filters checked. `map` is that of x or of the output's gradient.
inline Problem problem_of(const Tensor& x, const Geometry& geometry, const Map& map,
                          const std::optional<Tensor>& taps) {
  check_taps(taps, geometry, x, map);
  Problem problem;
  problem.dtype = dtype_of(x);
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(x.get(), &problem.device));
  problem.rank = geometry.rank;
  std::copy(geometry.axis, geometry.axis + 3, problem.shape.axis);
  problem.shape.images = map.images;
  problem.shape.channels = map.channels;
  problem.shape.channels_last = map.channels_last;
  if (!taps) return problem;
  problem.taps = taps->const_data_ptr();
  problem.tap_rows = taps->size(0);
  return problem;
}

// (images, planes an image, bytes a plane)
inline std::array<int64_t, 3> code_sizes(const Map& map, const Geometry& geometry) {
  const Packing packing(geometry.axis, map.channels_last, map.channels);
  return {map.images, map.channels_last ? 1 : map.channels, packing.plane_bytes};
}

inline Tensor allocate_codes(const Tensor& like, const Map& map, const Geometry& geometry) {
  const auto sizes = code_sizes(map, geometry);
  const int64_t strides[3] = {sizes[1] * sizes[2], sizes[2], 1};
  return empty(like, 3, sizes.data(), strides, aoti_torch_dtype_uint8());
}

// Where the maxima are known from, x or codes: checked, with the map of x. `result` is x's map, as grad implies it.
inline std::optional<Map> maxima_map(const Tensor& grad, const std::optional<Tensor>& x,
                                     const std::optional<Tensor>& codes, const Geometry& geometry, const Map& result) {
  STD_TORCH_CHECK(x.has_value() != codes.has_value(), "aablur: give either x or codes");
  if (x) {
    Map map(*x, geometry.rank);
    STD_TORCH_CHECK(map.images == result.images && map.channels == result.channels && same_device(*x, grad) &&
                        x->scalar_type() == grad.scalar_type() && std::equal(map.size, map.size + 3, result.size),
                    "aablur: x must have the size, dtype and device that grad implies");
    map.channels_last = result.channels_last;
    return map;
  }
  const auto sizes = code_sizes(result, geometry);
  STD_TORCH_CHECK(same_device(*codes, grad) && codes->scalar_type() == ScalarType::Byte && codes->is_contiguous() &&
                      codes->dim() == 3 && codes->size(0) == sizes[0] && codes->size(1) == sizes[1] &&
                      codes->size(2) == sizes[2],
                  "aablur: codes must be those that max_blur_pool_codes returned");
  return std::nullopt;
}

}  // namespace aablur
