// The CPU's side of the ops: problems to plans, plans to kernels, kernels to torch's threads.
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <string>

#include "cpu/plan.h"

namespace aablur {

#define AABLUR_DECLARE_KERNELS(isa)                                                                           \
  namespace isa {                                                                                             \
  extern const CpuKernels float16_kernels, bfloat16_kernels, float32_kernels, float64_kernels;                \
  constexpr KernelsOfIsa kernels = {&float16_kernels, &bfloat16_kernels, &float32_kernels, &float64_kernels}; \
  }

using KernelsOfIsa = const CpuKernels* const[4];  // as Dtype counts them
AABLUR_DECLARE_KERNELS(portable)
#if defined(AABLUR_X86)
AABLUR_DECLARE_KERNELS(avx2)
AABLUR_DECLARE_KERNELS(avx512)
#endif

namespace {

// Those of the best instruction set of this processor, or of the one that AABLUR_CPU_ISA names.
const CpuKernels& kernels(Dtype dtype) {
  static const KernelsOfIsa& chosen = []() -> const KernelsOfIsa& {
    const char* variable = std::getenv("AABLUR_CPU_ISA");
    const std::string asked = variable ? variable : "";
    auto fits = [&](const KernelsOfIsa& k) { return asked.empty() || asked == k[0]->isa; };
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
  return *chosen[int(dtype)];
}

// Asks for large pages under a large new map. The allocator returns such blocks to the system at once, so that every
// page of the next one faults again: at 4 KiB a page that costs more than the kernels do.
void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr int64_t large = int64_t(8) << 20;
  constexpr uintptr_t page = 4096;
  if (bytes < large) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data), first = (begin + page - 1) / page * page;
  const uintptr_t last = (begin + uintptr_t(bytes)) / page * page;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // advice: a refusal changes nothing
#endif
}

// Calls f(begin, end) over all units, in parallel where there is enough to do.
template <class F>
void run(const Planned& planned, F&& f) {
  const int64_t units = planned.units(), grain = planned.grain();
  if (units <= grain) return f(int64_t(0), units);
  torch::stable::parallel_for(0, units, grain, f);
}

int64_t wanted_units() {
  return 4 * int64_t(torch::stable::get_num_threads());
}

// Of x's map and of the output's, or of its gradient's.
struct Sizes {
  int64_t x[3], out[3];
  explicit Sizes(const Shape& shape) {
    for (int a = 0; a < 3; ++a) x[a] = shape.axis[a].size, out[a] = shape.axis[a].out();
  }
};

// Strides as the kernels read them, which know rows alone: one value behind the other, or pixels of channels.
Strides row_strides(const Shape& shape, const Strides& strides, const int64_t (&size)[3]) {
  if (shape.channels_last) return dense_strides(shape.channels, size, true);
  return {strides.image, strides.channel, {strides.axis[0], strides.axis[1], 1}};
}

bool has_dense_planes(const Shape& shape, const Strides& strides, const int64_t (&size)[3]) {
  const Strides dense = dense_strides(shape.channels, size, shape.channels_last);
  bool all = true;
  for (int a = 0; a < 2; ++a) all = all && (shape.channels_last || size[a] == 1 || strides.axis[a] == dense.axis[a]);
  return all;
}

template <bool Transposed>
void blur(const Problem& problem, const Source& x, void* out, Workspace&) {
  const Shape& shape = problem.shape;
  const Sizes sizes(shape);
  const auto &source = Transposed ? sizes.out : sizes.x, &result = Transposed ? sizes.x : sizes.out;
  Planned planned(problem, Transposed, kernels(problem.dtype));
  planned.cut(wanted_units());
  planned.flatten(has_dense_planes(shape, x.strides, source), false);
  const BlurArguments arguments{planned.plan,
                                x.data,
                                row_strides(shape, x.strides, source),
                                dense_strides(shape.channels, result, shape.channels_last),
                                out,
                                nullptr};
  run(planned, [&](int64_t begin, int64_t end) { kernels(problem.dtype).blur(arguments, Transposed, begin, end); });
}

void max_blur(const Problem& problem, const Source& x, void* out, uint8_t* codes, Workspace&) {
  const Shape& shape = problem.shape;
  const Sizes sizes(shape);
  const bool dense = has_dense_planes(shape, x.strides, sizes.x);
  Planned planned(problem, false, kernels(problem.dtype));
  planned.cut(wanted_units());
  planned.choose_whole_planes(dense);
  planned.flatten(dense, !planned.plan.whole_planes);
  const BlurArguments arguments{planned.plan,
                                x.data,
                                row_strides(shape, x.strides, sizes.x),
                                dense_strides(shape.channels, sizes.out, shape.channels_last),
                                out,
                                codes};
  run(planned, [&](int64_t begin, int64_t end) { kernels(problem.dtype).max_blur(arguments, begin, end); });
}

void max_blur_backward(const Problem& problem, const Source& grad, const uint8_t* codes, const Source& x, void* out,
                       Workspace&) {
  const Shape& shape = problem.shape;
  const Sizes sizes(shape);
  Planned planned(problem, true, kernels(problem.dtype));
  planned.cut(wanted_units());
  planned.choose_whole_planes(codes || has_dense_planes(shape, x.strides, sizes.x));
  planned.flatten(has_dense_planes(shape, grad.strides, sizes.out), !planned.plan.whole_planes);
  const MaxBackwardArguments arguments{planned.plan,
                                       grad.data,
                                       codes,
                                       x.data,
                                       row_strides(shape, grad.strides, sizes.out),
                                       row_strides(shape, x.strides, sizes.x),
                                       dense_strides(shape.channels, sizes.x, shape.channels_last),
                                       out};
  run(planned, [&](int64_t begin, int64_t end) { kernels(problem.dtype).max_blur_backward(arguments, begin, end); });
}

// Adds the units' shares in their order, whatever threads made them: (channels or 1, sum of taps).
template <class A>
void add_shares(const std::vector<double>& partial, const Plan& plan, int rank, int64_t rows, void* out) {
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
  std::copy(sums.begin(), sums.end(), static_cast<A*>(out));
}

void taps_gradient(const Problem& problem, const Source& grad, const Source& x, void* out, Workspace&) {
  const Shape& shape = problem.shape;
  const Sizes sizes(shape);
  Planned planned(problem, false, kernels(problem.dtype)), along_width(problem, true, kernels(problem.dtype));
  planned.cut(32);  // never by the number of threads: the sum's order must not depend on it
  along_width.drop_axis(0);
  along_width.drop_axis(1);
  const Plan& plan = planned.plan;
  const int64_t lanes = plan.per_channel ? plan.lanes : 1;
  constexpr int64_t most = int64_t(1) << 58;  // whose bytes an int64 counts
  int64_t numbers = planned.units();
  STD_TORCH_CHECK(
      !__builtin_mul_overflow(numbers, plan.axis[0].taps + plan.axis[1].taps + plan.axis[2].taps, &numbers) &&
          !__builtin_mul_overflow(numbers, lanes, &numbers) && numbers <= most,
      "aablur: the arguments ask for more than ", most, " numbers");
  std::vector<double> partial(numbers);
  const TapsArguments arguments{plan,
                                problem.rank,
                                along_width.plan,
                                grad.data,
                                x.data,
                                row_strides(shape, grad.strides, sizes.out),
                                row_strides(shape, x.strides, sizes.x),
                                partial.data()};
  run(planned, [&](int64_t begin, int64_t end) { kernels(problem.dtype).taps_gradient(arguments, begin, end); });
  if (problem.dtype == Dtype::float64) add_shares<double>(partial, plan, problem.rank, problem.tap_rows, out);
  else add_shares<float>(partial, plan, problem.rank, problem.tap_rows, out);
}

}  // namespace

namespace cpu {

extern const Backend backend;
const Backend backend = {[] { return kernels(Dtype::float32).isa; },
                         false,
                         false,
                         prefer_huge_pages,
                         blur<false>,
                         blur<true>,
                         max_blur,
                         max_blur_backward,
                         taps_gradient};

}  // namespace cpu
}  // namespace aablur
