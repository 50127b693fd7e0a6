#include "decode.h"

#include <algorithm>
#include <cmath>

namespace sass {

Source::Source(const Operand& operand, Type type, int word) : operand_(operand), type_(type), word_(word) {
  const bool changed = operand.negated || operand.absolute || operand.inverted;
  if (changed && type == bits) throw Fault("unexpected sign of " + operand.text);
  switch (operand.kind) {
    case Operand::reg:
      if (!operand.part.empty()) throw Fault("unexpected part of " + operand.text);
      plain_ = !changed;
      break;
    case Operand::immediate:
      if (word == 1) operand_.bits = int32_t(operand_.bits) < 0 ? ~0u : 0;
      break;
    case Operand::uniform:
    case Operand::constant: break;
    default: throw Fault("unexpected operand " + operand.text);
  }
}

const uint32_t* Source::read(const Warp& warp, Lanes& room) const {
  const int index = operand_.index;
  if (operand_.kind == Operand::reg) {
    const uint32_t* lanes = warp.registers[index == zero_register ? index : index + word_].v;
    if (plain_) return lanes;
    std::memcpy(room.v, lanes, sizeof room.v);
  } else {
    uint32_t value = operand_.bits;
    if (operand_.kind == Operand::uniform) value = index == zero_uniform ? 0 : warp.uniform[index + word_];
    if (operand_.kind == Operand::constant) {
      const uint32_t base = operand_.uniform_base == zero_uniform ? 0 : warp.uniform[operand_.uniform_base];
      if (operand_.base != zero_register) throw Fault("unexpected base of " + operand_.text);
      value = warp.block.constant(index, uint64_t(base) + operand_.bits + 4 * unsigned(word_), 4);
    }
    std::fill_n(room.v, warp_size, value);
  }
  if (type_ == floating) {
    for (uint32_t& v : room.v) v = (operand_.absolute ? v & 0x7fffffff : v) ^ (operand_.negated ? 0x80000000 : 0);
  } else {
    for (uint32_t& v : room.v) {
      if (operand_.inverted) v = ~v;
      if (operand_.absolute && int32_t(v) < 0) v = 0 - v;
      if (operand_.negated) v = 0 - v;
    }
  }
  return room.v;
}

void Predicate::write(Warp& warp, uint32_t value, uint32_t active) const {
  if (index_ % 8 == true_predicate || !active) return;
  uint32_t& now = warp.predicates[index_];
  if (index_ >= first_uniform_predicate) {
    now = value >> __builtin_ctz(active) & 1 ? all_threads : 0;
  } else {
    now = (now & ~active) | (value & active);
  }
}

void Destination::write(Warp& warp, const uint32_t* value, uint32_t active, int word) const {
  if (uniform_) {
    if (index_ != zero_uniform && active) warp.uniform[index_ + word] = value[__builtin_ctz(active)];
    return;
  }
  if (index_ == zero_register) return;
  uint32_t* to = warp.registers[index_ + word].v;
  if (active == all_threads) {
    std::memcpy(to, value, sizeof(Lanes));
  } else {
    for (int l = 0; l < warp_size; ++l) to[l] = active >> l & 1 ? value[l] : to[l];
  }
}

bool Decoder::take(const std::string& modifier) {
  const auto it = std::find(left_.begin(), left_.end(), modifier);
  if (it == left_.end()) return false;
  left_.erase(it);
  return true;
}

std::string Decoder::take_one(const std::vector<std::string>& modifiers, const std::string& otherwise) {
  for (const std::string& m : modifiers)
    if (take(m)) return m;
  if (otherwise.empty()) unknown();
  return otherwise;
}

void Decoder::ignore(const std::vector<std::string>& modifiers) {
  for (const std::string& m : modifiers) take(m);
}

void Decoder::finish() const {
  if (!left_.empty()) unknown();
  for (size_t n = 0; n < count(); ++n) {
    const Operand& unused = instruction.operands[n];
    const bool is_constant = unused.kind == Operand::predicate && unused.index % 8 == true_predicate;
    if (!(used_ >> n & 1) && !is_constant) unknown();
  }
}

void Decoder::unknown() const {
  throw Fault("unknown instruction " + instruction.text);
}

const Operand& Decoder::operand(size_t n) const {
  if (n >= count()) unknown();
  used_ |= 1u << n;
  return instruction.operands[n];
}

Destination Decoder::destination(size_t n) const {
  if (!is(n, Operand::reg) && !is(n, Operand::uniform)) unknown();
  return Destination(operand(n));
}

Predicate Decoder::predicate(size_t n) const {
  if (!is(n, Operand::predicate)) unknown();
  return Predicate(operand(n));
}

uint32_t Decoder::immediate(size_t n) const {
  if (!is(n, Operand::immediate)) unknown();
  return operand(n).bits;
}

Comparison comparison(Decoder& decoder) {
  static const std::vector<std::string> names = {"LT",  "LE",  "GT",  "GE",  "EQ",  "NE",  "LTU",
                                                 "LEU", "GTU", "GEU", "EQU", "NEU", "NUM", "NAN"};
  const std::string name = decoder.take_one(names);
  return Comparison(std::find(names.begin(), names.end(), name) - names.begin());
}

float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
  if (exponent == 31) return as_float(sign | 0x7f800000 | fraction << 13);
  if (exponent == 0) return as_float(sign | as_bits(float(fraction) * 0x1p-24f));
  return as_float(sign | (exponent + 112) << 23 | fraction << 13);
}

