// The ops on the CPU: arguments to plans, plans to kernels, kernels to torch's threads.
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <cstring>
#include <optional>
#include <tuple>

#include "arguments.h"
#include "plan.h"

namespace aablur {

namespace portable {
extern const CpuKernels kernels;
}
#if defined(AABLUR_X86)
namespace avx2 {
extern const CpuKernels kernels;
}
namespace avx512 {
extern const CpuKernels kernels;
}
#endif

namespace {

// The best instruction set of this processor, or the one that AABLUR_CPU_ISA names.
const CpuKernels& kernels() {
  static const CpuKernels& chosen = []() -> const CpuKernels& {
    const char* variable = std::getenv("AABLUR_CPU_ISA");
    const std::string asked = variable ? variable : "";
    auto fits = [&](const CpuKernels& k) { return asked.empty() || asked == k.isa; };
#if defined(AABLUR_X86)
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                          __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (has_avx512 && fits(avx512::kernels)) return avx512::kernels;
    if (has_avx2 && fits(avx2::kernels)) return avx2::kernels;
#endif
    STD_TORCH_CHECK(fits(portable::kernels), "AABLUR_CPU_ISA must be avx512, avx2 or portable, and one that this ",
                    "processor has, not ", asked);
    return portable::kernels;
  }();
  return chosen;
}

// Asks for large pages under a large new tensor. The allocator returns such blocks to the system at once, so that every
// page of the next one faults again: at 4 KiB a page that costs more than the kernels do.
void prefer_huge_pages(const Tensor& out) {
#if defined(MADV_HUGEPAGE)
  constexpr size_t large = size_t(8) << 20, page = 4096;
  const size_t bytes = size_t(out.numel()) * out.element_size();
  if (bytes < large) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(out.const_data_ptr());
  const uintptr_t first = (begin + page - 1) / page * page, last = (begin + bytes) / page * page;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // advice: a refusal changes nothing
#endif
}

Tensor new_map(const Map& map, const Tensor& like) {
  Tensor out = map.allocate(like);
  prefer_huge_pages(out);
  return out;
}

// x as the kernels read it: rows in place wherever they are contiguous, else one copy.
struct Readable {
  Tensor tensor;
  Strides strides;
  bool dense_planes = true;

  Readable(const Tensor& x, const Map& map) : tensor(x) {
    const bool rows = !map.channels_last && (map.size[2] == 1 || x.stride(x.dim() - 1) == 1);
    if (!rows && !map.is_dense(x)) {
      tensor = new_map(map, x);
      torch::stable::copy_(tensor, x);
    }
    strides = map.dense_strides();
    if (map.channels_last) return;
    strides.image = map.batched ? tensor.stride(0) : 0;
    strides.plane = tensor.stride(map.batched);
    int64_t* outer[2] = {&strides.depth, &strides.height};
    for (int i = 3 - map.rank; i < 2; ++i) {
      const int64_t dense = *outer[i];
      *outer[i] = tensor.stride(map.batched + 1 + i - (3 - map.rank));
      dense_planes = dense_planes && (map.size[i] == 1 || *outer[i] == dense);
    }
  }
};

// A plan and all that it points to.
class Planned {
 public:
  Plan plan;

  Planned(const Geometry& geometry, const Tensor& like, const Map& x, const std::optional<Tensor>& taps,
          bool transposed)
      : wide_(dtype_of(like) == Dtype::float64), transposed_(transposed) {
    std::copy(geometry.axis, geometry.axis + 3, plan.axis);
    plan.images = x.images;
    plan.planes = x.channels_last ? 1 : x.channels;
    plan.lanes = x.channels_last ? x.channels : 1;
    plan.packing = Packing(plan.axis, x.channels_last, x.channels);
    for (const Axis& a : plan.axis) plan.grid_positions = plan.grid_positions * a.size + a.pooled() - 1;
    ++plan.grid_positions;
    plan.cut_depth = plan.axis[0].pooled() > 1 || plan.axis[0].out() > 1;
    set_taps(geometry, like, x, taps);
    for (int a = 0; a < 3; ++a) {
      const Axis& axis = plan.axis[a];
      plan.source[a] = transposed ? axis.out() : axis.pooled();
      plan.result[a] = transposed ? axis.pooled() : axis.out();
      set_matrix(a, transposed ? transposed_matrix(arena_, axis) : blur_matrix(arena_, axis));
    }
    // The row sum of a tile should stay in the second-level cache; narrower tiles read memory in pieces too short.
    const int64_t element = wide_ ? 8 : 4, width = std::max(plan.axis[2].size, plan.axis[2].out());
    plan.tile =
        std::clamp<int64_t>(tile_bytes / (element * width) / 32 * 32, std::min<int64_t>(32, plan.lanes), plan.lanes);
  }
  Planned(Planned&&) = delete;

