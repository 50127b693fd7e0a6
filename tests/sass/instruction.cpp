#include "instruction.h"

#include <cctype>
#include <cstring>
#include <optional>

namespace sass {
namespace {

std::string_view trim(std::string_view s) {
  const size_t first = s.find_first_not_of(" \t"), last = s.find_last_not_of(" \t");
  return first == std::string_view::npos ? std::string_view() : s.substr(first, last - first + 1);
}

bool starts_with(std::string_view s, std::string_view prefix) {
  return s.substr(0, prefix.size()) == prefix;
}

// The parts between separators that stand outside of brackets.
std::vector<std::string_view> split(std::string_view s, char separator) {
  std::vector<std::string_view> parts;
  size_t begin = 0;
  int depth = 0;
  for (size_t i = 0; i <= s.size(); ++i) {
    const char c = i < s.size() ? s[i] : separator;
    if (c == '[' || c == '(') ++depth;
    if (c == ']' || c == ')') --depth;
    if (c != separator || (depth != 0 && i < s.size())) continue;
    if (const auto part = trim(s.substr(begin, i - begin)); !part.empty()) parts.push_back(part);
    begin = i + 1;
  }
  return parts;
}

// The number in "R12", "URZ", "PT": the prefix, then a number, or the letter that stands for `last`.
std::optional<int> numbered(std::string_view s, std::string_view prefix, char letter, int last) {
  if (!starts_with(s, prefix)) return std::nullopt;
  s.remove_prefix(prefix.size());
  if (s.size() == 1 && s[0] == letter) return last;
  if (s.empty() || s.size() > 3) return std::nullopt;
  int number = 0;
  for (const char c : s) {
    if (!std::isdigit(static_cast<unsigned char>(c))) return std::nullopt;
    number = number * 10 + (c - '0');
  }
  return number;
}

uint32_t integer(std::string_view s) {
  const std::string text(s);
  char* end = nullptr;
  const long long value = std::strtoll(text.c_str(), &end, 0);
  if (text.empty() || *end) throw Fault("not a number: " + text);
  return uint32_t(value);
}

// What stands inside of [...]: a register, a uniform register and an offset, any of them absent.
void parse_address(std::string_view inside, Operand& out) {
  size_t begin = 0;
  while (begin < inside.size()) {
    if (inside[begin] == '+') ++begin;
    size_t end = inside.find('+', begin);
    if (end == std::string_view::npos) end = inside.size();
    std::string_view part = trim(inside.substr(begin, end - begin));
    begin = end;
    const size_t dot = part.find('.');
    const std::string_view name = part.substr(0, dot),
                           suffix = dot == std::string_view::npos ? std::string_view() : part.substr(dot + 1);
    if (const auto uniform = numbered(name, "UR", 'Z', zero_uniform)) {
      out.uniform_base = *uniform;
    } else if (const auto base = numbered(name, "R", 'Z', zero_register)) {
      out.base = *base;
      if (suffix == "64") {
        out.wide = true;
      } else if (suffix == "U32") {
        out.narrow_base = true;
      } else if (starts_with(suffix, "X")) {
        out.scale = int(integer(suffix.substr(1)));
      } else if (!suffix.empty()) {
        throw Fault("unknown address " + std::string(inside));
      }
    } else {
      const bool negative = starts_with(part, "-");
      const uint32_t value = integer(negative ? part.substr(1) : part);
      out.bits += negative ? 0 - value : value;
    }
  }
}

bool parse_immediate(std::string_view s, Operand& out) {
  const std::string_view magnitude = s[0] == '-' || s[0] == '+' ? s.substr(1) : s;
  if (starts_with(magnitude, "0x")) {
    out.bits = integer(s);
  } else if (starts_with(magnitude, "INF") || starts_with(magnitude, "QNAN") || starts_with(magnitude, "SNAN") ||
             (!magnitude.empty() && (std::isdigit(static_cast<unsigned char>(magnitude[0])) || magnitude[0] == '.'))) {
    out.decimal = true;
  } else {
    return false;
  }
  out.kind = Operand::immediate;
  return true;
}

Operand parse_operand(std::string_view s) {
  Operand out;
  out.text = std::string(s);
  if (parse_immediate(s, out)) return out;
  for (; !s.empty(); s.remove_prefix(1)) {
    if (s[0] == '!' || s[0] == '~') {
      out.inverted = true;
    } else if (s[0] == '-') {
      out.negated = true;
    } else if (s[0] == '|') {
      out.absolute = true;
    } else if (s[0] != '+') {
      break;
    }
  }
  std::string plain(s);
  for (const char* without : {".reuse", "|"})
    for (size_t at; (at = plain.find(without)) != std::string::npos;) plain.erase(at, std::strlen(without));
  s = plain;
  if (starts_with(s, "c[") || starts_with(s, "cx[")) {
    const size_t bank = s.find('['), bank_end = s.find(']'), begin = s.find('[', bank_end), end = s.find(']', begin);
    if (begin == std::string_view::npos || end == std::string_view::npos) throw Fault("unknown operand " + out.text);
    out.kind = Operand::constant;
    out.index = int(integer(s.substr(bank + 1, bank_end - bank - 1)));
    parse_address(s.substr(begin + 1, end - begin - 1), out);
    if (s.size() > end + 2) out.part = std::string(s.substr(end + 2));
    return out;
  }
  if (starts_with(s, "desc[")) s.remove_prefix(s.find(']') + 1);  // a memory descriptor, then the address
  if (starts_with(s, "[")) {
    out.kind = Operand::address;
    parse_address(s.substr(1, s.find(']') - 1), out);
    return out;
  }
  const size_t dot = s.find('.');
  const std::string_view name = s.substr(0, dot),
                         suffix = dot == std::string_view::npos ? std::string_view() : s.substr(dot + 1);
  auto found = [&](Operand::Kind kind, std::optional<int> index, int plus = 0) {
    if (index) out.kind = kind, out.index = *index + plus;
    return index.has_value();
  };
  if (starts_with(s, "SR")) {
    out.kind = Operand::special;
    out.text = std::string(s);
  } else if (found(Operand::uniform, numbered(name, "UR", 'Z', zero_uniform)) ||
             found(Operand::predicate, numbered(name, "UP", 'T', true_predicate), first_uniform_predicate) ||
             found(Operand::reg, numbered(name, "R", 'Z', zero_register))) {
    out.wide = suffix == "64";
    if (!out.wide) out.part = std::string(suffix);
  } else if (!found(Operand::predicate, numbered(s, "P", 'T', true_predicate)) &&
             !found(Operand::barrier, numbered(s, "B", 'Z', 15))) {
    out.kind = Operand::other;  // PR, SB0, a label: the instruction knows
  }
  return out;
}

Instruction parse_instruction(uint32_t at, std::string_view text, uint64_t encoding) {
  Instruction out;
  out.at = at;
  out.immediate = uint32_t(encoding >> 32);
  out.text = std::string(text);
  if (text[0] == '@') {
    const size_t space = text.find(' ');
    const Operand guard = parse_operand(text.substr(1, space - 1));
    out.guard = guard.index;
    out.guard_inverted = guard.inverted;
    text = trim(text.substr(space));
  }
  const size_t space = text.find(' ');
  const auto names = split(text.substr(0, space), '.');
  out.opcode = std::string(names[0]);
  out.modifiers.assign(names.begin() + 1, names.end());
  if (space == std::string_view::npos) return out;
  for (std::string_view operand : split(text.substr(space), ',')) {
    // "RET.REL.NODEC R2 0x0": two operands and no comma.
    const size_t gap = out.opcode == "RET" || out.opcode == "CALL" ? operand.find(' ') : std::string_view::npos;
    out.operands.push_back(parse_operand(operand.substr(0, gap)));
    if (out.operands.back().decimal) out.operands.back().bits = out.immediate;
    if (gap != std::string_view::npos) out.operands.push_back(parse_operand(trim(operand.substr(gap))));
  }
  return out;
}

}  // namespace

// Lines of instructions are "/*0010*/  IADD3 R1, R2, R3, RZ ;  /* encoding */", its lower half; others begin with
// another comment. A NaN is but named, and an immediate of two halves is two operands: their bits are those of the
// encoding.
std::vector<Instruction> parse(std::string_view listing) {
  std::vector<Instruction> out;
  for (size_t begin = 0; begin < listing.size();) {
    size_t end = listing.find('\n', begin);
    if (end == std::string_view::npos) end = listing.size();
    const std::string_view line = trim(listing.substr(begin, end - begin));
    begin = end + 1;
    const size_t close = line.find("*/"), semicolon = line.find(';');
    if (!starts_with(line, "/*") || semicolon == std::string_view::npos || close > semicolon) continue;
    const uint32_t at = uint32_t(std::strtoul(std::string(line.substr(2, close - 2)).c_str(), nullptr, 16));
    if (at != 16 * out.size()) throw Fault("the listing of a function has a gap");
    const size_t encoding = line.find("0x", semicolon);
    if (encoding == std::string_view::npos) throw Fault("the listing of a function has no encodings");
    const uint64_t bits = std::strtoull(std::string(line.substr(encoding)).c_str(), nullptr, 16);
    out.push_back(parse_instruction(at, trim(line.substr(close + 2, semicolon - close - 2)), bits));
  }
  return out;
}

}  // namespace sass
