// Machine code (SASS) as cuobjdump lists it, parsed: one instruction, its modifiers and its operands.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace sass {

// What stops a launch: an access that is not allowed, a race, an instruction that is not known.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

constexpr int zero_register = 255, zero_uniform = 63, true_predicate = 7;
constexpr int first_uniform_predicate = 8;  // UP0 follows P7: one file of 16 predicates

struct Operand {
  enum Kind { none, reg, uniform, predicate, immediate, constant, address, barrier, special, other };
  Kind kind = none;
  int index = 0;  // of a register, predicate or barrier; the bank of a constant
  bool negated = false, absolute = false, inverted = false;  // -, | |, ~ or !
  bool wide = false;                                         // .64
  uint32_t bits = 0;                                         // of an immediate; the offset of a constant or an address
  bool decimal = false;  // an immediate that is written as a number or NaN: its bits are those of the encoding
  int base = zero_register, uniform_base = zero_uniform, scale = 1;  // of a constant or an address
  bool narrow_base = false;                                          // .U32: base has 32 bits, uniform_base 64
  std::string part;                                                  // H0_H0, H1_H1, B1, ... of a register
  std::string text;
};

struct Instruction {
  uint32_t at = 0;  // bytes from the beginning of the function
  std::string text, opcode;
  uint32_t immediate = 0;  // the encoding's field of immediates
  std::vector<std::string> modifiers;
  std::vector<Operand> operands;
  int guard = true_predicate;
  bool guard_inverted = false;
};

// The instructions of one function of a listing, in order.
std::vector<Instruction> parse(std::string_view listing);

}  // namespace sass
