// Plans made from problems: axes, their matrices and the accumulators' taps. No torch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <vector>

#include "core/backend.h"
#include "cpu/kernels.h"

namespace aablur {

// Memory for the tables of a plan, given back all at once. Those of a small map lie in the arena itself: some forty
// allocations would cost such a map more than its blur.
class Arena {
 public:
  Arena() = default;
  Arena(Arena&&) = delete;

  // Room for n times `each` values, as it was found.
  template <class T>
  T* take(int64_t n, int64_t each = 1) {
    if (each > 0 && n > int64_t(PTRDIFF_MAX / sizeof(T) - alignment) / each) throw std::bad_alloc();
    const size_t bytes = (n * each * sizeof(T) + alignment - 1) / alignment * alignment;
    std::byte* taken = room_ + used_;
    if (bytes <= sizeof room_ - used_ && !apart) used_ += bytes;
    else taken = more_.emplace_back(new std::byte[bytes]).get();
    return reinterpret_cast<T*>(taken);
  }

 private:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr bool apart = true;  // so that it sees who reads beyond a table
#else
  static constexpr bool apart = false;
#endif
  static constexpr size_t alignment = alignof(std::max_align_t);
  alignas(alignment) std::byte room_[4096];
  size_t used_ = 0;
  std::vector<std::unique_ptr<std::byte[]>> more_;
};

// A table while it is made.
struct Matrix {
  int64_t* begin = nullptr;
  Entry* entries = nullptr;
  int64_t rows = 0, count = 0, longest = 0;  // rows listed, their entries, and those of the longest
  Table shape;                               // all but the lists

