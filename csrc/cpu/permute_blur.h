// The blur along a short row, or of a small plane as one row, inside registers: every output is a few lanes picked
// from the row's vectors and weighed, by tables made once. Borders cost nothing, whatever their mode.
#pragma once

#include <memory>

#include "core/static_switch.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace aablur::AABLUR_ISA {

template <class A>
constexpr int64_t longest_permuted = has_permute<A> ? 4 * lanes<A> : 0;

template <class T, class A = accumulator<T>>
class RegisterPermute {
 public:
  // For rows of `sources` elements and `results` outputs, both at most longest_permuted.
  RegisterPermute(const Table& table, const A* taps, int64_t sources, int64_t results)
      : sources_(sources), results_(results) {
    const int64_t groups = ceil_div(results, lanes<A>);
    bool full = true;  // every output has as many entries as the others of its vector
    begin_.reset(new int64_t[groups + 1]());
    for (int64_t g = 0; g < groups; ++g) {
      int64_t longest = 0, shortest = INT64_MAX;
      for (int64_t o = g * lanes<A>; o < std::min(results, (g + 1) * lanes<A>); ++o) {
        longest = std::max(longest, table.begin[o + 1] - table.begin[o]);
        shortest = std::min(shortest, table.begin[o + 1] - table.begin[o]);
      }
      full = full && longest == shortest;
      begin_[g + 1] = begin_[g] + longest;
    }
    // Missing entries read element `sources`, which partial loads leave zero: there must be such a lane.
    const int64_t needed = sources + (full ? 0 : 1);
    vectors_ = needed <= lanes<A> ? 1 : needed <= 2 * lanes<A> ? 2 : needed <= 4 * lanes<A> ? 4 : 0;
    if (vectors_ == 0) return;
    slots_.reset(new Slot[begin_[groups]]);
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t s = begin_[g]; s < begin_[g + 1]; ++s)
        for (int l = 0; l < lanes<A>; ++l) {
          const int64_t o = g * lanes<A> + l, e = o < results ? table.begin[o] + s - begin_[g] : 0;
          const bool there = o < results && e < table.begin[o + 1];
          slots_[s].index[l] = position(there ? table.entries[e].source : full ? 0 : sources);
          slots_[s].weight[l] = there ? taps[table.entries[e].tap] : A(0);
        }
  }

  bool usable() const { return vectors_ != 0; }

  // Calls body(pass), where pass(count, row, out) gives out = the blur of the sum over r < count of
  // weight * source, with {source, weight} = row(r).
  template <class F>
  void with_pass(F&& body) const {
    static_switch<1, 2, 4>(vectors_, [&](auto vectors) { body(Pass<vectors>(*this)); });
  }

  struct Slot {
    Index<A> index;
    Vector<A> weight;
  };

  // The tables in locals: stores through char pointers would make the compiler read members again.
  template <int Vectors>
  class Pass {
   public:
    explicit Pass(const RegisterPermute& permute)
        : sources_(permute.sources_),
          results_(permute.results_),
          begin_(permute.begin_.get()),
          slots_(permute.slots_.get()) {}

    template <class Row, class O>
    __attribute__((always_inline)) void operator()(int64_t count, Row&& row, O* out) const {
      Vector<A> v[Vectors] = {};
      const int64_t sources = sources_;
      for (int64_t r = 0; r < count; ++r) {
        const auto [source, weight] = row(r);
        const Vector<A> w = Vector<A>{} + weight;
        if constexpr (Vectors == 1) {
          v[0] += w * load_upto(source, sources);
        } else {
          for (int p = 0; p < Vectors; p += 2) {
            const Pair<A> pair = load_pair_upto(source + p * lanes<A>, sources - p * lanes<A>);
            v[p] += w * pair.first;
            v[p + 1] += w * pair.second;
          }
        }
      }
      const Slot* slot = slots_;
      const Slot* const slots = slots_;
      int64_t left = results_;
      for (const int64_t* end = begin_ + 1; left > 0; ++end, left -= lanes<A>, out += lanes<A>) {
        Vector<A> even{}, odd{};  // two sums, to halve the chain of additions
        const Slot* last = slots + *end;
        for (; slot + 1 < last; slot += 2) {
          even += slot[0].weight * picked(v, slot[0].index);
          odd += slot[1].weight * picked(v, slot[1].index);
        }
        if (slot < last) even += slot->weight * picked(v, slot->index), ++slot;
        const Vector<A> total = even + odd;
        if (left >= lanes<A>) store(out, total);
        else store(out, total, left);
      }
    }

   private:
    static Vector<A> picked(const Vector<A> (&v)[Vectors], Index<A> index) {
      const Vector<A> low = choose(v[0], v[Vectors > 1 ? 1 : 0], index);
      if constexpr (Vectors == 4) return (index & 2 * lanes<A>) != 0 ? choose(v[2], v[3], index) : low;
      return low;
    }

    int64_t sources_, results_;
    const int64_t* begin_;
    const Slot* slots_;
  };

 private:
  // The lane, counted through all vectors, that element i is loaded into.
  int64_t position(int64_t i) const {
    if (vectors_ == 1 || !loads_split<T>) return i;
    return i / (2 * lanes<A>)*(2 * lanes<A>)+i % 2 * lanes<A> + i % (2 * lanes<A>) / 2;
  }

  static Vector<A> load_upto(const T* p, int64_t n) { return n >= lanes<A> ? load(p) : load(p, n); }
  static Pair<A> load_pair_upto(const T* p, int64_t n) {
    return n >= 2 * lanes<A> ? load_pair(p) : load_pair(p, std::max<int64_t>(n, 0));
  }

  int64_t sources_, results_;
  int vectors_ = 0;
  std::unique_ptr<int64_t[]> begin_;  // of each result vector's slots
  std::unique_ptr<Slot[]> slots_;
};

}  // namespace aablur::AABLUR_ISA
