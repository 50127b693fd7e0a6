// The CPU kernels' bodies, compiled once an instruction set and element type (AABLUR_ISA and AABLUR_ELEMENT name them),
// so that ninja does them side by side.
#include "cpu/blur.h"
#include "cpu/max_pool.h"

#define AABLUR_STRING_(x) #x
#define AABLUR_STRING(x) AABLUR_STRING_(x)

namespace aablur::AABLUR_ISA {
namespace {

// Calls f with each tile of the plane's lanes.
template <class F>
void for_tiles(const Plan& plan, F&& f) {
  for (int64_t first = 0; first < plan.lanes; first += plan.tile)
    f(Tile{first, std::min(plan.tile, plan.lanes - first)});
}

template <class F>
void for_rows(RowRange rows, F&& f) {
  for (int64_t d = rows.depth.begin; d < rows.depth.end; ++d)
    for (int64_t h = rows.height.begin; h < rows.height.end; ++h) f(d, h);
}

// Where a unit's plane of the result begins.
template <class T>
T* result_plane(void* out, const Strides& strides, const Unit& unit, Tile tile) {
  return static_cast<T*>(out) + unit.image * strides.image + unit.plane * strides.channel + tile.first;
}

// The rows of a unit's result.
RowRange result_rows(const Plan& plan, const Unit& unit) {
  return band_rows(plan, unit.band, plan.result[0], plan.result[1]);
}

template <class T, bool Transposed>
void blur(const BlurArguments& arguments, int64_t begin, int64_t end) {
  const Plan& plan = arguments.plan;
  const Strides& strides = arguments.out_strides;
  RowBlur<T, Transposed> blur(plan);
  for_units(plan, begin, end, [&](const Unit& unit) {
    for_tiles(plan, [&](Tile tile) {
      const MemoryRows<T> source(arguments.x, arguments.x_strides, unit, tile);
      blur.rows(source, unit.plane, tile, result_rows(plan, unit), result_plane<T>(arguments.out, strides, unit, tile),
                strides);
    });
  });
}

// The max made a plane at a time.
template <class T>
void max_blur_planes(const BlurArguments& arguments, int64_t begin, int64_t end) {
  const Plan& plan = arguments.plan;
  const Strides& strides = arguments.out_strides;
  const Tile tile{0, 1};
  RowBlur<T, false> blur(plan);
  PooledPlane<T> pooled(plan, arguments);
  for_units(plan, begin, end, [&](const Unit& unit) {
    blur.rows(pooled.make(unit), unit.plane, tile, result_rows(plan, unit),
              result_plane<T>(arguments.out, strides, unit, tile), strides);
  });
}

// The max made a row at a time.
template <class T>
void max_blur_rows(const BlurArguments& arguments, int64_t begin, int64_t end) {
  const Plan& plan = arguments.plan;
  const Strides& strides = arguments.out_strides;
  RowBlur<T, false> blur(plan);
  PooledRows<T> source(plan, arguments);
  for_units(plan, begin, end, [&](const Unit& unit) {
    const RowRange owned = band_rows(plan, unit.band, plan.axis[0].pooled(), plan.axis[1].pooled());
    for_tiles(plan, [&](Tile tile) {
      source.start(unit, tile, owned);
      T* out = result_plane<T>(arguments.out, strides, unit, tile);
      for_rows(result_rows(plan, unit), [&](int64_t d, int64_t h) {
        blur.row(source, unit.plane, tile, d, h, out + d * strides.axis[0] + h * strides.axis[1], strides.axis[2]);
      });
      source.finish();
    });
  });
}

template <class T>
void max_blur_backward_planes(const MaxBackwardArguments& arguments, int64_t begin, int64_t end) {
  RowBlur<T, true> blur(arguments.plan);
  SelectingPlane<T> selecting(arguments.plan, arguments);
  for_units(arguments.plan, begin, end, [&](const Unit& unit) {
    selecting.plane(blur, unit, result_plane<T>(arguments.out, arguments.out_strides, unit, Tile{0, 1}));
  });
}

template <class T>
void max_blur_backward_rows(const MaxBackwardArguments& arguments, int64_t begin, int64_t end) {
  const Plan& plan = arguments.plan;
  const Strides& strides = arguments.out_strides;
  RowBlur<T, true> blur(plan);
  SelectingRows<T> selecting(plan, arguments);
  for_units(plan, begin, end, [&](const Unit& unit) {
    for_tiles(plan, [&](Tile tile) {
      selecting.start(unit, tile);
      T* out = result_plane<T>(arguments.out, strides, unit, tile);
      for_rows(band_rows(plan, unit.band, plan.axis[0].size, plan.axis[1].size), [&](int64_t d, int64_t h) {
        selecting.row(blur, d, h, out + d * strides.axis[0] + h * strides.axis[1], strides.axis[2]);
      });
    });
  });
}

// One row of accumulators, as a source of rows.
template <class A>
struct SingleRow {
  const A* data;
  int64_t count;
  int64_t pixel() const { return count; }
  const A* row(int64_t, int64_t) const { return data; }
};

template <class T, class A = accumulator<T>>
double dot(const A* a, const T* b, int64_t n) {
  Vector<A> total{};
  int64_t i = 0;
  for (; i + lanes<A> <= n; i += lanes<A>) total += load(a + i) * load(b + i);
  if (i < n) total += load(a + i, n - i) * load(b + i, n - i);
  double sum = 0;
  for (int l = 0; l < lanes<A>; ++l) sum += total[l];
  return sum;
}

// total[c] += scale[c] * sum_w a[w * tile + c] * b[w * pixel + c], a lane at a time; or all lanes in total[0].
template <class T, class A = accumulator<T>>
void add_products(const A* a, const T* b, int64_t width, Tile tile, int64_t pixel, bool per_lane, const A* scale,
                  double* total) {
  if (!per_lane) {
    for_runs(width, tile, pixel,
             [&](int64_t from, int64_t at, int64_t n) { *total += double(*scale) * dot(a + at, b + from, n); });
    return;
  }
  for (int64_t c = 0; c < tile.count; c += lanes<A>) {
    const int64_t n = std::min<int64_t>(lanes<A>, tile.count - c);
    Vector<A> sum{};
    for (int64_t w = 0; w < width; ++w) {
      const A* left = a + w * tile.count + c;
      const T* right = b + w * pixel + c;
      sum += n == lanes<A> ? load(left) * load(right) : load(left, n) * load(right, n);
    }
    for (int64_t l = 0; l < n; ++l) total[c + l] += double(scale[c + l]) * sum[l];
  }
}

template <class T>
void taps_gradient(const TapsArguments& arguments, int64_t begin, int64_t end) {
  using A = accumulator<T>;
  const Plan& plan = arguments.plan;
  const Axis &depth = plan.axis[0], &height = plan.axis[1], &width = plan.axis[2];
  const bool per_lane = plan.per_channel && plan.lanes > 1;
  const int64_t lane_totals = per_lane ? plan.lanes : 1, all_taps = depth.taps + height.taps + width.taps;
  RowBlur<T, false> blur(plan, true);
  RowBlur<A, true> along_width(arguments.along_width);
  Buffer<A> grad_row(width.out() * plan.tile), spread_row(width.pooled() * plan.tile), ones(plan.tile);
  std::fill(ones.get(), ones.get() + plan.tile, A(1));
  int64_t index = begin;
  for_units(plan, begin, end, [&](const Unit& unit) {
    double* totals = arguments.partial + index++ * all_taps * lane_totals;
    std::fill(totals, totals + all_taps * lane_totals, 0.0);
    for_tiles(plan, [&](Tile tile) {
      MemoryRows<T> source(arguments.x, arguments.x_strides, unit, tile);
      MemoryRows<T> grads(arguments.grad, arguments.grad_strides, unit, tile);
      // Where the totals of one tap of an axis lie.
      auto total = [&](int axis, int64_t tap) {
        const int64_t first = axis == 0 ? 0 : axis == 1 ? depth.taps : depth.taps + height.taps;
        return totals + (first + tap) * lane_totals + (per_lane ? tile.first : 0);
      };
      for_rows(result_rows(plan, unit), [&](int64_t d, int64_t h) {
        const T* grad = grads.row(d, h);
        for_runs(width.out(), tile, grads.pixel(),
                 [&](int64_t from, int64_t at, int64_t n) { widen_row(grad + from, n, grad_row.get() + at); });
        const A* sum = blur.row_sum(source, unit.plane, tile, d, h);
        for (int64_t o = 0; o < width.out(); ++o) {
          const Table::Row entries = plan.table[2].row(o);
          for (const Entry& e : entries)
            add_products(grad_row.get() + o * tile.count, sum + entries.source(e) * tile.count, 1, tile, tile.count,
                         per_lane, ones.get(), total(2, e.tap));
        }
        if (arguments.rank == 1) return;
        SingleRow<A> row{grad_row.get(), tile.count};
        along_width.row(row, unit.plane, tile, 0, 0, spread_row.get(), tile.count);
        const Table::Row depths = plan.table[0].row(d), heights = plan.table[1].row(h);
        for (const Entry& above : depths)
          for (const Entry& beside : heights) {
            const T* x = source.row(depths.source(above), heights.source(beside));
            auto add = [&](const A* scale, double* to) {
              add_products(spread_row.get(), x, width.pooled(), tile, source.pixel(), per_lane, scale, to);
            };
            add(blur.tap(0, above.tap, unit.plane, tile), total(1, beside.tap));
            add(blur.tap(1, beside.tap, unit.plane, tile), total(0, above.tap));
          }
      });
    });
  });
}

}  // namespace

#define AABLUR_KERNELS_(element) element##_kernels
#define AABLUR_KERNELS(element) AABLUR_KERNELS_(element)  // `float32_kernels`, say

using Element = AABLUR_TYPE;
extern const CpuKernels AABLUR_KERNELS(AABLUR_ELEMENT);
const CpuKernels AABLUR_KERNELS(AABLUR_ELEMENT) = {
    AABLUR_STRING(AABLUR_ISA),
    longest_permuted<accumulator<Element>>,
    [](const BlurArguments& arguments, bool transposed, int64_t begin, int64_t end) {
      transposed ? blur<Element, true>(arguments, begin, end) : blur<Element, false>(arguments, begin, end);
    },
    [](const BlurArguments& arguments, int64_t begin, int64_t end) {
      arguments.plan.whole_planes ? max_blur_planes<Element>(arguments, begin, end)
                                  : max_blur_rows<Element>(arguments, begin, end);
    },
    [](const MaxBackwardArguments& arguments, int64_t begin, int64_t end) {
      arguments.plan.whole_planes ? max_blur_backward_planes<Element>(arguments, begin, end)
                                  : max_blur_backward_rows<Element>(arguments, begin, end);
    },
    taps_gradient<Element>,
};

}  // namespace aablur::AABLUR_ISA
