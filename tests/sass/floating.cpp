// float32 arithmetic, and conversions between it and integers. Compiled with -frounding-math.
#include <cfenv>
#include <cmath>

#include "decode.h"

namespace sass {
namespace {

using u32 = uint32_t;

int rounding(Decoder& d) {
  if (d.take("RZ")) return FE_TOWARDZERO;
  if (d.take("RM")) return FE_DOWNWARD;
  if (d.take("RP")) return FE_UPWARD;
  d.ignore({"RN"});
  return FE_TONEAREST;
}

Action rounded(int mode, Action action) {
  if (mode == FE_TONEAREST) return action;
  return [=](Warp& w, u32 active) {
    std::fesetround(mode);
    action(w, active);
    std::fesetround(FE_TONEAREST);
  };
}

// Flushes denormals to zero where the instruction does.
float flushed(float v, bool flush) {
  return flush && std::fabs(v) < 0x1p-126f ? std::copysign(0.f, v) : v;
}

// How an instruction treats its float operands and its result.
struct Treatment {
  bool flush, saturate;
  explicit Treatment(Decoder& d) : flush(d.take("FTZ")), saturate(d.take("SAT")) {}
  float operand(u32 bits) const { return flushed(as_float(bits), flush); }
  u32 result(float v) const {
    v = flushed(v, flush);
    return result_bits(!saturate ? v : !(v > 0) ? 0.f : v > 1 ? 1.f : v);
  }
};

template <class F>
Action arithmetic(Decoder& d, F f) {
  const Treatment as(d);
  return rounded(rounding(d), each(d.destination(), d.floating(1), d.floating(2),
                                   [=](u32 x, u32 y) { return as.result(f(as.operand(x), as.operand(y))); }));
}

Action ffma(Decoder& d) {
  const Treatment as(d);
  return rounded(rounding(d),
                 each(d.destination(), d.floating(1), d.floating(2), d.floating(3), [=](u32 x, u32 y, u32 z) {
                   return as.result(std::fma(as.operand(x), as.operand(y), as.operand(z)));
                 }));
}

// XORSIGN: of magnitudes, with the product's sign.
Action fminmax(Decoder& d) {
  const bool propagates = d.take("NAN"), flush = d.take("FTZ"), xor_signs = d.take("XORSIGN");
  const Predicate is_min = d.predicate(3);
  const Destination out = d.destination();
  const auto operand = [&](size_t n) {
    Operand o = d.operand(n);
    if (xor_signs && !o.absolute && o.kind != Operand::immediate) d.unknown();
    if (xor_signs) o.absolute = false;
    return Source(o, Source::floating);
  };
  const Source a = operand(1), b = operand(2);
  return [=](Warp& w, u32 active) {
    Lanes ra, rb, result;
    const u32 *x = a.read(w, ra), *y = b.read(w, rb), min = is_min.read(w);
    for (int l = 0; l < warp_size; ++l) {
      u32 p = as_bits(flushed(as_float(x[l]), flush)), q = as_bits(flushed(as_float(y[l]), flush));
      const u32 sign = (p ^ q) & 0x80000000;
      if (xor_signs) p &= 0x7fffffff, q &= 0x7fffffff;
      const float f = as_float(p), g = as_float(q);
      const bool wants_min = min >> l & 1;
      if (std::isnan(f) || std::isnan(g)) {
        result[l] = propagates || (std::isnan(f) && std::isnan(g)) ? 0x7fffffff : std::isnan(f) ? q : p;
      } else if (f == g) {
        result[l] = wants_min ? p | q : p & q;  // of zeros, -0 is the smaller
      } else {
        result[l] = (f < g) == wants_min ? p : q;
      }
      if (xor_signs && result[l] != 0x7fffffff) result[l] |= sign;
    }
    out.write(w, result.v, active);
  };
}

Action fset_predicate(Decoder& d) {
  const bool flush = d.take("FTZ");
  const Comparison c = comparison(d);
  const std::string combine = d.take_one({"AND", "OR", "XOR"});
  return compare(
      d.predicate(0), d.predicate(1), d.predicate(4), combine, d.floating(2), d.floating(3),
      [=](u32 x, u32 y, bool, int) { return holds(c, flushed(as_float(x), flush), flushed(as_float(y), flush)); });
}

// A comparison as a number: all bits, or 1.0 (BF).
Action fset(Decoder& d) {
  const bool flush = d.take("FTZ"), as_number = d.take("BF");
  const Comparison c = comparison(d);
  const std::string combine = d.take_one({"AND", "OR", "XOR"});
  const bool is_or = combine == "OR", is_xor = combine == "XOR";
  const Predicate condition = d.predicate(3);
  const Destination out = d.destination();
  const Source a = d.floating(1), b = d.floating(2);
  const u32 yes = as_number ? as_bits(1) : ~0u;
  return [=](Warp& w, u32 active) {
    Lanes ra, rb, result;
    const u32 *x = a.read(w, ra), *y = b.read(w, rb), in = condition.read(w);
    for (int l = 0; l < warp_size; ++l) {
      const bool found = holds(c, flushed(as_float(x[l]), flush), flushed(as_float(y[l]), flush)), also = in >> l & 1;
      result[l] = (is_xor ? found != also : is_or ? found || also : found && also) ? yes : 0;
    }
    out.write(w, result.v, active);
  };
}

// Whether x / y must take the slow path of a division: the quotient or a step to it could leave the normal numbers.
bool needs_slow_division(u32 x, u32 y, bool, int) {
  const int ex = int(x >> 23 & 255), ey = int(y >> 23 & 255), exponent = ex - ey;
  return ex == 0 || ex == 255 || ey < 2 || ey > 252 || exponent < -125 || exponent > 125 || ex < 26;
}

// Functions that the hardware approximates, here as near as can be: tests of exact results must not depend on them.
// Denormal operands and results are zeros, of tanh apart; sin and cos are of turns.
Action mufu(Decoder& d) {
  const std::string function =
      d.take_one({"RCP", "RSQ", "SQRT", "EX2", "LG2", "SIN", "COS", "TANH", "RCP64H", "RSQ64H"});
  if (function == "RCP64H" || function == "RSQ64H") {  // of the upper word of a double, to the upper word of one
    const bool reciprocal = function == "RCP64H";
    return each(d.destination(), d.floating(1), [=](u32 x) {
      const uint64_t whole = uint64_t(x) << 32;
      double v;
      std::memcpy(&v, &whole, 8);
      v = reciprocal ? 1 / v : 1 / std::sqrt(v);
      uint64_t bits;
      std::memcpy(&bits, &v, 8);
      return u32(bits >> 32);
    });
  }
  constexpr double turn = 6.283185307179586;
  double (*f)(double) = function == "RCP"    ? +[](double v) { return 1 / v; }
                        : function == "RSQ"  ? +[](double v) { return 1 / std::sqrt(v); }
                        : function == "SQRT" ? +[](double v) { return std::sqrt(v); }
                        : function == "EX2"  ? +[](double v) { return std::exp2(v); }
                        : function == "LG2"  ? +[](double v) { return std::log2(v); }
                        : function == "SIN"  ? +[](double v) { return std::sin(turn * v); }
                        : function == "COS"  ? +[](double v) { return std::cos(turn * v); }
                                             : +[](double v) { return std::tanh(v); };
  const bool flush = function != "TANH";
  return each(d.destination(), d.floating(1),
              [=](u32 x) { return result_bits(flushed(float(f(double(flushed(as_float(x), flush)))), flush)); });
}

struct IntegerType {
  int bits;
  bool is_signed;
};

IntegerType integer_type(Decoder& d, const std::string& otherwise) {
  const std::string name = d.take_one({"U8", "S8", "U16", "S16", "U32", "S32", "U64", "S64"}, otherwise);
  return {std::stoi(name.substr(1)), name[0] == 'S'};
}

// The bit of a register from which on a part of it lies: B1, H1. The operand is left without it.
int take_part(Operand& operand) {
  const std::string part = operand.part;
  operand.part.clear();
  if (part.empty()) return 0;
  const int n = part.size() >= 2 ? part[1] - '0' : -1;
  if (part.size() == 2 && part[0] == 'B' && n >= 0 && n < 4) return 8 * n;
  if ((part.size() == 2 || part == "H0_H0" || part == "H1_H1") && part[0] == 'H' && (n == 0 || n == 1)) return 16 * n;
  throw Fault("unexpected part of " + operand.text);
}

// Integer -> float32, float16, or float64 in two registers. An immediate of 64 bits is the upper word.
Action from_integer(Decoder& d) {
  const bool to_double = d.take("F64"), to_float16 = !to_double && d.take("F16");
  d.ignore({"F32"});
  const IntegerType type = integer_type(d, "S32");
  const int mode = rounding(d);
  const Destination out = d.destination();
  if (to_float16 && mode != FE_TONEAREST) d.unknown();
  Operand plain = d.operand(1);
  const bool negated = plain.negated;
  plain.negated = false;
  const int shift = take_part(plain);
  const bool is_upper = type.bits == 64 && plain.kind == Operand::immediate;
  Operand lower = plain;
  if (is_upper) lower.bits = 0;
  const Source low(lower, Source::bits), top = Source(plain, Source::bits, type.bits == 64 && !is_upper);
  return rounded(mode, [=](Warp& w, u32 active) {
    Lanes ra, rb, first, second;
    const u32 *x = low.read(w, ra), *y = top.read(w, rb);
    for (int l = 0; l < warp_size; ++l) {
      uint64_t v = type.bits == 64 ? uint64_t(y[l]) << 32 | x[l] : x[l] >> shift & ((uint64_t(1) << type.bits) - 1);
      if (negated) v = 0 - v;
      if (type.is_signed) v = uint64_t(int64_t(v << (64 - type.bits)) >> (64 - type.bits));
      if (to_double) {
        const double value = type.is_signed ? double(int64_t(v)) : double(v);
        uint64_t bits;
        std::memcpy(&bits, &value, 8);
        first[l] = u32(bits), second[l] = u32(bits >> 32);
      } else if (to_float16) {  // what a double rounds lies beyond float16's range
        first[l] = to_half(type.is_signed ? double(int64_t(v)) : double(v));
      } else {
        first[l] = as_bits(type.is_signed ? float(int64_t(v)) : float(v));
      }
    }
    out.write(w, first.v, active);
    if (to_double) out.write(w, second.v, active, 1);
  });
}

// A float32, a float16, or a float64 in two registers, with its sign's changes; as a double.
class FloatSource {
 public:
  enum Kind { f16, f32, f64 };
  FloatSource(Operand operand, Kind kind, bool flush)
      : kind_(kind), flush_(flush), negated_(operand.negated), absolute_(operand.absolute) {
    operand.negated = operand.absolute = false;
    shift_ = kind == f16 ? take_part(operand) : 0;
    low_ = Source(operand, Source::bits);
    if (kind != f64) return;
    const bool is_immediate = operand.kind == Operand::immediate;  // which is the upper word
    top_ = is_immediate ? low_ : Source(operand, Source::bits, 1);
    if (is_immediate) operand.bits = 0, low_ = Source(operand, Source::bits);
  }
  void read(const Warp& w, double (&out)[warp_size]) const {
    Lanes ra, rb;
    const u32 *x = low_.read(w, ra), *y = kind_ == f64 ? top_.read(w, rb) : x;
    for (int l = 0; l < warp_size; ++l) {
      const uint64_t bits = uint64_t(y[l]) << 32 | x[l];
      if (kind_ == f64) {
        std::memcpy(&out[l], &bits, 8);
      } else {
        out[l] = kind_ == f16 ? half_to_float(uint16_t(x[l] >> shift_)) : flushed(as_float(x[l]), flush_);
      }
      if (absolute_) out[l] = std::fabs(out[l]);
      if (negated_) out[l] = -out[l];
    }
  }