  Matrix() = default;
  // For so many rows.
  Matrix(Arena& arena, int64_t most_rows) : begin(arena.take<int64_t>(most_rows + 1)) { begin[0] = 0; }
  // For so many, of which those of the interior are left out but for the first period.
  Matrix(Arena& arena, int64_t all_rows, Range interior, int64_t period, int64_t step) {
    shape.interior_begin = interior.begin;
    shape.interior_end = interior.end;
    shape.period = period;
    shape.step = step;
    if (interior.end - interior.begin > period) shape.left_out = {interior.begin + period, interior.end};
    begin = arena.take<int64_t>(all_rows - shape.left_out.count() + 1);
    begin[0] = 0;
  }
  Table table() const {
    Table made = shape;
    made.begin = begin;
    made.entries = entries;
    return made;
  }
  void add(int64_t source, int64_t tap) { entries[count++] = {source, tap}; }
  void end_row() {
    longest = std::max(longest, count - begin[rows]);
    begin[++rows] = count;
  }
};

// Lists the rows that were left out, where they are few.
inline Matrix listed(Arena& arena, const Matrix& m) {
  const Range left_out = m.shape.left_out;
  const int64_t more = left_out.count(), period = m.shape.period;
  if (more == 0 || more > most_listed_rows) return m;
  Matrix all(arena, m.rows + more);
  all.entries = arena.take<Entry>(m.count + more * m.longest);
  all.shape = m.shape;
  all.shape.left_out = Range{};
  auto copy_rows = [&](int64_t first, int64_t last) {
    std::copy(m.entries + m.begin[first], m.entries + m.begin[last], all.entries + all.count);
    for (int64_t row = first; row < last; ++row)
      all.begin[all.rows + 1] = all.begin[all.rows] + m.begin[row + 1] - m.begin[row], ++all.rows;
    all.count = all.begin[all.rows];
  };
  copy_rows(0, left_out.begin);
  for (int64_t row = left_out.begin; row < left_out.end; ++row) {
    for (int64_t e = all.begin[row - period]; e < all.begin[row - period + 1]; ++e)
      all.add(all.entries[e].source + m.shape.step, all.entries[e].tap);
    all.begin[++all.rows] = all.count;
  }
  copy_rows(left_out.begin, m.rows);
  all.longest = m.longest;
  return all;
}

// Row o: what output o reads.
inline Matrix blur_matrix(Arena& arena, const Axis& axis) {
  const int64_t out = axis.out();
  Matrix m(arena, out, interior_of_reads(axis), 1, axis.stride);
  const Range left_out = m.shape.left_out;
  m.entries = arena.take<Entry>(out - left_out.count(), axis.taps);
  auto add_rows = [&](int64_t first, int64_t last) {
    for (int64_t o = first; o < last; ++o) {
      for (int64_t tap = 0; tap < axis.taps; ++tap) {
        const int64_t source = fold(axis, o * axis.stride - axis.before + tap);
        if (source != outside) m.add(source, tap);
      }
      m.end_row();
    }
  };
  add_rows(0, left_out.begin);
  add_rows(left_out.end, out);
  return listed(arena, m);
}

// Row i: the outputs that read pooled index i.
inline Matrix transposed_matrix(Arena& arena, const Axis& axis) {
  const int64_t n = axis.pooled();
  Matrix m(arena, n, interior_of_readers(axis), axis.stride, 1);
  const Range left_out = m.shape.left_out;
  m.rows = n - left_out.count();
  auto each = [&](auto&& f) {  // f(listed row, output, tap), the rows in any order
    positions(axis, left_out, [&](int64_t o, int64_t tap, int64_t p) {
      const int64_t i = fold(axis, p);
      if (i != outside) f(i < left_out.end ? i : i - left_out.count(), o, tap);
    });
  };
  // Counted, then filled: while it is filled, begin[i + 1] is where the next entry of row i goes.
  std::fill(m.begin, m.begin + m.rows + 1, int64_t(0));
  each([&](int64_t i, int64_t, int64_t) { ++m.begin[i + 1]; });
  for (int64_t i = 0; i < m.rows; ++i) {
    const int64_t row = m.begin[i + 1];
    m.longest = std::max(m.longest, row);
    m.begin[i + 1] = m.count;
    m.count += row;
  }
  m.entries = arena.take<Entry>(m.count);
  each([&](int64_t i, int64_t o, int64_t tap) { m.entries[m.begin[i + 1]++] = {o, tap}; });
  return listed(arena, m);
}

// One matrix for a plane as a row: (result grid, source grid) from the axes' matrices. Grids may be larger than the
// matrices; result rows stop at `results`.
inline Matrix kronecker(Arena& arena, const Matrix (&axes)[3], const Axis (&axis)[3], const int64_t (&source_grid)[3],
                        const int64_t (&result_grid)[3], int64_t results) {
  Matrix m(arena, results);
  m.entries = arena.take<Entry>(axes[0].count * axes[1].count, axes[2].count);
  for (int64_t position = 0; position < results; ++position) {
    const int64_t row[3] = {position / result_grid[2] / result_grid[1], position / result_grid[2] % result_grid[1],
                            position % result_grid[2]};
    bool inside = true;
    for (int a = 0; a < 3; ++a) inside = inside && row[a] < axes[a].rows;
    if (inside) {
      auto each = [&](int a, auto&& f) {
        for (int64_t e = axes[a].begin[row[a]]; e < axes[a].begin[row[a] + 1]; ++e) f(axes[a].entries[e]);
      };
      each(0, [&](const Entry& d) {
        each(1, [&](const Entry& h) {
          each(2, [&](const Entry& w) {
            m.add((d.source * source_grid[1] + h.source) * source_grid[2] + w.source,
                  (d.tap * axis[1].taps + h.tap) * axis[2].taps + w.tap);
          });
        });
      });
    }
    m.end_row();
  }
  return m;
}

// Binomial taps over their sum, by repeated averaging.
inline const double* binomial(Arena& arena, int64_t k) {
  double* taps = arena.take<double>(k);
  std::fill(taps, taps + k, 0.0);
  taps[0] = 1;
  for (int64_t n = 1; n < k; ++n)
    for (int64_t t = n; t >= 0; --t) taps[t] = (taps[t] + (t ? taps[t - 1] : 0)) / 2;
  return taps;
}

// A plan's taps as accumulators of type A, in the order that Plan::taps says.
template <class A>
struct Taps {
  A* values[3];
  int64_t sizes[3];

