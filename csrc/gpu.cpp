// The ops on a GPU: arguments to kernels on the current stream. With AABLUR_GPU_ON_HOST, for tests, the same ops of CPU
// tensors through the kernels' twin on the host.
#include <torch/csrc/stable/accelerator.h>

#if !defined(AABLUR_GPU_ON_HOST)
#include <dlfcn.h>
#endif

#include <optional>
#include <tuple>

#include "arguments.h"
#include "gpu_kernels.h"

namespace aablur {
namespace {

using gpu::Kernels;

const Kernels& kernels_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::float16: return gpu::float16_kernels;
    case Dtype::bfloat16: return gpu::bfloat16_kernels;
    case Dtype::float64: return gpu::float64_kernels;
    case Dtype::float32: break;
  }
  return gpu::float32_kernels;
}

// The device of a tensor made current, and its stream.
class Queue {
 public:
#if defined(AABLUR_GPU_ON_HOST)
  explicit Queue(const Tensor&) {}
  void* stream() const { return nullptr; }
#else
  explicit Queue(const Tensor& x) : index_(x.get_device_index()), guard_(index_) {}
  // The function lies in libtorch_cuda, which a CPU build of torch lacks: it is looked up, not linked.
  void* stream() const {
    using Function = AOTITorchError (*)(int32_t, void**);
    static const Function function = [] {
      void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_NOW);
      return reinterpret_cast<Function>(library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr);
    }();
    STD_TORCH_CHECK(function, "aablur: this build of torch has no CUDA");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(function(index_, &stream));
    return stream;
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

void check(const char* error) {
  STD_TORCH_CHECK(!error, "aablur: ", error ? error : "");
}

gpu::Shape shape_of(const Geometry& geometry, const Map& x) {
  gpu::Shape shape;
  std::copy(geometry.axis, geometry.axis + 3, shape.axis);
  shape.images = x.images;
  shape.channels = x.channels;
  shape.channels_last = x.channels_last;
  return shape;
}

// Any strides are read in place.
gpu::Grid grid_of(const Tensor& x, const Map& map) {
  gpu::Grid grid;
  grid.image = map.batched ? x.stride(0) : 0;
  grid.channel = x.stride(map.batched);
  for (int i = 0; i < map.rank; ++i) grid.axis[3 - map.rank + i] = x.stride(map.batched + 1 + i);
  return grid;
}

gpu::Filters filters_of(const Geometry& geometry, const Map& map, const Tensor& x, const std::optional<Tensor>& taps) {
  gpu::Filters filters;
  for (int a = 0; a < 3; ++a) {
    filters.offset[a] = a < 3 - geometry.rank ? -1 : filters.row;
    if (a >= 3 - geometry.rank) filters.row += geometry.axis[a].taps;
  }
  check_taps(taps, geometry, x, map);
  if (!taps) return filters;
  filters.taps = taps->const_data_ptr();
  filters.per_channel = taps->size(0) > 1;
  return filters;
}

gpu::Codes codes_of(const Geometry& geometry, const Map& map, uint8_t* data) {
  return {data, Packing(geometry.axis, map.channels_last, map.channels)};
}

Tensor blur_pool(const Tensor& x, const std::optional<Tensor>& taps, const Ints& axes, StringHandle padding_mode) {
  Geometry geometry(Geometry::of_blur, axes, padding_mode);
  const Map map = map_of(x, geometry);
  const Map result = result_map(map, geometry.axis, false);
  Tensor out = result.allocate(x);
  const gpu::Filters filters = filters_of(geometry, map, x, taps);
  if (result.empty()) return out;
  const Queue queue(x);
  check(kernels_of(dtype_of(x))
            .blur({shape_of(geometry, map), filters, x.const_data_ptr(), grid_of(x, map), out.mutable_data_ptr(), {}},
                  queue.stream()));
  return out;
}

Tensor blur_pool_backward(const Tensor& grad, const std::optional<Tensor>& taps, const Ints& size, const Ints& axes,
                          StringHandle padding_mode, bool channels_last) {
  Geometry geometry(Geometry::of_blur, axes, padding_mode);
  const Map map = gradient_map(grad, size, geometry, channels_last);
  const Map result = result_map(map, geometry.axis, true);
  Tensor out = result.allocate(grad);
  const gpu::Filters filters = filters_of(geometry, map, grad, taps);
  if (result.empty()) return out;
  const Queue queue(grad);
  check(
      kernels_of(dtype_of(grad))
          .blur_backward(
              {shape_of(geometry, map), filters, grad.const_data_ptr(), grid_of(grad, map), out.mutable_data_ptr(), {}},
              queue.stream()));
  return out;
}

Tensor blur_pool_backward_taps(const Tensor& grad, const Tensor& x, const Tensor& taps, const Ints& axes,
                               StringHandle padding_mode) {
  Geometry geometry(Geometry::of_blur, axes, padding_mode);
  const Map map = map_of(x, geometry);
  const Map of_grad = gradient_map(grad, x, map, geometry);
  Tensor out = torch::stable::empty_like(taps);
  const gpu::Filters filters = filters_of(geometry, map, x, taps);
  if (map.empty()) {
    torch::stable::zero_(out);
    return out;
  }
  const Queue queue(x);
  gpu::TapsArguments arguments;
  arguments.shape = shape_of(geometry, map);
  arguments.filters = filters;
  arguments.grad = grad.const_data_ptr();
  arguments.grad_grid = grid_of(grad, of_grad);
  arguments.x = x.const_data_ptr();
  arguments.x_grid = grid_of(x, map);
  constexpr int64_t most_shares = 1 << 20;
  arguments.chunks = std::clamp<int64_t>(most_shares / taps.numel(), 1, 4096);
  const gpu::Moments moments(arguments.shape, filters);
  const int64_t shares = moments.taps ? moments.doubles() : arguments.chunks * taps.numel(), stride_one = 1;
  Tensor workspace = aablur::empty(x, 1, &shares, &stride_one, aoti_torch_dtype_float64());
  arguments.workspace = static_cast<double*>(workspace.mutable_data_ptr());
  arguments.out = out.mutable_data_ptr();
  check(kernels_of(dtype_of(x)).taps_gradient(arguments, queue.stream()));
  return out;
}

// Queues the max-blur of x into out, and its codes into `codes` where that is not null.
void queue_max_blur(const Tensor& x, const Map& map, const gpu::Filters& filters, const Geometry& geometry,
                    const Tensor& out, uint8_t* codes, const Queue& queue) {
  check(kernels_of(dtype_of(x))
            .max_blur({shape_of(geometry, map), filters, x.const_data_ptr(), grid_of(x, map), out.mutable_data_ptr(),
                       codes_of(geometry, map, codes)},
                      queue.stream()));
}

std::tuple<Tensor, Tensor> max_blur(const Tensor& x, const std::optional<Tensor>& taps, Geometry& geometry,
                                    bool with_codes) {
  const Map map = map_of(x, geometry);
  const Map result = result_map(map, geometry.axis, false);
  Tensor out = result.allocate(x);
  Tensor codes = with_codes ? allocate_codes(x, map, geometry) : out;
  const gpu::Filters filters = filters_of(geometry, map, x, taps);
  if (result.empty()) return {out, codes};
  queue_max_blur(x, map, filters, geometry, out, with_codes ? static_cast<uint8_t*>(codes.mutable_data_ptr()) : nullptr,
                 Queue(x));
  return {out, codes};
}

Tensor max_blur_pool(const Tensor& x, const std::optional<Tensor>& taps, const Ints& axes, StringHandle padding_mode) {
  Geometry geometry(Geometry::of_max_blur, axes, padding_mode);
  return std::get<0>(max_blur(x, taps, geometry, false));
}

std::tuple<Tensor, Tensor> max_blur_pool_codes(const Tensor& x, const std::optional<Tensor>& taps, const Ints& axes,
                                               StringHandle padding_mode) {
  Geometry geometry(Geometry::of_max_blur, axes, padding_mode);
  return max_blur(x, taps, geometry, true);
}

Tensor max_blur_pool_backward(const Tensor& grad, const std::optional<Tensor>& x, const std::optional<Tensor>& codes,
                              const std::optional<Tensor>& taps, const Ints& size, const Ints& axes,
                              StringHandle padding_mode, bool channels_last) {
  Geometry geometry(Geometry::of_max_blur, axes, padding_mode);
  const Map map = gradient_map(grad, size, geometry, channels_last);
  const Map result = result_map(map, geometry.axis, true);
  Tensor out = result.allocate(grad);
  const gpu::Filters filters = filters_of(geometry, map, grad, taps);
  const std::optional<Map> x_map = maxima_map(grad, x, codes, geometry, result);
  if (result.empty()) return out;
  const Queue queue(grad);
  gpu::MaxBackwardArguments arguments;
  arguments.shape = shape_of(geometry, map);
  arguments.filters = filters;
  arguments.grad = grad.const_data_ptr();
  arguments.grad_grid = grid_of(grad, map);
  // Without codes the forward runs once more: its kernels make them fastest, and a quarter of a map is soon freed.
  Tensor known = codes ? *codes : allocate_codes(grad, *x_map, geometry);
  if (x) {
    const Tensor blurred = result_map(*x_map, geometry.axis, false).allocate(grad);
    queue_max_blur(*x, *x_map, filters, geometry, blurred, static_cast<uint8_t*>(known.mutable_data_ptr()), queue);
  }
  arguments.codes = codes_of(geometry, result, static_cast<uint8_t*>(const_cast<void*>(known.const_data_ptr())));
  arguments.out = out.mutable_data_ptr();
  check(kernels_of(dtype_of(grad)).max_blur_backward(arguments, queue.stream()));
  return out;
}

#if defined(AABLUR_GPU_ON_HOST)
Ints cpu_isa() {
  return characters("gpu_on_host");
}
#endif

}  // namespace
}  // namespace aablur

#if defined(AABLUR_GPU_ON_HOST)
STABLE_TORCH_LIBRARY_IMPL(aablur, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(aablur, CUDA, m) {
#endif
  m.impl("blur_pool", TORCH_BOX(&aablur::blur_pool));
  m.impl("blur_pool_backward", TORCH_BOX(&aablur::blur_pool_backward));
  m.impl("blur_pool_backward_taps", TORCH_BOX(&aablur::blur_pool_backward_taps));
  m.impl("max_blur_pool", TORCH_BOX(&aablur::max_blur_pool));
  m.impl("max_blur_pool_codes", TORCH_BOX(&aablur::max_blur_pool_codes));
  m.impl("max_blur_pool_backward", TORCH_BOX(&aablur::max_blur_pool_backward));
}
#if defined(AABLUR_GPU_ON_HOST)
STABLE_TORCH_LIBRARY_IMPL(aablur, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&aablur::cpu_isa));
}
#endif
