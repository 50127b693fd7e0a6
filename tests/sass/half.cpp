// Instructions on pairs of float16 or bfloat16 in a register, and conversions from and to them.
#include <cmath>

#include "decode.h"

namespace sass {
namespace {

using u32 = uint32_t;

struct Format {
  bool bfloat16;
  float widen(uint16_t half) const { return bfloat16 ? bfloat16_to_float(half) : half_to_float(half); }
  u32 narrow(double value) const { return bfloat16 ? to_bfloat16(value) : to_half(value); }
};

Format format(Decoder& d) {
  const bool bfloat16 = d.take("BF16_V2") || d.take("BF16");
  return {bfloat16};
}

// A pair of halves: a register, one of its halves twice, or two immediates (the upper half first).
class Pair {
 public:
  Pair() = default;
  Pair(Decoder& d, size_t& n, Format format) {
    Operand first = d.operand(n++);
    negated_ = first.negated, absolute_ = first.absolute;
    first.negated = first.absolute = false;
    if (first.kind == Operand::immediate) {
      if (d.is(n, Operand::immediate)) {
        const Operand& second = d.operand(n++);
        if (!first.decimal || !second.decimal) d.unknown();
        first.bits = format.narrow(first.number) << 16 | format.narrow(second.number);
      }
      first.decimal = false;
    }
    if (!first.part.empty() && first.part != "H0_H0" && first.part != "H1_H1" && first.part != "H1_H0") d.unknown();
    low_ = first.part == "H1_H1" ? 16 : 0;
    high_ = first.part == "H0_H0" ? 0 : 16;
    source_ = Source(first, Source::bits);
  }
  const u32* read(const Warp& w, Lanes& room) const { return source_.read(w, room); }
  // Half `part`, 0 or 1.
  uint16_t bits(u32 pair, int part) const {
    u32 half = pair >> (part ? high_ : low_) & 0xffff;
    if (absolute_) half &= 0x7fff;
    return uint16_t(negated_ ? half ^ 0x8000 : half);
  }

