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

template <class F>
Action arithmetic(Decoder& d, F f) {
  const bool flush = d.take("FTZ"), saturate = d.take("SAT");
  return rounded(rounding(d), each(d.destination(), d.floating(1), d.floating(2), [=](u32 x, u32 y) {
                   const float v = flushed(f(flushed(as_float(x), flush), flushed(as_float(y), flush)), flush);
                   return as_bits(!saturate ? v : !(v > 0) ? 0.f : v > 1 ? 1.f : v);
                 }));
}

Action ffma(Decoder& d) {
  const bool flush = d.take("FTZ"), saturate = d.take("SAT");
  return rounded(
      rounding(d), each(d.destination(), d.floating(1), d.floating(2), d.floating(3), [=](u32 x, u32 y, u32 z) {
        const float v = flushed(
            std::fma(flushed(as_float(x), flush), flushed(as_float(y), flush), flushed(as_float(z), flush)), flush);
        return as_bits(!saturate ? v : !(v > 0) ? 0.f : v > 1 ? 1.f : v);
      }));
}

Action fminmax(Decoder& d) {
  const bool propagates = d.take("NAN");
  d.ignore({"FTZ"});
  const Predicate is_min = d.predicate(3);
  const Destination out = d.destination();
  const Source a = d.floating(1), b = d.floating(2);
  return [=](Warp& w, u32 active) {
    Lanes ra, rb, result;
    const u32 *x = a.read(w, ra), *y = b.read(w, rb), min = is_min.read(w);
    for (int l = 0; l < warp_size; ++l) {
      const float f = as_float(x[l]), g = as_float(y[l]);
      const bool wants_min = min >> l & 1;
      if (std::isnan(f) || std::isnan(g)) {
        result[l] = propagates || (std::isnan(f) && std::isnan(g)) ? 0x7fffffff : std::isnan(f) ? y[l] : x[l];
      } else if (f == g) {
        result[l] = wants_min ? x[l] | y[l] : x[l] & y[l];  // of zeros, -0 is the smaller
      } else {
        result[l] = (f < g) == wants_min ? x[l] : y[l];
      }
    }
    out.write(w, result.v, active);
  };
}

Action fset(Decoder& d) {
  const bool flush = d.take("FTZ");
  const Comparison c = comparison(d);
  const std::string combine = d.take_one({"AND", "OR", "XOR"});
  return compare(
      d.predicate(0), d.predicate(1), d.predicate(4), combine, d.floating(2), d.floating(3),
      [=](u32 x, u32 y, bool, int) { return holds(c, flushed(as_float(x), flush), flushed(as_float(y), flush)); });
}

// Whether x / y must take the slow path of a division: the quotient or a step to it could leave the normal numbers.
bool needs_slow_division(u32 x, u32 y, bool, int) {
  const int ex = int(x >> 23 & 255), ey = int(y >> 23 & 255), exponent = ex - ey;
  return ex == 0 || ex == 255 || ey < 2 || ey > 252 || exponent < -125 || exponent > 125 || ex < 26;
}

Action mufu(Decoder& d) {
  const std::string function = d.take_one({"RCP", "RSQ", "SQRT", "EX2", "LG2", "RCP64H", "RSQ64H"});
  d.ignore({"FTZ"});
  if (function == "RCP64H" || function == "RSQ64H") {  // of the upper word of a double, to the upper word of one
    const bool reciprocal = function == "RCP64H";
    return each(d.destination(), d.source(1, Source::bits), [=](u32 x) {
      const uint64_t whole = uint64_t(x) << 32;
      double v;
      std::memcpy(&v, &whole, 8);
      v = reciprocal ? 1 / v : 1 / std::sqrt(v);
      uint64_t bits;
      std::memcpy(&bits, &v, 8);
      return u32(bits >> 32);
    });
  }
  float (*f)(float) = function == "RCP"    ? +[](float v) { return 1 / v; }
                      : function == "RSQ"  ? +[](float v) { return 1 / std::sqrt(v); }
                      : function == "SQRT" ? +[](float v) { return std::sqrt(v); }
                      : function == "EX2"  ? +[](float v) { return std::exp2(v); }
                                           : +[](float v) { return std::log2(v); };
  return each(d.destination(), d.floating(1), [=](u32 x) { return as_bits(f(as_float(x))); });
}

struct IntegerType {
  int bits;
  bool is_signed;
};