  // Cuts planes into bands where there are too few of them for the threads. Those that fit the registers stay whole: if
  // threads decided whether they become rows, they would decide on the order of additions.
  void cut(int64_t wanted) {
    const Axis& axis = plan.axis[plan.cut_depth ? 0 : 1];
    const int64_t rows = std::min(axis.size, std::min(axis.pooled(), axis.out())),
                  most = fits_registers() ? 1 : std::max<int64_t>(1, rows / 8);
    plan.bands = std::clamp<int64_t>(ceil_div(wanted, std::max<int64_t>(1, plan.images * plan.planes)), 1, most);
  }

  // Chooses to make the max of a plane in one run: where that fits the cache, and no window hangs over.
  void choose_whole_planes(bool x_is_dense) {
    bool overhangs = false;
    for (const Axis& a : plan.axis) overhangs = overhangs || a.window_padding > 0;
    plan.whole_planes = plan.lanes == 1 && plan.bands == 1 && x_is_dense && !overhangs &&
                        plan.grid_positions * (wide_ ? 8 : 4) <= plane_bytes;
  }

  // Makes a small dense plane one row: its matrix is the product of the axes', its taps the products of theirs.
  void flatten(bool source_is_dense, bool max_by_rows) {
    if (!source_is_dense || max_by_rows || !fits_registers()) return;
    const Grids grids = plane_grids();
    const Matrix product = kronecker(arena_, matrix_, plan.axis, grids.source, grids.result, grids.results);
    if (wide_) flatten_taps(*double_taps_);
    else flatten_taps(*float_taps_);
    plan.source[2] = grids.sources;
    plan.result[2] = grids.results;
    set_matrix(2, product);
    for (int a = 0; a < 2; ++a) drop_axis(a);
  }

  // Leaves an axis out of the blur.
  void drop_axis(int a) {
    plan.source[a] = plan.result[a] = 1;
    set_matrix(a, blur_matrix(arena_, Axis{}));
    if (wide_) double_taps_->drop(a);
    else float_taps_->drop(a);
  }

  // Calls f(begin, end) over all units, in parallel where there is enough to do.
  template <class F>
  void run(F&& f) const {
    const int64_t units = plan.images * plan.planes * plan.bands;
    int64_t unit_elements = plan.lanes;
    for (const Axis& a : plan.axis) unit_elements *= std::max(a.size, a.out());
    unit_elements = std::max<int64_t>(1, unit_elements / plan.bands);
    const int64_t grain = std::max<int64_t>(1, grain_elements / unit_elements);
    if (units <= grain) return f(int64_t(0), units);
    torch::stable::parallel_for(0, units, grain, f);
  }

 private:
  static constexpr int64_t tile_bytes = 131072, plane_bytes = 65536, grain_elements = 16384, most_flat_taps = 25;

  static int64_t grid_volume(const int64_t (&grid)[3]) { return grid[0] * grid[1] * grid[2]; }

  // What the blur of a plane reads and gives, as rows. A pooled plane lies on the grid of x.
  struct Grids {
    int64_t source[3], result[3], sources, results;
  };
  Grids plane_grids() const {
    Grids grids;
    for (int a = 0; a < 3; ++a) {
      grids.source[a] = transposed_ ? plan.source[a] : plan.axis[a].size;
      grids.result[a] = transposed_ ? plan.axis[a].size : plan.result[a];
    }
    grids.sources = transposed_ ? grid_volume(grids.source) : plan.grid_positions;
    grids.results = transposed_ ? plan.grid_positions : grid_volume(grids.result);
    return grids;
  }

  // Whether a plane of several rows fits the registers as one row.
  bool fits_registers() const {
    const int64_t limit = wide_ ? kernels().lookup_doubles : kernels().lookup_floats;
    if (limit == 0 || plan.lanes > 1 || plan.per_channel || plan.result[0] * plan.result[1] == 1) return false;
    const Grids grids = plane_grids();
    int64_t taps = 1;
    for (const Axis& a : plan.axis) taps *= std::min(a.taps, most_flat_taps + 1);
    return taps <= most_flat_taps && grids.sources < limit && grids.results <= limit;
  }

