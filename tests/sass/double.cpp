// float64 arithmetic: numbers in two registers. Compiled with -frounding-math.
#include <cfenv>
#include <cmath>

#include "decode.h"

namespace sass {
namespace {

using u32 = uint32_t;

class DoubleSource {
 public:
  DoubleSource() = default;
  explicit DoubleSource(Operand operand) : negated_(operand.negated), absolute_(operand.absolute) {
    operand.negated = operand.absolute = false;
    if (operand.kind == Operand::immediate) {
      is_constant_ = true;
      const uint64_t bits = uint64_t(operand.bits) << 32;  // the upper word
      std::memcpy(&constant_, &bits, 8);
    } else {
      low_ = Source(operand, Source::bits), top_ = Source(operand, Source::bits, 1);
    }
  }
  void read(const Warp& w, double (&out)[warp_size]) const {
    if (is_constant_) {
      std::fill_n(out, warp_size, constant_);
    } else {
      Lanes ra, rb;
      const u32 *x = low_.read(w, ra), *y = top_.read(w, rb);
      for (int l = 0; l < warp_size; ++l) {
        const uint64_t bits = uint64_t(y[l]) << 32 | x[l];
        std::memcpy(&out[l], &bits, 8);
      }
    }
    for (double& v : out) {
      if (absolute_) v = std::fabs(v);
      if (negated_) v = -v;
    }
  }

 private:
  Source low_, top_;
  bool negated_ = false, absolute_ = false, is_constant_ = false;
  double constant_ = 0;
};

void write(Warp& w, const Destination& out, const double (&value)[warp_size], u32 active) {
  Lanes low, top;
  for (int l = 0; l < warp_size; ++l) {
    uint64_t bits;
    std::memcpy(&bits, &value[l], 8);
    low[l] = u32(bits), top[l] = u32(bits >> 32);
  }
  out.write(w, low.v, active);
  out.write(w, top.v, active, 1);
}

// f(a, b) or f(a, b, c).
template <class F>
Action arithmetic(Decoder& d, int operands, F f) {
  const int mode = d.take("RZ") ? FE_TOWARDZERO : d.take("RM") ? FE_DOWNWARD : d.take("RP") ? FE_UPWARD : FE_TONEAREST;
  const Destination out = d.destination();
  DoubleSource source[3];
  // DADD is written with an absent middle operand or without: the last one counts.
  for (int s = 0; s < operands; ++s) source[s] = DoubleSource(d.operand(size_t(s) + 1));
  const DoubleSource a = source[0], b = source[1], c = operands == 3 ? source[2] : source[1];
  return [=](Warp& w, u32 active) {
    double x[warp_size], y[warp_size], z[warp_size], result[warp_size];
    a.read(w, x), b.read(w, y), c.read(w, z);
    std::fesetround(mode);
    for (int l = 0; l < warp_size; ++l) result[l] = f(x[l], y[l], z[l]);
    std::fesetround(FE_TONEAREST);
    write(w, out, result, active);
  };
}

// MIN, MAX: whether the first is to be chosen, and whether both are NaN, when the choice is made quiet.
Action dset(Decoder& d) {
  const bool min = d.take("MIN"), chooses = min || d.take("MAX");
  const Comparison c = chooses ? Comparison::lt : comparison(d);
  const std::string combine = d.take_one({"AND", "OR", "XOR"});
  const DoubleSource a(d.operand(2)), b(d.operand(3));
  const Predicate out = d.predicate(0), opposite = d.predicate(1), condition = d.predicate(4);
  const bool is_or = combine == "OR", is_xor = combine == "XOR";
  if (chooses && (is_or || is_xor || d.operand(4).inverted)) d.unknown();
  return [=](Warp& w, u32 active) {
    double x[warp_size], y[warp_size];
    a.read(w, x), b.read(w, y);
    const u32 in = condition.read(w);
    u32 found = 0, both = 0;
    for (int l = 0; l < warp_size; ++l) {
      const bool less = x[l] < y[l] || (x[l] == y[l] && std::signbit(x[l]) && !std::signbit(y[l]));
      const bool first = std::isnan(y[l]) ? !std::isnan(x[l]) : !std::isnan(x[l]) && less == min;
      found |= u32(chooses ? first : holds(c, x[l], y[l])) << l;
      both |= u32(std::isnan(x[l]) && std::isnan(y[l])) << l;
    }
    const auto combined = [&](u32 v) { return is_xor ? v ^ in : is_or ? v | in : v & in; };
    out.write(w, combined(found), active);
    opposite.write(w, chooses ? both : combined(~found), active);
  };
}

}  // namespace

void add_double(Table& t) {
  t["DADD"] = [](Decoder& d) { return arithmetic(d, 2, [](double x, double y, double) { return x + y; }); };
  t["DMUL"] = [](Decoder& d) { return arithmetic(d, 2, [](double x, double y, double) { return x * y; }); };
  t["DFMA"] = [](Decoder& d) {
    return arithmetic(d, 3, [](double x, double y, double z) { return std::fma(x, y, z); });
  };
  t["DSETP"] = dset;
}

}  // namespace sass
