// Integer and bit instructions, of the vector and of the uniform datapath.
#include <algorithm>
#include <utility>

#include "decode.h"

namespace sass {
namespace {

using u32 = uint32_t;
using u64 = uint64_t;

u64 pair(u32 low, u32 high) {
  return u64(high) << 32 | low;
}

// The upper word of an operand of 64 bits; an operand that is negated or inverted is so as a whole.
Source upper(Decoder& d, size_t n) {
  Operand plain = d.operand(n);
  plain.negated = plain.inverted = false;
  return Source(plain, Source::bits, 1);
}

// a * b + c, and its wide form of 64 bits: IMAD.WIDE, IMAD.HI.
Action imad(Decoder& d) {
  // Without an effect: how the compiler came to use a multiplication.
  d.ignore({"MOV", "SHL", "IADD"});
  const bool is_unsigned = d.take("U32"), wide = d.take("WIDE"), high = d.take("HI"), extended = d.take("X");
  size_t n = 1;
  Predicate carry_out, carry_in;
  if (d.is(n, Operand::predicate)) carry_out = d.predicate(n++);
  if (extended) carry_in = d.predicate(n + 3);
  const Destination out = d.destination();
  const Source a = d.integer(n), b = d.integer(n + 1);
  if (!wide && !high) {
    if (n != 1) d.unknown();
    if (!extended) return each(out, a, b, d.integer(n + 2), [](u32 x, u32 y, u32 z) { return x * y + z; });
  }
  const bool negated = d.operand(n + 2).negated, inverted = d.operand(n + 2).inverted;
  Operand plain = d.operand(n + 2);
  plain.negated = plain.inverted = false;
  const Source c(plain, Source::bits), c_upper = wide || high ? upper(d, n + 2) : Source();
  return [=](Warp& w, u32 active) {
    Lanes ra, rb, rc, rd, low, top;
    const u32 *x = a.read(w, ra), *y = b.read(w, rb), *z = c.read(w, rc), *z_upper = c_upper.read(w, rd);
    const u32 in = extended ? carry_in.read(w) : 0;
    u32 carries = 0;
    for (int l = 0; l < warp_size; ++l) {
      const u64 product = is_unsigned ? u64(x[l]) * y[l] : u64(int64_t(int32_t(x[l])) * int32_t(y[l]));
      u64 addend = wide || high ? pair(z[l], z_upper[l]) : z[l], sum;
      if (negated) addend = 0 - addend;
      if (inverted) addend = ~addend;
      bool carry = __builtin_add_overflow(product, addend, &sum);
      if (in >> l & 1) carry |= __builtin_add_overflow(sum, u64(1), &sum);
      low[l] = u32(sum), top[l] = u32(sum >> 32);
      carries |= u32(carry) << l;
    }
    if (high) {
      out.write(w, top.v, active);
    } else {
      out.write(w, low.v, active);
      if (wide) out.write(w, top.v, active, 1);
    }
    carry_out.write(w, carries, active);
  };
}

// The sum of two or three, with up to two carries out and, extended, up to two in. Of an extended sum the negative of
// an operand is its complement: the 1 that is missing comes in as a carry.
Action iadd3(Decoder& d) {
  const bool extended = d.take("X");
  size_t n = 1;
  Predicate out1, out2, in1, in2;
  if (d.is(n, Operand::predicate)) out1 = d.predicate(n++);
  if (d.is(n, Operand::predicate)) out2 = d.predicate(n++);
  const size_t sources = d.instruction.opcode == "IADD" ? 2 : 3;
  bool has_in1 = false, has_in2 = false;
  if (extended) {
    if ((has_in1 = d.is(n + sources, Operand::predicate))) in1 = d.predicate(n + sources);
    if ((has_in2 = d.is(n + sources + 1, Operand::predicate))) in2 = d.predicate(n + sources + 1);
  }
  Source source[3];
  u32 flip[3] = {};
  u64 extra = 0;
  for (size_t s = 0; s < sources; ++s) {
    Operand operand = d.operand(n + s);
    if (operand.absolute) d.unknown();
    if (operand.negated || operand.inverted) flip[s] = ~0u;
    if (operand.negated && !extended) ++extra;
    operand.negated = operand.inverted = false;
    source[s] = Source(operand, Source::bits);
  }
  const Destination out = d.destination();
  const u32 flip0 = flip[0], flip1 = flip[1], flip2 = flip[2];
  const Source a = source[0], b = source[1], c = sources == 3 ? source[2] : source[1];
  const u64 with_c = sources == 3;
  return [=](Warp& w, u32 active) {
    Lanes ra, rb, rc, result;
    const u32 *x = a.read(w, ra), *y = b.read(w, rb), *z = c.read(w, rc);
    const u32 i1 = has_in1 ? in1.read(w) : 0, i2 = has_in2 ? in2.read(w) : 0;
    u32 carry1 = 0, carry2 = 0;
    for (int l = 0; l < warp_size; ++l) {
      const u64 sum =
          u64(x[l] ^ flip0) + (y[l] ^ flip1) + with_c * (z[l] ^ flip2) + extra + (i1 >> l & 1) + (i2 >> l & 1);
      result.v[l] = u32(sum);
      carry1 |= u32((sum >> 32) >= 1) << l;
      carry2 |= u32((sum >> 32) >= 2) << l;
    }
    out.write(w, result.v, active);
    out1.write(w, carry1, active);
    out2.write(w, carry2, active);
  };
}

// (a << shift) + b; HI adds the upper word of the shifted pair (a, c), SX32 of a's sign extension.
Action lea(Decoder& d) {
  const bool high = d.take("HI"), extended = d.take("X"), sign = d.take("SX32");
  size_t n = 1;
  Predicate carry_out, carry_in;
  if (d.is(n, Operand::predicate)) carry_out = d.predicate(n++);
  const Destination out = d.destination();
  // -a is ~(a << shift) and a 1 carried in: of a zero it carries out.
  Operand shifted = d.operand(n);
  const bool negated = std::exchange(shifted.negated, false);
  if (negated && high) d.unknown();
  const Source a(shifted, Source::bits), b = d.integer(n + 1);
  size_t at = n + 2;
  const bool has_pair = high && !sign;
  const Source c = has_pair ? d.integer(at++) : a;
  const u32 shift = at < d.count() && !d.is(at, Operand::predicate) ? d.immediate(at++) & 31 : 0;
  if (extended) carry_in = d.predicate(at);
  return [=](Warp& w, u32 active) {
    Lanes ra, rb, rc, result;
    const u32 *x = a.read(w, ra), *y = b.read(w, rb), *z = c.read(w, rc);
    const u32 in = extended ? carry_in.read(w) : 0;
    u32 carries = 0;
    for (int l = 0; l < warp_size; ++l) {
      const u64 whole = has_pair ? pair(x[l], z[l]) : sign ? u64(int64_t(int32_t(x[l]))) : x[l];
      const u32 part = u32((whole << shift) >> (high ? 32 : 0));
      const u64 sum = u64(negated ? ~part : part) + negated + y[l] + (in >> l & 1);
      result[l] = u32(sum);
      carries |= u32(sum >> 32 & 1) << l;
    }
    out.write(w, result.v, active);
    carry_out.write(w, carries, active);
  };
}

u32 by_table(u32 table, u32 a, u32 b, u32 c) {
  u32 v = 0;
  for (int t = 0; t < 8; ++t)
    if (table >> t & 1) v |= (t & 4 ? a : ~a) & (t & 2 ? b : ~b) & (t & 1 ? c : ~c);
  return v;
}

// Any function of three bits, by a table of its values; into a predicate whether any bit is set.
Action lop3(Decoder& d) {
  d.ignore({"LUT"});
  const bool is_and = d.take("PAND");
  const size_t n = d.is(0, Operand::predicate) ? 1 : 0;
  const Destination out = d.destination(n);
  const Source a = d.integer(n + 1), b = d.integer(n + 2), c = d.integer(n + 3);
  const u32 table = d.immediate(n + 4);
  if (n == 0) {
    switch (table) {  // what is met most
      case 0xc0: return each(out, a, b, [](u32 x, u32 y) { return x & y; });
      case 0xfc: return each(out, a, b, [](u32 x, u32 y) { return x | y; });
      case 0x3c: return each(out, a, b, [](u32 x, u32 y) { return x ^ y; });
      default: return each(out, a, b, c, [table](u32 x, u32 y, u32 z) { return by_table(table, x, y, z); });
    }
  }
  const Predicate any = d.predicate(0), condition = d.predicate(n + 5);
  return [=](Warp& w, u32 active) {
    Lanes ra, rb, rc, result;
    const u32 *x = a.read(w, ra), *y = b.read(w, rb), *z = c.read(w, rc), in = condition.read(w);
    u32 found = 0;
    for (int l = 0; l < warp_size; ++l) {
      result[l] = by_table(table, x[l], y[l], z[l]);
      found |= u32(result[l] != 0) << l;
    }
    out.write(w, result.v, active);
    any.write(w, is_and ? found & in : found | in, active);
  };
}

Action plop3(Decoder& d) {
  d.ignore({"LUT"});
  const Predicate out1 = d.predicate(0), out2 = d.predicate(1);
  const Predicate a = d.predicate(2), b = d.predicate(3), c = d.predicate(4);
  const u32 table1 = d.immediate(5), table2 = d.count() > 6 ? d.immediate(6) : 0;
  return [=](Warp& w, u32 active) {
    const u32 x = a.read(w), y = b.read(w), z = c.read(w);
    out1.write(w, by_table(table1, x, y, z), active);
    out2.write(w, by_table(table2, x, y, z), active);
  };
}

// The pair (c, a) shifted: left, the upper word; right, the lower; HI the upper.
Action shf(Decoder& d) {
  const bool left = d.take("L"), high = d.take("HI"), wraps = d.take("W");
  if (!left && !d.take("R")) d.unknown();
  const std::string type = d.take_one({"U32", "S32", "U64", "S64"}, "U32");
  const bool is_64 = type == "U64" || type == "S64", is_signed = type[0] == 'S';
  const u32 most = is_64 ? 64 : 32, wrap = is_64 ? 63 : 31;
  return each(d.destination(), d.integer(1), d.integer(2), d.integer(3), [=](u32 low, u32 by, u32 top) {
    const u32 n = wraps ? by & wrap : std::min(by, most);
    const u64 v = pair(low, top);
    if (n == 64) return is_signed && !left ? u32(int64_t(v) >> 63) : 0;
    if (left) return high ? u32((v << n) >> 32) : n >= 32 ? 0 : u32(v << n);
    const u64 right = is_signed ? u64(int64_t(v) >> n) : v >> n;
    return high ? u32(right >> 32) : u32(right);
  });
}

// Four bytes chosen of the eight of (c, a); a choice of 8 or more repeats the byte's sign.
u32 permuted(u32 a, u32 choices, u32 c) {
  const u64 v = pair(a, c);
  u32 out = 0;
  for (int i = 0; i < 4; ++i) {
    const u32 choice = choices >> (4 * i) & 15, byte = u32(v >> ((choice & 7) * 8)) & 255;
    out |= (choice & 8 ? (byte & 0x80 ? 255u : 0u) : byte) << (8 * i);
  }
  return out;
}

// The choices that a mode makes of a number from 0 to 3: four bytes from there on, one four times, ...
Action prmt(Decoder& d) {
  static const std::vector<std::string> modes = {"F4E", "B4E", "RC8", "ECL", "ECR", "RC16"};
  static const u32 choices[][4] = {{0x3210, 0x4321, 0x5432, 0x6543}, {0x5670, 0x6701, 0x7012, 0x0123},
                                   {0x0000, 0x1111, 0x2222, 0x3333}, {0x3210, 0x3211, 0x3222, 0x3333},
                                   {0x0000, 0x1110, 0x2210, 0x3210}, {0x1010, 0x3232, 0x1010, 0x3232}};
  const std::string mode = d.take_one(modes, "index");
  const Destination out = d.destination();
  const Source a = d.integer(1), b = d.integer(2), c = d.integer(3);
  if (mode == "index") return each(out, a, b, c, permuted);
  const u32* of_mode = choices[std::find(modes.begin(), modes.end(), mode) - modes.begin()];
  return each(out, a, b, c, [=](u32 x, u32 n, u32 z) { return permuted(x, of_mode[n & 3], z); });
}

Action iset(Decoder& d) {
  const bool is_unsigned = d.take("U32"), extended = d.take("EX");
  const Comparison c = comparison(d);
  const std::string combine = d.take_one({"AND", "OR", "XOR"});
  Predicate low;
  if (extended) low = d.predicate(5);
  const Predicate out = d.predicate(0), opposite = d.predicate(1), condition = d.predicate(4);
  const Source a = d.integer(2), b = d.integer(3);
  const auto holds_for = [=](u32 x, u32 y) {
    return is_unsigned ? holds<int64_t>(c, x, y) : holds<int64_t>(c, int32_t(x), int32_t(y));
  };
  if (!extended)
    return compare(out, opposite, condition, combine, a, b, [=](u32 x, u32 y, bool, int) { return holds_for(x, y); });
  // Of the upper words: where they are alike, the lower ones' comparison decides.
  const bool is_ne = c == Comparison::ne, is_eq = c == Comparison::eq;
  return [=](Warp& w, u32 active) {
    const u32 of_low = low.read(w);
    compare(out, opposite, condition, combine, a, b, [=](u32 x, u32 y, bool, int l) {
      const bool lower = of_low >> l & 1;
      if (is_ne) return x != y || lower;
      if (is_eq) return x == y && lower;
      return x == y ? lower : holds_for(x, y);
    })(w, active);
  };
}

u32 sum_of_halves(u32 x, u32 y) {
  return ((x + y) & 0xffff) | ((x & 0xffff0000) + (y & 0xffff0000));
}

// Numbers in a register that min and max are of: one, or two of 16 bits.
struct Numbers {
  bool is_unsigned, halves, relu;
  explicit Numbers(Decoder& d) {
    const std::string type = d.take_one({"U32", "S32", "U16x2", "S16x2"}, "S32");
    is_unsigned = type[0] == 'U', halves = type.size() > 3, relu = d.take("RELU");
  }
  u32 choose(u32 x, u32 y, bool min) const {
    if (!halves) return chosen(x, y, min);
    return chosen(x & 0xffff, y & 0xffff, min) | chosen(x >> 16, y >> 16, min) << 16;
  }
  u32 sum(u32 x, u32 y) const { return halves ? sum_of_halves(x, y) : x + y; }

