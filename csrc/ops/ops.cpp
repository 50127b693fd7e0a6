// The ops, one body each for all devices: the problem is read from tensors and checked, the result allocated, the rest
// is the backend's. AABLUR_CUDA: built with CUDA kernels. AABLUR_MACHINE_CODE, for tests: those serve tensors of the
// CPU.
#include <optional>
#include <tuple>
#include <vector>

#include "ops/problem.h"

namespace aablur {

namespace cpu {
extern const Backend backend;
}
namespace gpu {
extern const Backend backend;
}

namespace {

Tensor new_map(const Backend& backend, const Map& map, const Tensor& like) {
  Tensor out = map.allocate(like);
  constexpr int64_t many = 1 << 20;
  if (const int64_t elements = map.images * map.channels * map.positions(); elements >= many)
    backend.allocated(out.mutable_data_ptr(), elements * int64_t(out.element_size()));
  return out;
}

// Tensors that are freed when the op has queued its work: the next allocation on the stream may have their memory.
class Tensors final : public Workspace {
 public:
  explicit Tensors(const Tensor& like) : like_(like) {}
  void* allocate(int64_t bytes) override {
    constexpr int64_t stride = 1;
    return tensors_.emplace_back(aablur::empty(like_, 1, &bytes, &stride, aoti_torch_dtype_uint8())).mutable_data_ptr();
  }

 private:
  const Tensor& like_;
  std::vector<Tensor> tensors_;
};

// A map as the backend reads it: in place, or else one copy.
class Readable {
 public:
  Readable(const Backend& backend, const Tensor& x, const Map& map)
      : tensor_(x), source_{x.const_data_ptr(), map.strides_of(x)} {
    const bool rows = !map.channels_last && (map.size[2] == 1 || source_.strides.axis[2] == 1);
    if (backend.reads_any_strides || rows || map.is_dense(source_.strides)) return;
    tensor_ = new_map(backend, map, x);
    torch::stable::copy_(tensor_, x);
    source_ = {tensor_.const_data_ptr(), map.strides_of(tensor_)};
  }
  operator const Source&() const { return source_; }