float bfloat16_to_float(uint16_t half) {
  return as_float(uint32_t(half) << 16);
}

namespace {

// To a float by round-to-odd: rounding the result once more gives what rounding `value` gives.
float to_odd(double value) {
  const float nearest = float(value);
  if (double(nearest) == value || std::isnan(nearest) || std::isinf(value)) return nearest;
  uint32_t bits = as_bits(nearest);
  if (std::fabs(double(nearest)) > std::fabs(value)) bits -= 1;  // towards zero
  return as_float(bits | 1);
}

}  // namespace

uint16_t to_half(double value, bool to_zero) {
  if (std::isnan(value)) return 0x7fff;
  const uint32_t bits = as_bits(to_odd(value)), magnitude = bits & 0x7fffffff;
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  if (std::isinf(value) || (magnitude >= as_bits(65520) && !to_zero)) return uint16_t(sign | 0x7c00);
  if (magnitude >= as_bits(65520)) return uint16_t(sign | 0x7bff);
  if (magnitude < as_bits(0x1p-14f)) {
    const float steps = as_float(magnitude) * 0x1p24f;
    return uint16_t(sign | uint16_t(to_zero ? std::trunc(steps) : std::nearbyint(steps)));
  }
  const uint32_t up = to_zero ? 0 : 0xfff + (magnitude >> 13 & 1);
  return uint16_t(sign | (((magnitude + up) >> 13) - (112 << 10)));
}

uint16_t to_bfloat16(double value, bool to_zero) {
  if (std::isnan(value)) return 0x7fff;
  const uint32_t bits = as_bits(to_odd(value));
  return uint16_t((bits + (to_zero ? 0 : 0x7fff + (bits >> 16 & 1))) >> 16);
}

namespace {

Table made(std::initializer_list<void (*)(Table&)> parts) {
  Table t;
  for (auto add : parts) add(t);
  return t;
}

// Integers, bits, comparisons, selections and conversions have 64 lanes a clock where 128 are issued (CUDA C++
// Programming Guide, throughput of arithmetic instructions; 8.0, 8.9 and 9.0 alike).
bool is_half_rate(const std::string& opcode) {
  static const std::vector<std::string> names = {"LOP3",   "PLOP3",   "SHF",    "PRMT",  "IADD3",  "VIADD", "LEA",
                                                 "SEL",    "FSEL",    "ISETP",  "FSETP", "HSETP2", "HSET2", "FMNMX",
                                                 "VHMNMX", "VIMNMX3", "HMNMX2", "IMNMX", "VIMNMX", "R2P",   "P2R",
                                                 "MOV",    "F2FP",    "F2F",    "IABS",  "SGXT",   "BMSK"};
  return std::find(names.begin(), names.end(), opcode) != names.end();
}

}  // namespace

std::vector<Step> decode(const Kernel& kernel) {
  static const Table plain = made({add_integer, add_floating, add_half, add_double, add_moves, add_memory}),
                     control = made({add_control});
  std::vector<Step> steps;
  for (const Instruction& instruction : kernel.code) {
    const std::string& opcode = instruction.opcode;
    Step step;
    step.control = control.count(opcode) > 0;
    const Table& table = step.control ? control : plain;
    auto found = table.find(opcode);
    if (found == table.end() && opcode[0] == 'U') found = table.find(opcode.substr(1));  // the uniform datapath
    Decoder decoder(kernel, instruction);
    if (found == table.end()) decoder.unknown();
    step.action = found->second(decoder);
    decoder.finish();
    step.guard = instruction.guard;
    step.guard_inverted = instruction.guard_inverted;
    step.half_rate = is_half_rate(opcode);
    step.local = opcode == "LDL" || opcode == "STL";
    step.atomic = opcode.compare(0, 4, "ATOM") == 0 || opcode == "RED";
    steps.push_back(std::move(step));
  }
  return steps;
}

}  // namespace sass