 private:
  int64_t value(u32 x) const { return is_unsigned ? int64_t(x) : halves ? int64_t(int16_t(x)) : int64_t(int32_t(x)); }
  u32 chosen(u32 x, u32 y, bool min) const {
    const u32 result = (value(x) < value(y)) == min ? x : y;
    return relu && value(result) < 0 ? 0 : result;
  }
};

Action minmax(Decoder& d) {
  const Numbers as(d);
  const Predicate is_min = d.predicate(3);
  const Destination out = d.destination();
  const Source a = d.integer(1), b = d.integer(2);
  return [=](Warp& w, u32 active) {
    Lanes ra, rb, result;
    const u32 *x = a.read(w, ra), *y = b.read(w, rb), min = is_min.read(w);
    for (int l = 0; l < warp_size; ++l) result[l] = as.choose(x[l], y[l], min >> l & 1);
    out.write(w, result.v, active);
  };
}

// min or max of three, or of a + b and c.
Action minmax3(Decoder& d, bool adds) {
  const Numbers as(d);
  const Predicate is_min = d.predicate(4);
  const Destination out = d.destination();
  const Source a = d.integer(1), b = d.integer(2), c = d.integer(3);
  return [=](Warp& w, u32 active) {
    Lanes ra, rb, rc, result;
    const u32 *x = a.read(w, ra), *y = b.read(w, rb), *z = c.read(w, rc), min = is_min.read(w);
    for (int l = 0; l < warp_size; ++l) {
      const u32 first = adds ? as.sum(x[l], y[l]) : as.choose(x[l], y[l], min >> l & 1);
      result[l] = as.choose(first, z[l], min >> l & 1);
    }
    out.write(w, result.v, active);
  };
}

// Products of four bytes each, summed.
Action dot_product(Decoder& d) {
  if (!d.take("4A")) d.unknown();
  bool is_signed[2];
  int n = 0;
  for (const std::string& m : d.instruction.modifiers)
    if ((m == "S8" || m == "U8") && n < 2 && d.take(m)) is_signed[n++] = m == "S8";
  if (n != 2) d.unknown();
  const bool first = is_signed[0], second = is_signed[1];
  return each(d.destination(), d.integer(1), d.integer(2), d.integer(3), [=](u32 x, u32 y, u32 z) {
    for (int s = 0; s < 32; s += 8) {
      const int p = first ? int8_t(x >> s) : uint8_t(x >> s), q = second ? int8_t(y >> s) : uint8_t(y >> s);
      z += u32(p * q);
    }
    return z;
  });
}

// Integers to narrower ones, which their ends stand for where they do not fit.
Action narrow(Decoder& d) {
  static const std::vector<std::string> types = {"S8", "U8", "S16", "U16", "S32", "U32"};
  if (d.instruction.modifiers.size() != 3 || !d.take("SAT")) d.unknown();
  const std::string to = d.instruction.modifiers[0], of = d.instruction.modifiers[1];
  if (!d.take(d.take_one(types) == to ? of : to) || of.substr(1) != "32") d.unknown();
  const int bits = std::stoi(to.substr(1));
  const int64_t least = to[0] == 'S' ? -(int64_t(1) << (bits - 1)) : 0,
                most = (int64_t(1) << (to[0] == 'S' ? bits - 1 : bits)) - 1;
  const bool is_unsigned = of[0] == 'U';
  return each(d.destination(), d.integer(1), [=](u32 x) {
    return u32(std::clamp<int64_t>(is_unsigned ? int64_t(x) : int64_t(int32_t(x)), least, most));
  });
}

}  // namespace

void add_integer(Table& t) {
  t["IMAD"] = imad;
  t["IADD3"] = t["IADD"] = iadd3;
  t["VIADD"] = [](Decoder& d) {
    if (!d.take("16x2")) return each(d.destination(), d.integer(1), d.integer(2), [](u32 x, u32 y) { return x + y; });
    if (d.operand(1).negated || d.operand(2).negated) d.unknown();
    return each(d.destination(), d.integer(1), d.integer(2), sum_of_halves);
  };
  t["LEA"] = lea;
  t["LOP3"] = lop3;
  t["PLOP3"] = plop3;
  t["SHF"] = shf;
  t["PRMT"] = prmt;
  t["ISETP"] = iset;
  t["IMNMX"] = t["VIMNMX"] = minmax;
  t["VIMNMX3"] = [](Decoder& d) { return minmax3(d, false); };
  t["VIADDMNMX"] = [](Decoder& d) { return minmax3(d, true); };
  t["IDP"] = dot_product;
  t["I2I"] = narrow;
  t["VABSDIFF"] = [](Decoder& d) {  // |a - b| + c
    const bool is_unsigned = d.take("U32");
    return each(d.destination(), d.integer(1), d.integer(2), d.integer(3), [=](u32 x, u32 y, u32 z) {
      return z + ((is_unsigned ? x < y : int32_t(x) < int32_t(y)) ? y - x : x - y);
    });
  };
  t["IABS"] = [](Decoder& d) {
    return each(d.destination(), d.integer(1), [](u32 x) { return int32_t(x) < 0 ? 0 - x : x; });
  };
  t["POPC"] = [](Decoder& d) {
    return each(d.destination(), d.integer(1), [](u32 x) { return u32(__builtin_popcount(x)); });
  };
  t["BREV"] = [](Decoder& d) {
    return each(d.destination(), d.integer(1), [](u32 x) {
      u32 out = 0;
      for (int b = 0; b < 32; ++b) out |= (x >> b & 1) << (31 - b);
      return out;
    });
  };
  // The place of the leading bit; of negative numbers, of the leading 0. SH: how far it is from bit 31.
  t["FLO"] = [](Decoder& d) {
    const bool is_unsigned = d.take("U32"), shift = d.take("SH");
    return each(d.destination(), d.integer(1), [=](u32 x) {
      const u32 v = !is_unsigned && int32_t(x) < 0 ? ~x : x;
      if (v == 0) return ~0u;
      return shift ? u32(__builtin_clz(v)) : u32(31 - __builtin_clz(v));
    });
  };
  // The lowest n bits of a, extended by their sign or by 0; W: n modulo 32.
  t["SGXT"] = [](Decoder& d) {
    const bool is_unsigned = d.take("U32"), wraps = d.take("W");
    return each(d.destination(), d.integer(1), d.integer(2), [=](u32 x, u32 count) {
      const u32 n = wraps ? count & 31 : count;
      if (n >= 32) return x;
      if (n == 0) return 0u;
      return is_unsigned ? x & ((1u << n) - 1) : u32(int32_t(x << (32 - n)) >> (32 - n));
    });
  };
  // n bits from bit a on.
  t["BMSK"] = [](Decoder& d) {
    const bool wraps = d.take("W");
    return each(d.destination(), d.integer(1), d.integer(2), [=](u32 from, u32 count) {
      const u32 at = wraps ? from & 31 : from, n = wraps ? count & 31 : count;
      const u64 bits = n >= 32 ? 0xffffffffull : (u64(1) << n) - 1;
      return at >= 32 ? 0u : u32(bits << at);
    });
  };
}

}  // namespace sass
