// From an instruction to what it does to a warp: the parts that the tables of instructions are written with.
#pragma once

#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

#include "warp.h"

namespace sass {

// What an instruction does for the active threads of the group that runs it.
using Action = std::function<void(Warp&, uint32_t active)>;

struct Step {
  Action action;
  int guard = true_predicate;
  bool guard_inverted = false;
  bool control = false;  // says itself where the group goes on
  bool half_rate = false, local = false, atomic = false;
};

// The steps of a kernel. Throws Fault for an instruction, a modifier or an operand that is not known.
std::vector<Step> decode(const Kernel& kernel);

// An operand's 32 bits in each thread.
class Source {
 public:
  enum Type { integer, bits, floating };  // how -, | | and ~ are meant; `bits` allows none
  Source() = default;
  Source(const Operand& operand, Type type, int word = 0);
  // Either the register itself, or `room` filled.
  const uint32_t* read(const Warp& warp, Lanes& room) const;

 private:
  Operand operand_;
  Type type_ = bits;
  int word_ = 0;
  bool plain_ = false;
};

class Predicate {
 public:
  Predicate() = default;
  explicit Predicate(const Operand& operand) : index_(operand.index), inverted_(operand.inverted) {}
  uint32_t read(const Warp& warp) const { return inverted_ ? ~warp.predicates[index_] : warp.predicates[index_]; }
  void write(Warp& warp, uint32_t value, uint32_t active) const;

 private:
  int index_ = true_predicate;
  bool inverted_ = false;
};

class Destination {
 public:
  Destination() = default;
  explicit Destination(const Operand& operand) : uniform_(operand.kind == Operand::uniform), index_(operand.index) {}
  void write(Warp& warp, const uint32_t* value, uint32_t active, int word = 0) const;

 private:
  bool uniform_ = false;
  int index_ = zero_register;
};

// An instruction while it is decoded: its modifiers and operands are taken one by one, and none may be left.
class Decoder {
 public:
  Decoder(const Kernel& kernel, const Instruction& instruction)
      : kernel(kernel), instruction(instruction), left_(instruction.modifiers) {}
  const Kernel& kernel;
  const Instruction& instruction;

  bool take(const std::string& modifier);
  // The one of these that is there, or the first where `optional`.
  std::string take_one(const std::vector<std::string>& modifiers, const std::string& otherwise = "");
  void ignore(const std::vector<std::string>& modifiers);
  void finish() const;
  [[noreturn]] void unknown() const;

  size_t count() const { return instruction.operands.size(); }
  bool is(size_t n, Operand::Kind kind) const { return n < count() && instruction.operands[n].kind == kind; }
  const Operand& operand(size_t n) const;
  void ignore_operand(size_t n) const { used_ |= 1u << n; }
  Source source(size_t n, Source::Type type, int word = 0) const { return Source(operand(n), type, word); }
  Source integer(size_t n) const { return source(n, Source::integer); }
  Source floating(size_t n) const { return source(n, Source::floating); }
  Destination destination(size_t n = 0) const;
  Predicate predicate(size_t n) const;
  uint32_t immediate(size_t n) const;

 private:
  std::vector<std::string> left_;
  mutable uint32_t used_ = 0;
};

using Table = std::unordered_map<std::string, Action (*)(Decoder&)>;
void add_integer(Table&);
void add_floating(Table&);
void add_half(Table&);
void add_double(Table&);
void add_moves(Table&);
void add_memory(Table&);
void add_control(Table&);

// ---- for the tables: an operation a thread, on one to three sources

template <class F>
Action each(Destination out, Source a, F f) {
  return [=](Warp& warp, uint32_t active) {
    Lanes ra, result;
    const uint32_t* x = a.read(warp, ra);
    for (int l = 0; l < warp_size; ++l) result.v[l] = f(x[l]);
    out.write(warp, result.v, active);
  };
}

template <class F>
Action each(Destination out, Source a, Source b, F f) {
  return [=](Warp& warp, uint32_t active) {
    Lanes ra, rb, result;
    const uint32_t *x = a.read(warp, ra), *y = b.read(warp, rb);
    for (int l = 0; l < warp_size; ++l) result.v[l] = f(x[l], y[l]);
    out.write(warp, result.v, active);
  };
}

template <class F>
Action each(Destination out, Source a, Source b, Source c, F f) {
  return [=](Warp& warp, uint32_t active) {
    Lanes ra, rb, rc, result;
    const uint32_t *x = a.read(warp, ra), *y = b.read(warp, rb), *z = c.read(warp, rc);
    for (int l = 0; l < warp_size; ++l) result.v[l] = f(x[l], y[l], z[l]);
    out.write(warp, result.v, active);
  };
}

// A comparison with a condition: P = f(a, b) and/or/xor condition, and beside it the same of its opposite.
template <class F>
Action compare(Predicate out, Predicate opposite, Predicate condition, const std::string& combine, Source a, Source b,
               F f) {
  const bool is_or = combine == "OR", is_xor = combine == "XOR";
  return [=](Warp& warp, uint32_t active) {
    Lanes ra, rb;
    const uint32_t *x = a.read(warp, ra), *y = b.read(warp, rb), in = condition.read(warp);
    uint32_t found = 0;
    for (int l = 0; l < warp_size; ++l) found |= uint32_t(f(x[l], y[l], in >> l & 1, l)) << l;
    const auto combined = [&](uint32_t v) { return is_xor ? v ^ in : is_or ? v | in : v & in; };
    out.write(warp, combined(found), active);
    opposite.write(warp, combined(~found), active);
  };
}

inline float as_float(uint32_t v) {
  float f;
  std::memcpy(&f, &v, 4);
  return f;
}
inline uint32_t as_bits(float f) {
  uint32_t v;
  std::memcpy(&v, &f, 4);
  return v;
}

// What float32 arithmetic makes: of its NaNs there is but one.
inline uint32_t result_bits(float f) {
  return f != f ? 0x7fffffff : as_bits(f);
}

// float16 and bfloat16, rounded once, to nearest even or, `to_zero`, towards it; of NaNs there is but one.
float half_to_float(uint16_t half);
float bfloat16_to_float(uint16_t half);
uint16_t to_half(double value, bool to_zero = false);
uint16_t to_bfloat16(double value, bool to_zero = false);

// Whether x `name` y holds: LT, LE, ... as written, with U behind it also where one is NaN; NUM and NAN.
enum class Comparison { lt, le, gt, ge, eq, ne, ltu, leu, gtu, geu, equ, neu, num, nan };
Comparison comparison(Decoder& decoder);
template <class T>
bool holds(Comparison c, T x, T y) {
  const bool unordered = x != x || y != y;
  switch (c) {
    case Comparison::lt: return x < y;
    case Comparison::le: return x <= y;
    case Comparison::gt: return x > y;
    case Comparison::ge: return x >= y;
    case Comparison::eq: return x == y;
    case Comparison::ne: return x < y || x > y;
    case Comparison::ltu: return unordered || x < y;
    case Comparison::leu: return unordered || x <= y;
    case Comparison::gtu: return unordered || x > y;
    case Comparison::geu: return unordered || x >= y;
    case Comparison::equ: return unordered || x == y;
    case Comparison::neu: return unordered || x != y;
    case Comparison::num: return !unordered;
    case Comparison::nan: return unordered;
  }
  return false;
}

}  // namespace sass
