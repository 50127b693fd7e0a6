// Plans made from the ops' arguments: axes, their matrices and the accumulators' taps. No torch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "core/borders.h"
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
  int64_t rows = 0, count = 0;  // of rows ended, of entries
  int64_t interior_begin = 0, interior_end = 0, longest = 0;

  Matrix() = default;
  // For so many rows, and entries of so many outputs, `most` of each.
  Matrix(Arena& arena, int64_t most_rows, int64_t outputs, int64_t most)
      : begin(arena.take<int64_t>(most_rows + 1)), entries(arena.take<Entry>(outputs, most)) {
    begin[0] = 0;
  }
  Table table() const { return {begin, entries, interior_begin, interior_end}; }
  void add(int64_t source, int64_t tap) { entries[count++] = {source, tap}; }
  void end_row() {
    longest = std::max(longest, count - begin[rows]);
    begin[++rows] = count;
  }
};

// Row o: what output o reads.
inline Matrix blur_matrix(Arena& arena, const Axis& axis) {
  Matrix m(arena, axis.out(), axis.out(), axis.taps);
  list_reads(axis, m);
  return m;
}

// Row i: the outputs that read pooled index i.
inline Matrix transposed_matrix(Arena& arena, const Axis& axis) {
  Matrix m(arena, axis.pooled(), axis.out(), axis.taps);
  list_readers(axis, m);
  return m;
}

// One matrix for a plane as a row: (result grid, source grid) from the axes' matrices. Grids may be larger than the
// matrices; result rows stop at `results`.
inline Matrix kronecker(Arena& arena, const Matrix (&axes)[3], const Axis (&axis)[3], const int64_t (&source_grid)[3],
                        const int64_t (&result_grid)[3], int64_t results) {
  Matrix m(arena, results, axes[0].count * axes[1].count, axes[2].count);
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

  // `packed` is null for binomials, or (channels or 1, sum of taps) side by side.
  Taps(Arena& arena, const Axis (&axis)[3], int rank, const A* packed, int64_t rows, bool lanes_last) {
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

}  // namespace aablur