 private:
  Source source_;
  bool negated_ = false, absolute_ = false;
  int low_ = 0, high_ = 16;
};

// An operation on each of two halves of two or three operands.
template <class F>
Action pairwise(Decoder& d, int operands, F f) {
  const Format as = format(d);
  d.ignore({"MMA"});
  const bool to_float = d.take("F32"), relu = d.take("RELU");
  size_t n = 1;
  Pair source[3];
  for (int s = 0; s < operands; ++s) source[s] = Pair(d, n, as);
  const Pair a = source[0], b = source[1], c = operands == 3 ? source[2] : source[1];
  const Destination out = d.destination();
  return [=](Warp& w, u32 active) {
    Lanes ra, rb, rc, result;
    const u32 *x = a.read(w, ra), *y = b.read(w, rb), *z = c.read(w, rc);
    for (int l = 0; l < warp_size; ++l) {
      const auto half = [&](int part) {
        return f(as.widen(a.bits(x[l], part)), as.widen(b.bits(y[l], part)), as.widen(c.bits(z[l], part)));
      };
      if (to_float) {
        result[l] = as_bits(float(half(0)));
        continue;
      }
      double low = half(0), high = half(1);
      if (relu) low = low > 0 || std::isnan(low) ? low : 0, high = high > 0 || std::isnan(high) ? high : 0;
      result[l] = as.narrow(high) << 16 | as.narrow(low);
    }
    out.write(w, result.v, active);
  };
}

uint16_t smaller_or_larger(Format as, uint16_t p, uint16_t q, bool wants_min, bool propagates) {
  const float f = as.widen(p), g = as.widen(q);
  if (std::isnan(f) || std::isnan(g))
    return propagates || (std::isnan(f) && std::isnan(g)) ? 0x7fff : std::isnan(f) ? q : p;
  if (f == g) return uint16_t(wants_min ? p | q : p & q);  // of zeros, -0 is the smaller
  return (f < g) == wants_min ? p : q;
}

// The minimum or maximum of two or three.
template <int Operands>
Action minmax(Decoder& d) {
  const Format as = format(d);
  const bool propagates = d.take("NAN");
  size_t n = 1;
  Pair source[Operands];
  for (Pair& s : source) s = Pair(d, n, as);
  const Pair a = source[0], b = source[1], c = source[Operands - 1];
  const Predicate is_min = d.predicate(n);
  const Destination out = d.destination();
  return [=](Warp& w, u32 active) {
    Lanes ra, rb, rc, result;
    const u32 *x = a.read(w, ra), *y = b.read(w, rb), *z = c.read(w, rc), min = is_min.read(w);
    for (int l = 0; l < warp_size; ++l) {
      result[l] = 0;
      for (int part = 0; part < 2; ++part) {
        uint16_t chosen = smaller_or_larger(as, a.bits(x[l], part), b.bits(y[l], part), min >> l & 1, propagates);
        if (Operands == 3) chosen = smaller_or_larger(as, chosen, c.bits(z[l], part), min >> l & 1, propagates);
        result[l] |= u32(chosen) << (16 * part);
      }
    }
    out.write(w, result.v, active);
  };
}

// A comparison of each half: all bits, or 1.0 (BF), where it holds and the condition does.
Action set(Decoder& d) {
  const Format as = format(d);
  const bool as_number = d.take("BF");
  const Comparison c = comparison(d);
  const std::string combine = d.take_one({"AND", "OR", "XOR"});
  size_t n = 1;
  const Pair a(d, n, as), b(d, n, as);
  const Predicate condition = d.predicate(n);
  const Destination out = d.destination();
  const u32 yes = as_number ? as.narrow(1) : 0xffff;
  const bool is_or = combine == "OR", is_xor = combine == "XOR";
  return [=](Warp& w, u32 active) {
    Lanes ra, rb, result;
    const u32 *x = a.read(w, ra), *y = b.read(w, rb), in = condition.read(w);
    for (int l = 0; l < warp_size; ++l) {
      result[l] = 0;
      for (int part = 0; part < 2; ++part) {
        const bool found = holds(c, as.widen(a.bits(x[l], part)), as.widen(b.bits(y[l], part))), also = in >> l & 1;
        const bool all = is_xor ? found != also : is_or ? found || also : found && also;
        result[l] |= (all ? yes : 0) << (16 * part);
      }
    }
    out.write(w, result.v, active);
  };
}

// A comparison of each half into a predicate of its own; H0_H0 and the like compare one with one.
Action set_predicates(Decoder& d) {
  const Format as = format(d);
  const Comparison c = comparison(d);
  const std::string combine = d.take_one({"AND", "OR", "XOR"});
  const Predicate out0 = d.predicate(0), out1 = d.predicate(1);
  size_t n = 2;
  const Pair a(d, n, as), b(d, n, as);
  const Predicate condition = d.predicate(n);
  const bool is_or = combine == "OR", is_xor = combine == "XOR";
  return [=](Warp& w, u32 active) {
    Lanes ra, rb;
    const u32 *x = a.read(w, ra), *y = b.read(w, rb), in = condition.read(w);
    u32 found[2] = {};
    for (int l = 0; l < warp_size; ++l)
      for (int part = 0; part < 2; ++part)
        found[part] |= u32(holds(c, as.widen(a.bits(x[l], part)), as.widen(b.bits(y[l], part)))) << l;
    const auto combined = [&](u32 v) { return is_xor ? v ^ in : is_or ? v | in : v & in; };
    out0.write(w, combined(found[0]), active);
    out1.write(w, combined(found[1]), active);
  };
}

// Two floats -> a pair of halves, the first one the upper.
Action pack(Decoder& d) {
  const Format as = format(d);
  d.ignore({"F16", "F32"});
  if (!d.take("PACK_AB")) d.unknown();
  return each(d.destination(), d.floating(1), d.floating(2),
              [=](u32 x, u32 y) { return as.narrow(as_float(x)) << 16 | as.narrow(as_float(y)); });
}

}  // namespace

void add_half(Table& t) {
  t["HADD2"] = [](Decoder& d) { return pairwise(d, 2, [](double x, double y, double) { return x + y; }); };
  t["HMUL2"] = [](Decoder& d) { return pairwise(d, 2, [](double x, double y, double) { return x * y; }); };
  t["HFMA2"] = [](Decoder& d) { return pairwise(d, 3, [](double x, double y, double z) { return x * y + z; }); };
  t["HMNMX2"] = minmax<2>;
  t["VHMNMX"] = minmax<3>;
  t["HSET2"] = set;
  t["HSETP2"] = set_predicates;
  t["F2FP"] = pack;
}

}  // namespace sass