  Taps(Arena& arena, const Plan& plan, const Problem& problem) {
    const Axis(&axis)[3] = plan.axis;
    const A* packed = static_cast<const A*>(problem.taps);
    const int64_t rows = problem.tap_rows;
    const int rank = problem.rank;
    const bool lanes_last = plan.lanes > 1;
    int64_t total = 0, first = 0;
    for (int a = 3 - rank; a < 3; ++a) total += axis[a].taps;
    for (int a = 0; a < 3; ++a) {
      const int64_t k = axis[a].taps;
      A* out = values[a] = arena.take<A>(rows, k);
      sizes[a] = rows * k;
      if (a < 3 - rank) {
        drop(a);
        continue;
      }
      const double* constant = packed ? nullptr : binomial(arena, k);
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t t = 0; t < k; ++t)
          out[lanes_last ? t * rows + row : row * k + t] = packed ? packed[row * total + first + t] : A(constant[t]);
      first += k;
    }
  }

  // Leaves an axis out.
  void drop(int a) { std::fill(values[a], values[a] + sizes[a], A(1)); }

  // Replaces the width's taps by the products of all axes', depth first, for shared taps.
  void multiply(Arena& arena) {
    A *product = arena.take<A>(sizes[0] * sizes[1] * sizes[2]), *next = product;
    for (int64_t d = 0; d < sizes[0]; ++d)
      for (int64_t h = 0; h < sizes[1]; ++h)
        for (int64_t w = 0; w < sizes[2]; ++w) *next++ = values[0][d] * values[1][h] * values[2][w];
    values[2] = product;
    sizes[2] = next - product;
  }
};

// A plan and all that it points to.
class Planned {
 public:
  Plan plan;

  Planned(const Problem& problem, bool transposed, const CpuKernels& kernels)
      : kernels_(kernels), wide_(problem.dtype == Dtype::float64), transposed_(transposed) {
    const Shape& shape = problem.shape;
    std::copy(shape.axis, shape.axis + 3, plan.axis);
    plan.channels_last = shape.channels_last;
    plan.images = shape.images;
    plan.planes = shape.channels_last ? 1 : shape.channels;
    plan.lanes = shape.channels_last ? shape.channels : 1;
    plan.packing = Packing(plan.axis, shape.channels_last, shape.channels);
    for (const Axis& a : plan.axis) plan.grid_positions = plan.grid_positions * a.size + a.pooled() - 1;
    ++plan.grid_positions;
    plan.cut_depth = plan.axis[0].pooled() > 1 || plan.axis[0].out() > 1;
    set_taps(problem);
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

  // Chooses to make the max of a plane in one run: where that fits the cache, and no window hangs over. Threads have a
  // say in it, by the bands: both ways give the same bits, but for which NaN a NaN is.
  void choose_whole_planes(bool x_is_dense) {
    bool overhangs = false;
    for (const Axis& a : plan.axis) overhangs = overhangs || a.window_padding > 0;
    plan.whole_planes = !plan.channels_last && plan.bands == 1 && x_is_dense && !overhangs &&
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

  int64_t units() const { return plan.images * plan.planes * plan.bands; }
  // How many units are enough for a thread.
  int64_t grain() const {
    int64_t unit_elements = plan.lanes;
    for (const Axis& a : plan.axis) unit_elements *= std::max(a.size, a.out());
    unit_elements = std::max<int64_t>(1, unit_elements / plan.bands);
    return std::max<int64_t>(1, grain_elements / unit_elements);
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
    const int64_t limit = kernels_.longest_permuted;
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
  void set_taps(const Problem& problem) {
    plan.per_channel = problem.tap_rows > 1;
    if (wide_) point(double_taps_.emplace(arena_, plan, problem));
    else point(float_taps_.emplace(arena_, plan, problem));
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

  const CpuKernels& kernels_;
  Arena arena_;
  bool wide_, transposed_;
  Matrix matrix_[3];
  std::optional<Taps<float>> float_taps_;
  std::optional<Taps<double>> double_taps_;
};

}  // namespace aablur