 private:
  Tensor tensor_;
  Source source_;
};

uint8_t* bytes_of(const Tensor& codes) {
  return static_cast<uint8_t*>(codes.mutable_data_ptr());
}

template <const Backend& backend>
Tensor blur_pool(const Tensor& x, const std::optional<Tensor>& taps, const Ints& axes, StringHandle padding_mode) {
  Geometry geometry(Geometry::of_blur, axes, padding_mode);
  const Map map = map_of(x, geometry), result = result_map(map, geometry.axis, false);
  const Problem problem = problem_of(x, geometry, map, taps);
  Tensor out = new_map(backend, result, x);
  Tensors workspace(x);
  if (!result.empty()) backend.blur(problem, Readable(backend, x, map), out.mutable_data_ptr(), workspace);
  return out;
}

template <const Backend& backend>
Tensor blur_pool_backward(const Tensor& grad, const std::optional<Tensor>& taps, const Ints& size, const Ints& axes,
                          StringHandle padding_mode, bool channels_last) {
  Geometry geometry(Geometry::of_blur, axes, padding_mode);
  const Map map = gradient_map(grad, size, geometry, channels_last), result = result_map(map, geometry.axis, true);
  const Problem problem = problem_of(grad, geometry, map, taps);
  Tensor out = new_map(backend, result, grad);
  Tensors workspace(grad);
  if (!result.empty()) backend.blur_backward(problem, Readable(backend, grad, map), out.mutable_data_ptr(), workspace);
  return out;
}

template <const Backend& backend>
Tensor blur_pool_backward_taps(const Tensor& grad, const Tensor& x, const Tensor& taps, const Ints& axes,
                               StringHandle padding_mode) {
  Geometry geometry(Geometry::of_blur, axes, padding_mode);
  const Map map = map_of(x, geometry), of_grad = gradient_map(grad, x, map, geometry);
  const Problem problem = problem_of(x, geometry, map, taps);
  Tensor out = torch::stable::empty_like(taps);
  if (map.empty()) {
    torch::stable::zero_(out);
    return out;
  }
  Tensors workspace(x);
  backend.taps_gradient(problem, Readable(backend, grad, of_grad), Readable(backend, x, map), out.mutable_data_ptr(),
                        workspace);
  return out;
}

template <const Backend& backend>
std::tuple<Tensor, Tensor> max_blur(const Tensor& x, const std::optional<Tensor>& taps, const Ints& axes,
                                    StringHandle padding_mode, bool with_codes) {
  Geometry geometry(Geometry::of_max_blur, axes, padding_mode);
  const Map map = map_of(x, geometry), result = result_map(map, geometry.axis, false);
  const Problem problem = problem_of(x, geometry, map, taps);
  Tensor out = new_map(backend, result, x);
  Tensor codes = with_codes ? allocate_codes(x, map, geometry) : out;
  Tensors workspace(x);
  if (!result.empty())
    backend.max_blur(problem, Readable(backend, x, map), out.mutable_data_ptr(), with_codes ? bytes_of(codes) : nullptr,
                     workspace);
  return {out, codes};
}

template <const Backend& backend>
Tensor max_blur_pool(const Tensor& x, const std::optional<Tensor>& taps, const Ints& axes, StringHandle padding_mode) {
  return std::get<0>(max_blur<backend>(x, taps, axes, padding_mode, false));
}

template <const Backend& backend>
std::tuple<Tensor, Tensor> max_blur_pool_codes(const Tensor& x, const std::optional<Tensor>& taps, const Ints& axes,
                                               StringHandle padding_mode) {
  return max_blur<backend>(x, taps, axes, padding_mode, true);
}

template <const Backend& backend>
Tensor max_blur_pool_backward(const Tensor& grad, const std::optional<Tensor>& x, const std::optional<Tensor>& codes,
                              const std::optional<Tensor>& taps, const Ints& size, const Ints& axes,
                              StringHandle padding_mode, bool channels_last) {
  Geometry geometry(Geometry::of_max_blur, axes, padding_mode);
  const Map map = gradient_map(grad, size, geometry, channels_last), result = result_map(map, geometry.axis, true);
  const std::optional<Map> x_map = maxima_map(grad, x, codes, geometry, result);
  const Problem problem = problem_of(grad, geometry, map, taps);
  Tensor out = new_map(backend, result, grad);
  if (result.empty()) return out;
  const Readable grads(backend, grad, map);
  Tensors workspace(grad);
  std::optional<Readable> source;
  if (x) source.emplace(backend, *x, *x_map);
  const bool makes_codes = x && backend.needs_codes;
  const Tensor known = codes ? *codes : makes_codes ? allocate_codes(grad, result, geometry) : grad;
  if (makes_codes) {  // the forward makes them fastest, and a quarter of a map is soon freed
    const Tensor blurred = map.allocate(grad);
    backend.max_blur(problem, *source, blurred.mutable_data_ptr(), bytes_of(known), workspace);
  }
  const void* const known_data = codes || makes_codes ? known.const_data_ptr() : nullptr;
  backend.max_blur_backward(problem, grads, static_cast<const uint8_t*>(known_data),
                            source ? Source(*source) : Source{}, out.mutable_data_ptr(), workspace);
  return out;
}

template <const Backend& backend>
void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("blur_pool", TORCH_BOX(&blur_pool<backend>));
  m.impl("blur_pool_backward", TORCH_BOX(&blur_pool_backward<backend>));
  m.impl("blur_pool_backward_taps", TORCH_BOX(&blur_pool_backward_taps<backend>));
  m.impl("max_blur_pool", TORCH_BOX(&max_blur_pool<backend>));
  m.impl("max_blur_pool_codes", TORCH_BOX(&max_blur_pool_codes<backend>));
  m.impl("max_blur_pool_backward", TORCH_BOX(&max_blur_pool_backward<backend>));
}

#if defined(AABLUR_MACHINE_CODE)
constexpr const Backend& of_cpu = gpu::backend;
#else
constexpr const Backend& of_cpu = cpu::backend;
#endif

Ints cpu_isa() {
  return characters(of_cpu.name());
}

}  // namespace
}  // namespace aablur

STABLE_TORCH_LIBRARY_IMPL(aablur, CPU, m) {
  aablur::implement<aablur::of_cpu>(m);
}
#if defined(AABLUR_CUDA)
STABLE_TORCH_LIBRARY_IMPL(aablur, CUDA, m) {
  aablur::implement<aablur::gpu::backend>(m);
}
#endif
STABLE_TORCH_LIBRARY_IMPL(aablur, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&aablur::cpu_isa));
}
