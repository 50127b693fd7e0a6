// Instructions on pairs of float16 or bfloat16 in a register, and conversions from and to them.
#include <cmath>

#include "decode.h"

namespace sass {
namespace {

using u32 = uint32_t;

struct Format {
  bool bfloat16;
  float widen(uint16_t half) const { return bfloat16 ? bfloat16_to_float(half) : half_to_float(half); }
  u32 narrow(double value, bool to_zero = false) const {
    return bfloat16 ? to_bfloat16(value, to_zero) : to_half(value, to_zero);
  }
  // What FTZ makes of a half: of float16 alone.
  uint16_t flushed(uint16_t half) const { return !bfloat16 && !(half & 0x7c00) ? half & 0x8000 : half; }
};

Format format(Decoder& d) {
  const bool bfloat16 = d.take("BF16_V2") || d.take("BF16");
  return {bfloat16};
}

// A pair of halves: a register, one of its halves twice, or two immediates (the upper half first).
class Pair {
 public:
  Pair() = default;
  Pair(Decoder& d, size_t& n) {
    Operand first = d.operand(n++);
    negated_ = first.negated, absolute_ = first.absolute;
    first.negated = first.absolute = false;
    // Two immediates have the bits of both.
    if (first.decimal && !d.is(n, Operand::immediate)) d.unknown();
    if (first.decimal) d.ignore_operand(n++);
    if (!first.part.empty() && first.part != "H0_H0" && first.part != "H1_H1" && first.part != "H1_H0") d.unknown();
    low_ = first.part == "H1_H1" ? 16 : 0;
    high_ = first.part == "H0_H0" ? 0 : 16;
    first.part.clear();
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

// x + y by round-to-odd: rounding it once more, to fewer bits, gives what rounding the sum does.
double sum_to_odd(double x, double y) {
  const double sum = x + y;
  if (!std::isfinite(sum)) return sum;
  const double of_y = sum - x, error = (x - (sum - of_y)) + (y - of_y);
  if (error == 0) return sum;
  uint64_t bits;
  std::memcpy(&bits, &sum, 8);
  if ((error > 0) != (sum > 0) && !(bits & 1)) --bits;  // towards zero
  bits |= 1;
  double odd;
  std::memcpy(&odd, &bits, 8);
  return odd;
}

// An operation on each of two halves of two or three operands.
template <class F>
Action pairwise(Decoder& d, int operands, F f) {
  const Format as = format(d);
  d.ignore({"MMA"});
  const bool to_float = d.take("F32"), relu = d.take("RELU"), flush = d.take("FTZ"), saturate = d.take("SAT");
  size_t n = 1;
  Pair source[3];
  for (int s = 0; s < operands; ++s) source[s] = Pair(d, n);
  const Pair a = source[0], b = source[1], c = operands == 3 ? source[2] : source[1];
  const Destination out = d.destination();
  return [=](Warp& w, u32 active) {
    Lanes ra, rb, rc, result;
    const u32 *x = a.read(w, ra), *y = b.read(w, rb), *z = c.read(w, rc);
    for (int l = 0; l < warp_size; ++l) {
      const auto wide = [&](const Pair& from, u32 bits, int part) {
        const uint16_t half = from.bits(bits, part);
        return double(as.widen(flush ? as.flushed(half) : half));
      };
      const auto value = [&](int part) { return f(wide(a, x[l], part), wide(b, y[l], part), wide(c, z[l], part)); };
      if (to_float) {
        result[l] = result_bits(float(value(0)));
        continue;
      }
      result[l] = 0;
      for (int part = 0; part < 2; ++part) {
        double v = value(part);
        if (relu && v < 0) v = 0;
        if (saturate) v = !(v > 0) ? 0 : v > 1 ? 1 : v;
        uint16_t half = uint16_t(as.narrow(v));
        if (flush) half = as.flushed(half);
        if (relu && half == 0x8000) half = 0;
        result[l] |= u32(half) << (16 * part);
      }
    }
    out.write(w, result.v, active);
  };
}

// min or max of two or, VHMNMX, three.
Action minmax(Decoder& d) {
  const Format as = format(d);
  const bool propagates = d.take("NAN"), flush = d.take("FTZ"), of_three = d.instruction.opcode == "VHMNMX";
  size_t n = 1;
  const Pair a(d, n), b(d, n), c = of_three ? Pair(d, n) : b;
  const Predicate is_min = d.predicate(n);
  const Destination out = d.destination();
  const auto choose = [=](uint16_t p, uint16_t q, bool wants_min) {
    const float f = as.widen(p), g = as.widen(q);
    if (std::isnan(f) || std::isnan(g))
      return propagates || (std::isnan(f) && std::isnan(g)) ? uint16_t(0x7fff) : std::isnan(f) ? q : p;
    if (f == g) return uint16_t(wants_min ? p | q : p & q);  // of zeros, -0 is the smaller
    return (f < g) == wants_min ? p : q;
  };
  return [=](Warp& w, u32 active) {
    Lanes ra, rb, rc, result;
    const u32 *x = a.read(w, ra), *y = b.read(w, rb), *z = c.read(w, rc), min = is_min.read(w);
    for (int l = 0; l < warp_size; ++l) {
      result[l] = 0;
      for (int part = 0; part < 2; ++part) {
        uint16_t p = a.bits(x[l], part), q = b.bits(y[l], part), r = c.bits(z[l], part);
        if (flush) p = as.flushed(p), q = as.flushed(q), r = as.flushed(r);
        const bool wants_min = min >> l & 1;
        const uint16_t first = choose(p, q, wants_min);
        result[l] |= u32(of_three ? choose(first, r, wants_min) : first) << (16 * part);
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
  const Pair a(d, n), b(d, n);
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
  const Pair a(d, n), b(d, n);
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

// Two floats -> a pair of halves, the first one the upper; or one -> a half below the upper half of another register.
Action pack(Decoder& d) {
  const bool relu = d.take("RELU"), to_zero = d.take("RZ"), merges = d.take("MERGE_C");
  const Format as = format(d);
  d.ignore({"F16", "F32"});
  if (!merges && !d.take("PACK_AB")) d.unknown();
  const auto narrow = [=](u32 bits) {
    const float v = as_float(bits);
    return as.narrow(relu && !(v > 0) && !std::isnan(v) ? 0 : v, to_zero);
  };
  if (merges)
    return each(d.destination(), d.floating(1), d.source(2, Source::bits),
                [=](u32 x, u32 above) { return (above & 0xffff0000) | narrow(x); });
  return each(d.destination(), d.floating(1), d.floating(2), [=](u32 x, u32 y) { return narrow(x) << 16 | narrow(y); });
}

}  // namespace

void add_half(Table& t) {
  t["HADD2"] = [](Decoder& d) { return pairwise(d, 2, [](double x, double y, double) { return x + y; }); };
  t["HMUL2"] = [](Decoder& d) { return pairwise(d, 2, [](double x, double y, double) { return x * y; }); };
  t["HFMA2"] = [](Decoder& d) {
    return pairwise(d, 3, [](double x, double y, double z) { return sum_to_odd(x * y, z); });
  };
  t["HMNMX2"] = t["VHMNMX"] = minmax;
  t["HSET2"] = set;
  t["HSETP2"] = set_predicates;
  t["F2FP"] = pack;
}

}  // namespace sass