IntegerType integer_type(Decoder& d, const std::string& otherwise) {
  const std::string name = d.take_one({"U8", "S8", "U16", "S16", "U32", "S32", "U64", "S64"}, otherwise);
  return {std::stoi(name.substr(1)), name[0] == 'S'};
}

// Integer -> float32, or float64 in two registers.
Action from_integer(Decoder& d) {
  const bool to_double = d.take("F64");
  d.ignore({"F32"});
  const IntegerType type = integer_type(d, "S32");
  const int mode = rounding(d);
  const Destination out = d.destination();
  const Source low = d.integer(1), top = type.bits == 64 ? d.source(1, Source::bits, 1) : low;
  return rounded(mode, [=](Warp& w, u32 active) {
    Lanes ra, rb, first, second;
    const u32 *x = low.read(w, ra), *y = top.read(w, rb);
    for (int l = 0; l < warp_size; ++l) {
      uint64_t v = type.bits == 64 ? uint64_t(y[l]) << 32 | x[l] : x[l] & ((uint64_t(1) << type.bits) - 1);
      if (type.is_signed) v = uint64_t(int64_t(v << (64 - type.bits)) >> (64 - type.bits));
      if (to_double) {
        const double value = type.is_signed ? double(int64_t(v)) : double(v);
        uint64_t bits;
        std::memcpy(&bits, &value, 8);
        first[l] = u32(bits), second[l] = u32(bits >> 32);
      } else {
        first[l] = as_bits(type.is_signed ? float(int64_t(v)) : float(v));
      }
    }
    out.write(w, first.v, active);
    if (to_double) out.write(w, second.v, active, 1);
  });
}

// Float32, or float64 in two registers -> integer; what lies beyond its range becomes the end of it, NaN 0 (of 64 bits
// 2**63).
Action to_integer(Decoder& d) {
  const std::string how = d.take_one({"TRUNC", "FLOOR", "CEIL"}, "NEAREST");
  d.ignore({"NTZ", "FTZ"});
  const bool from_double = d.take("F64");
  const IntegerType type = integer_type(d, "S32");
  const Destination out = d.destination();
  const bool negated = d.operand(1).negated, absolute = d.operand(1).absolute;
  Operand plain = d.operand(1);
  plain.negated = plain.absolute = false;
  const Source low(plain, Source::floating), top = from_double ? Source(plain, Source::floating, 1) : low;
  return [=](Warp& w, u32 active) {
    Lanes ra, rb, first, second;
    const u32 *x = low.read(w, ra), *y = top.read(w, rb);
    for (int l = 0; l < warp_size; ++l) {
      const uint64_t bits = uint64_t(y[l]) << 32 | x[l];
      double v = as_float(x[l]);
      if (from_double) std::memcpy(&v, &bits, 8);
      if (absolute) v = std::fabs(v);
      if (negated) v = -v;
      v = how == "TRUNC"   ? std::trunc(v)
          : how == "FLOOR" ? std::floor(v)
          : how == "CEIL"  ? std::ceil(v)
                           : std::nearbyint(v);
      const double most = std::ldexp(1., type.bits - type.is_signed), least = type.is_signed ? -most : 0;
      uint64_t result;
      if (std::isnan(v)) {
        result = type.bits == 64 ? uint64_t(1) << 63 : 0;
      } else if (v >= most) {
        result = type.is_signed ? (uint64_t(1) << (type.bits - 1)) - 1 : ~uint64_t(0);
      } else if (v < least) {
        result = uint64_t(int64_t(least));
      } else {
        result = type.is_signed ? uint64_t(int64_t(v)) : uint64_t(v);
      }
      first[l] = u32(result), second[l] = u32(result >> 32);
    }
    out.write(w, first.v, active);
    if (type.bits == 64) out.write(w, second.v, active, 1);
  };
}

}  // namespace

void add_floating(Table& t) {
  t["FADD"] = [](Decoder& d) { return arithmetic(d, [](float x, float y) { return x + y; }); };
  t["FMUL"] = [](Decoder& d) { return arithmetic(d, [](float x, float y) { return x * y; }); };
  t["FFMA"] = ffma;
  t["FMNMX"] = fminmax;
  t["FSETP"] = fset;
  t["FCHK"] = [](Decoder& d) {
    d.ignore({"DIVIDE"});
    return compare(d.predicate(0), Predicate(), Predicate(), "AND", d.floating(1), d.floating(2), needs_slow_division);
  };
  t["MUFU"] = mufu;
  t["I2F"] = t["I2FP"] = from_integer;
  t["F2I"] = to_integer;
}

}  // namespace sass