 private:
  Source low_, top_;
  Kind kind_;
  bool flush_, negated_, absolute_;
  int shift_ = 0;
};

double (*rounding_to_integers(Decoder& d))(double) {
  const std::string how = d.take_one({"TRUNC", "FLOOR", "CEIL"}, "NEAREST");
  return how == "TRUNC"   ? +[](double v) { return std::trunc(v); }
         : how == "FLOOR" ? +[](double v) { return std::floor(v); }
         : how == "CEIL"  ? +[](double v) { return std::ceil(v); }
                          : +[](double v) { return std::nearbyint(v); };
}

FloatSource::Kind float_kind(Decoder& d) {
  if (d.take("F64")) return FloatSource::f64;
  if (d.take("F16")) return FloatSource::f16;
  d.ignore({"F32"});
  return FloatSource::f32;
}

// What lies beyond an integer's range becomes the end of it; NaN 0, or the upper bit where either has 64 bits.
uint64_t clamped(double v, IntegerType type, bool of_double) {
  const double most = 2. * double(uint64_t(1) << (type.bits - type.is_signed - 1)), least = type.is_signed ? -most : 0;
  if (std::isnan(v)) return of_double || type.bits == 64 ? uint64_t(1) << (type.bits - 1) : 0;
  if (v >= most) return ~uint64_t(0) >> (64 - type.bits + type.is_signed);
  if (v < least) return uint64_t(int64_t(least));
  return type.is_signed ? uint64_t(int64_t(v)) : uint64_t(v);
}

// Float -> integer. F2IP packs two bytes below a third operand; known with one byte and zeros.
Action to_integer(Decoder& d) {
  const auto round = rounding_to_integers(d);
  d.ignore({"NTZ"});
  const bool flush = d.take("FTZ"), packs = d.instruction.opcode == "F2IP";
  const FloatSource::Kind kind = float_kind(d);
  const IntegerType type = integer_type(d, "S32");
  const Destination out = d.destination();
  const auto is_zero = [&](size_t n) { return d.is(n, Operand::reg) && d.operand(n).index == zero_register; };
  if (packs && (kind != FloatSource::f32 || type.bits != 8 || !is_zero(1) || !is_zero(3))) d.unknown();
  const FloatSource a(d.operand(packs ? 2 : 1), kind, flush);
  return [=](Warp& w, u32 active) {
    double x[warp_size];
    a.read(w, x);
    Lanes first, second;
    for (int l = 0; l < warp_size; ++l) {
      const uint64_t result = clamped(round(x[l]), type, kind == FloatSource::f64);
      first[l] = u32(result), second[l] = u32(result >> 32);
    }
    out.write(w, first.v, active);
    if (type.bits == 64) out.write(w, second.v, active, 1);
  };
}

// Rounded to an integer, in the same format.
Action round_in_place(Decoder& d) {
  const auto round = rounding_to_integers(d);
  const bool flush = d.take("FTZ");
  const FloatSource::Kind kind = float_kind(d);
  const Destination out = d.destination();
  const FloatSource a(d.operand(1), kind, flush);
  return [=](Warp& w, u32 active) {
    double x[warp_size];
    a.read(w, x);
    Lanes first, second;
    for (int l = 0; l < warp_size; ++l) {
      const double v = round(x[l]);
      uint64_t bits;
      std::memcpy(&bits, &v, 8);
      first[l] = kind == FloatSource::f64   ? u32(bits)
                 : kind == FloatSource::f16 ? u32(to_half(v))
                                            : result_bits(float(v));
      second[l] = u32(bits >> 32);
    }
    out.write(w, first.v, active);
    if (kind == FloatSource::f64) out.write(w, second.v, active, 1);
  };
}

// Between float formats: F2F.to.from.
Action convert(Decoder& d) {
  const bool flush = d.take("FTZ"), saturate = d.take("SAT");
  const int mode = rounding(d);
  std::vector<std::string> types;
  for (const std::string& m : d.instruction.modifiers)
    if ((m == "F64" || m == "F32" || m == "F16" || m == "BF16") && d.take(m)) types.push_back(m);
  if (types.size() != 2 || types[1] == "BF16") d.unknown();
  const std::string to = types[0];
  const bool to_half_format = to == "F16" || to == "BF16";
  if (to_half_format && (saturate || (mode != FE_TONEAREST && mode != FE_TOWARDZERO && to == "BF16"))) d.unknown();
  const Destination out = d.destination();
  const FloatSource a(d.operand(1),
                      types[1] == "F64"   ? FloatSource::f64
                      : types[1] == "F16" ? FloatSource::f16
                                          : FloatSource::f32,
                      flush);
  const auto half_of = [=](double v) {
    uint16_t bits = to == "F16" ? to_half(v, mode != FE_TONEAREST) : to_bfloat16(v, mode == FE_TOWARDZERO);
    const bool away = (mode == FE_UPWARD && v > 0) || (mode == FE_DOWNWARD && v < 0);
    if (away && double(half_to_float(bits)) != v && (bits & 0x7fff) < 0x7c00) ++bits;
    return u32(bits);
  };
  return [=](Warp& w, u32 active) {
    double x[warp_size];
    a.read(w, x);
    float single[warp_size];
    rounded(mode, [&](Warp&, u32) {
      for (int l = 0; l < warp_size; ++l) single[l] = float(x[l]);
    })(w, active);
    Lanes first, second;
    for (int l = 0; l < warp_size; ++l) {
      uint64_t bits;
      std::memcpy(&bits, &x[l], 8);
      second[l] = u32(bits >> 32);
      if (to == "F64") {
        first[l] = u32(bits);
      } else if (to == "F32") {
        const float v = flushed(single[l], flush);
        first[l] = result_bits(!saturate ? v : !(v > 0) ? 0.f : v > 1 ? 1.f : v);
      } else {
        first[l] = half_of(x[l]);
      }
    }
    out.write(w, first.v, active);
    if (to == "F64") out.write(w, second.v, active, 1);
  };
}

}  // namespace

void add_floating(Table& t) {
  t["FADD"] = [](Decoder& d) { return arithmetic(d, [](float x, float y) { return x + y; }); };
  t["FMUL"] = [](Decoder& d) { return arithmetic(d, [](float x, float y) { return x * y; }); };
  t["FFMA"] = ffma;
  t["FMNMX"] = fminmax;
  t["FSETP"] = fset_predicate;
  t["FSET"] = fset;
  t["FCHK"] = [](Decoder& d) {
    d.ignore({"DIVIDE"});
    return compare(d.predicate(0), Predicate(), Predicate(), "AND", d.floating(1), d.floating(2), needs_slow_division);
  };
  t["MUFU"] = mufu;
  t["I2F"] = t["I2FP"] = from_integer;
  t["F2I"] = t["F2IP"] = to_integer;
  t["FRND"] = round_in_place;
  t["F2F"] = convert;
}

}  // namespace sass
