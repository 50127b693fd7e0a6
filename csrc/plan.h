// Plans made from the ops' arguments: axes, their matrices and the accumulators' taps. No torch.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu_kernels.h"
#include "prologue.h"

namespace aablur {

// Owns what a Plan points to.
struct Matrix {
  std::vector<int64_t> begin{0};
  std::vector<Entry> entries;
  int64_t interior_begin = 0, interior_end = 0, longest = 0;

  Table table() const { return {begin.data(), entries.data(), interior_begin, interior_end}; }
  void end_row() {
    longest = std::max(longest, int64_t(entries.size()) - begin.back());
    begin.push_back(int64_t(entries.size()));
  }
};

// Row o: what output o reads.
inline Matrix blur_matrix(const Axis& axis) {
  Matrix m;
  const int64_t out = axis.out(), n = axis.pooled();
  m.begin.reserve(out + 1);
  m.entries.reserve(out * axis.taps);
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t tap = 0; tap < axis.taps; ++tap) {
      const int64_t source = axis.fold(o * axis.stride - axis.before + tap);
      if (source != outside) m.entries.push_back({source, tap});
    }
    m.end_row();
  }
  m.interior_begin = std::clamp<int64_t>(ceil_div(axis.before, axis.stride), 0, out);
  m.interior_end = std::clamp(floor_div(n - axis.taps + axis.before, axis.stride) + 1, m.interior_begin, out);
  return m;
}

// Row i: the outputs that read pooled index i.
inline Matrix transposed_matrix(const Axis& axis) {
  Matrix m;
  const int64_t out = axis.out(), n = axis.pooled();
  m.begin.reserve(n + 1);
  m.entries.reserve(out * axis.taps);
  bool ended = false;
  for (int64_t i = 0; i < n; ++i) {
    axis.readers(i, [&](int64_t o, int64_t tap) { m.entries.push_back({o, tap}); });
    m.end_row();
    // Interior: i is read as itself alone, and no tap falls on an output that is not there.
    int64_t copies = 0;
    axis.unfold(i, [&](int64_t p) { copies += p == i ? 1 : 2; });
    const bool interior = copies == 1 && i + axis.before >= axis.taps - 1 && i + axis.before < out * axis.stride;
    if (interior && !ended) {
      if (m.interior_begin == m.interior_end) m.interior_begin = i;
      m.interior_end = i + 1;
    } else if (m.interior_end > 0) {
      ended = true;
    }
  }
  return m;
}

// One matrix for a plane as a row: (result grid, source grid) from the axes' matrices. Grids may be larger than the
// matrices; result rows stop at `results`.
inline Matrix kronecker(const Matrix (&axes)[3], const Axis (&axis)[3], const int64_t (&source_grid)[3],
                        const int64_t (&result_grid)[3], int64_t results) {
  Matrix m;
  m.begin.reserve(results + 1);
  m.entries.reserve(axes[0].entries.size() * axes[1].entries.size() * axes[2].entries.size());
  for (int64_t position = 0; position < results; ++position) {
    const int64_t row[3] = {position / result_grid[2] / result_grid[1], position / result_grid[2] % result_grid[1],
                            position % result_grid[2]};
    bool inside = true;
    for (int a = 0; a < 3; ++a) inside = inside && row[a] + 1 < int64_t(axes[a].begin.size());
    if (inside) {
      auto each = [&](int a, auto&& f) {
        for (int64_t e = axes[a].begin[row[a]]; e < axes[a].begin[row[a] + 1]; ++e) f(axes[a].entries[e]);
      };
      each(0, [&](const Entry& d) {
        each(1, [&](const Entry& h) {
          each(2, [&](const Entry& w) {
            m.entries.push_back({(d.source * source_grid[1] + h.source) * source_grid[2] + w.source,
                                 (d.tap * axis[1].taps + h.tap) * axis[2].taps + w.tap});
          });
        });
      });
    }
    m.end_row();
  }
  return m;
}

// Binomial taps over their sum, by repeated averaging.
inline std::vector<double> binomial(int64_t k) {
  std::vector<double> taps(k);
  taps[0] = 1;
  for (int64_t n = 1; n < k; ++n)
    for (int64_t t = n; t >= 0; --t) taps[t] = (taps[t] + (t ? taps[t - 1] : 0)) / 2;
  return taps;
}

// A plan's taps as accumulators of type A, in the order that Plan::taps says.
template <class A>
struct Taps {
  std::vector<A> values[3];

  // `packed` is null for binomials, or (channels or 1, sum of taps) side by side.
  Taps(const Axis (&axis)[3], int rank, const A* packed, int64_t rows, bool lanes_last) {
    int64_t total = 0, first = 0;
    for (int a = 3 - rank; a < 3; ++a) total += axis[a].taps;
    for (int a = 0; a < 3; ++a) {
      const int64_t k = axis[a].taps;
      std::vector<A>& out = values[a];
      out.assign(rows * k, A(1));
      if (a < 3 - rank) continue;
      const std::vector<double> constant = packed ? std::vector<double>() : binomial(k);
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t t = 0; t < k; ++t)
          out[lanes_last ? t * rows + row : row * k + t] = packed ? packed[row * total + first + t] : A(constant[t]);
      first += k;
    }
  }

  // Replaces the width's taps by the products of all axes', depth first, for shared taps.
  void multiply() {
    std::vector<A> product;
    product.reserve(values[0].size() * values[1].size() * values[2].size());
    for (A d : values[0])
      for (A h : values[1])
        for (A w : values[2]) product.push_back(d * h * w);
    values[2] = std::move(product);
  }
};

}  // namespace aablur