  void set_matrix(int a, const Matrix& matrix) {
    matrix_[a] = matrix;
    plan.table[a] = matrix_[a].table();
    plan.longest[a] = matrix_[a].longest;
  }
  void set_taps(const Geometry& geometry, const Tensor& like, const Map& x, const std::optional<Tensor>& taps) {
    check_taps(taps, geometry, like, x);
    const void* packed = taps ? taps->const_data_ptr() : nullptr;
    const int64_t rows = taps ? taps->size(0) : 1;
    plan.per_channel = rows > 1;
    if (wide_)
      point(double_taps_.emplace(arena_, plan.axis, geometry.rank, static_cast<const double*>(packed), rows,
                                 plan.lanes > 1));
    else
      point(float_taps_.emplace(arena_, plan.axis, geometry.rank, static_cast<const float*>(packed), rows,
                                plan.lanes > 1));
  }
  template <class A>
  void point(const Taps<A>& taps) {
    for (int a = 0; a < 3; ++a) plan.taps[a] = taps.values[a];
  }
  template <class A>
  void flatten_taps(Taps<A>& taps) {
    taps.multiply(arena_);
    point(taps);
  }

  Arena arena_;
  bool wide_, transposed_;
  Matrix matrix_[3];
  std::optional<Taps<float>> float_taps_;
  std::optional<Taps<double>> double_taps_;
};

int64_t wanted_units() {
  return 4 * int64_t(torch::stable::get_num_threads());
}

Tensor blur_pool(const Tensor& x, const std::optional<Tensor>& taps, const Ints& axes, StringHandle padding_mode) {
  Geometry geometry(Geometry::of_blur, axes, padding_mode);
  const Dtype dtype = dtype_of(x);
  const Map map = map_of(x, geometry);
  const Map result = result_map(map, geometry.axis, false);
  Tensor out = new_map(result, x);
  if (result.empty()) return out;
  const Readable source(x, map);
  Planned planned(geometry, x, map, taps, false);
  planned.cut(wanted_units());
  planned.flatten(source.dense_planes, false);
  BlurArguments arguments{planned.plan,           source.tensor.const_data_ptr(), source.strides,
                          result.dense_strides(), out.mutable_data_ptr(),         nullptr};
  planned.run([&](int64_t begin, int64_t end) { kernels().blur(dtype, arguments, false, begin, end); });
  return out;
}

Tensor blur_pool_backward(const Tensor& grad, const std::optional<Tensor>& taps, const Ints& size, const Ints& axes,
                          StringHandle padding_mode, bool channels_last) {
  Geometry geometry(Geometry::of_blur, axes, padding_mode);
  const Dtype dtype = dtype_of(grad);
  const Map map = gradient_map(grad, size, geometry, channels_last);
  const Map result = result_map(map, geometry.axis, true);
  Tensor out = new_map(result, grad);
  if (result.empty()) return out;
  const Readable source(grad, map);
  Planned planned(geometry, grad, map, taps, true);
  planned.cut(wanted_units());
  planned.flatten(source.dense_planes, false);
  BlurArguments arguments{planned.plan,           source.tensor.const_data_ptr(), source.strides,
                          result.dense_strides(), out.mutable_data_ptr(),         nullptr};
  planned.run([&](int64_t begin, int64_t end) { kernels().blur(dtype, arguments, true, begin, end); });
  return out;
}

// Adds the units' shares in their order, whatever threads made them: (channels or 1, sum of taps).
template <class A>
void add_shares(const std::vector<double>& partial, const Plan& plan, int rank, int64_t rows, A* out) {
  int64_t total = 0, skipped = 0;
  for (int a = 0; a < 3; ++a) (a < 3 - rank ? skipped : total) += plan.axis[a].taps;
  const int64_t all = skipped + total, lanes = plan.per_channel && plan.lanes > 1 ? plan.lanes : 1;
  const int64_t units = plan.images * plan.planes * plan.bands;
  std::vector<double> sums(rows * total);
  for (int64_t unit = 0; unit < units; ++unit) {
    const int64_t plane = plan.per_channel ? unit / plan.bands % plan.planes : 0;
    for (int64_t t = 0; t < total; ++t)
      for (int64_t lane = 0; lane < lanes; ++lane)
        sums[(plane + lane) * total + t] += partial[(unit * all + skipped + t) * lanes + lane];
  }
  std::copy(sums.begin(), sums.end(), out);
}

Tensor blur_pool_backward_taps(const Tensor& grad, const Tensor& x, const Tensor& taps, const Ints& axes,
                               StringHandle padding_mode) {
  Geometry geometry(Geometry::of_blur, axes, padding_mode);
  const Dtype dtype = dtype_of(x);
  const Map map = map_of(x, geometry), grad_map = gradient_map(grad, x, map, geometry);
  Tensor out = torch::stable::empty_like(taps);
  if (map.empty()) {
    torch::stable::zero_(out);
    return out;
  }
  const Readable source(x, map), grads(grad, grad_map);
  Planned planned(geometry, x, map, taps, false);
  planned.cut(32);  // never by the number of threads: the sum's order must not depend on it
  Planned along_width(geometry, x, map, taps, true);
  along_width.drop_axis(0);
  along_width.drop_axis(1);
  const Plan& plan = planned.plan;
  const int64_t lanes = plan.per_channel ? plan.lanes : 1;
  std::vector<double> partial(plan.images * plan.planes * plan.bands *
                              (plan.axis[0].taps + plan.axis[1].taps + plan.axis[2].taps) * lanes);
  TapsArguments arguments{
      plan,          geometry.rank,  along_width.plan, grads.tensor.const_data_ptr(), source.tensor.const_data_ptr(),
      grads.strides, source.strides, partial.data()};
  planned.run([&](int64_t begin, int64_t end) { kernels().taps_gradient(dtype, arguments, begin, end); });
  if (dtype == Dtype::float64)
    add_shares(partial, plan, geometry.rank, taps.size(0), static_cast<double*>(out.mutable_data_ptr()));
  else add_shares(partial, plan, geometry.rank, taps.size(0), static_cast<float*>(out.mutable_data_ptr()));
  return out;
}

std::tuple<Tensor, Tensor> max_blur(const Tensor& x, const std::optional<Tensor>& taps, Geometry& geometry,
                                    bool with_codes) {
  const Dtype dtype = dtype_of(x);
  const Map map = map_of(x, geometry);
  const Map result = result_map(map, geometry.axis, false);
  Tensor out = new_map(result, x);
  Tensor codes = with_codes ? allocate_codes(x, map, geometry) : out;
  if (result.empty()) return {out, codes};
  const Readable source(x, map);
  Planned planned(geometry, x, map, taps, false);
  planned.cut(wanted_units());
  planned.choose_whole_planes(source.dense_planes);
  planned.flatten(source.dense_planes, !planned.plan.whole_planes);
  BlurArguments arguments{
      planned.plan,           source.tensor.const_data_ptr(),
      source.strides,         result.dense_strides(),
      out.mutable_data_ptr(), with_codes ? static_cast<uint8_t*>(codes.mutable_data_ptr()) : nullptr};
  planned.run([&](int64_t begin, int64_t end) { kernels().max_blur(dtype, arguments, begin, end); });
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
  const Dtype dtype = dtype_of(grad);
  const Map map = gradient_map(grad, size, geometry, channels_last);
  const Map result = result_map(map, geometry.axis, true);
  const std::optional<Map> x_map = maxima_map(grad, x, codes, geometry, result);
  Tensor out = new_map(result, grad);
  if (result.empty()) return out;
  const Readable grads(grad, map);
  std::optional<Readable> source;
  if (x) source.emplace(*x, *x_map);
  Planned planned(geometry, grad, map, taps, true);
  planned.cut(wanted_units());
  planned.choose_whole_planes(!source || source->dense_planes);
  planned.flatten(grads.dense_planes, !planned.plan.whole_planes);
  MaxBackwardArguments arguments{planned.plan,
                                 grads.tensor.const_data_ptr(),
                                 codes ? static_cast<const uint8_t*>(codes->const_data_ptr()) : nullptr,
                                 source ? source->tensor.const_data_ptr() : nullptr,
                                 grads.strides,
                                 source ? source->strides : Strides{},
                                 result.dense_strides(),
                                 out.mutable_data_ptr()};
  planned.run([&](int64_t begin, int64_t end) { kernels().max_blur_backward(dtype, arguments, begin, end); });
  return out;
}

Ints cpu_isa() {
  return characters(kernels().isa);
}

}  // namespace
}  // namespace aablur

STABLE_TORCH_LIBRARY_IMPL(aablur, CPU, m) {
  m.impl("blur_pool", TORCH_BOX(&aablur::blur_pool));
  m.impl("blur_pool_backward", TORCH_BOX(&aablur::blur_pool_backward));
  m.impl("blur_pool_backward_taps", TORCH_BOX(&aablur::blur_pool_backward_taps));
  m.impl("max_blur_pool", TORCH_BOX(&aablur::max_blur_pool));
  m.impl("max_blur_pool_codes", TORCH_BOX(&aablur::max_blur_pool_codes));
  m.impl("max_blur_pool_backward", TORCH_BOX(&aablur::max_blur_pool_backward));
}
STABLE_TORCH_LIBRARY_IMPL(aablur, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&aablur::cpu_isa));
}
