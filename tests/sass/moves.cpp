// Moves, selections, and what threads of a warp tell each other.
#include <algorithm>

#include "decode.h"

namespace sass {
namespace {

using u32 = uint32_t;

Action move(Decoder& d) {
  return each(d.destination(), d.integer(1), [](u32 x) { return x; });
}

Action select(Decoder& d, Source::Type type) {
  const Predicate chosen = d.predicate(3);
  const Destination out = d.destination();
  const Source a = d.source(1, type), b = d.source(2, type);
  return [=](Warp& w, u32 active) {
    Lanes ra, rb, result;
    const u32 *x = a.read(w, ra), *y = b.read(w, rb), which = chosen.read(w);
    for (int l = 0; l < warp_size; ++l) result[l] = which >> l & 1 ? x[l] : y[l];
    out.write(w, result.v, active);
  };
}

// Who and where a thread is.
Action special(Decoder& d) {
  const std::string name = d.operand(1).text;
  const Destination out = d.destination();
  const bool is_wide = d.instruction.opcode == "CS2R" && !d.take("32");
  static const std::vector<std::string> known = {"SR_TID.X",   "SR_TID.Y",  "SR_TID.Z",    "SR_CTAID.X", "SR_CTAID.Y",
                                                 "SR_CTAID.Z", "SR_LANEID", "SR_CgaCtaId", "SRZ",        "SR_SWINHI",
                                                 "SR_EQMASK",  "SR_LTMASK", "SR_LEMASK",   "SR_GTMASK",  "SR_GEMASK"};
  const auto found = std::find(known.begin(), known.end(), name);
  if (found == known.end()) d.unknown();
  const long which = found - known.begin();
  return [=](Warp& w, u32 active) {
    Lanes result;
    const Dim3 &threads = w.block.threads, &block = w.block.index;
    for (int l = 0; l < warp_size; ++l) {
      const u32 thread = u32(w.thread(l));
      const u32 values[] = {thread % threads.x,
                            thread / threads.x % threads.y,
                            thread / threads.x / threads.y,
                            block.x,
                            block.y,
                            block.z,
                            u32(l),
                            0,  // the one block of its cluster
                            0,
                            u32(AnyMemory::shared_window >> 32),
                            u32(1) << l,
                            (u32(1) << l) - 1,
                            (u32(2) << l) - 1,
                            ~((u32(2) << l) - 1),
                            ~((u32(1) << l) - 1)};
      result[l] = values[which];
    }
    out.write(w, result.v, active);
    if (!is_wide) return;
    std::fill_n(result.v, warp_size, 0);
    out.write(w, result.v, active, 1);
  };
}

// The predicates as bits of a register, and back; UP2UR those of the uniform datapath.
Action predicates_to_register(Decoder& d) {
  d.ignore_operand(1);  // PR
  const int first = d.instruction.opcode == "UP2UR" ? first_uniform_predicate : 0;
  const Source base = d.integer(2), mask = d.integer(3);
  const Destination out = d.destination();
  return [=](Warp& w, u32 active) {
    Lanes ra, rb, result;
    const u32 *x = base.read(w, ra), *m = mask.read(w, rb);
    for (int l = 0; l < warp_size; ++l) {
      u32 bits = 0;
      for (int p = 0; p < true_predicate; ++p) bits |= (w.predicates[first + p] >> l & 1) << p;
      result[l] = (bits & m[l]) | (x[l] & ~m[l]);
    }
    out.write(w, result.v, active);
  };
}

Action register_to_predicates(Decoder& d) {
  d.ignore_operand(0);  // PR
  Operand from = d.operand(1);
  const int shift = from.part.empty() ? 0 : from.part[0] == 'B' ? 8 * (from.part[1] - '0') : -1;
  if (shift < 0) d.unknown();
  from.part.clear();
  const Source source(from, Source::bits), mask = d.integer(2);
  return [=](Warp& w, u32 active) {
    Lanes ra, rb;
    const u32 *x = source.read(w, ra), *m = mask.read(w, rb);
    for (int l = 0; l < warp_size; ++l)
      for (int p = 0; p < true_predicate; ++p)
        if ((active >> l & 1) && (m[l] >> p & 1))
          w.predicates[p] = (w.predicates[p] & ~(u32(1) << l)) | (x[l] >> shift >> p & 1) << l;
  };
}

// A value of another thread of the warp: SHFL P, out, value, which, clamp | segment mask << 8. Where that thread does
// not take part, CUDA leaves the result undefined: a fault.
Action shuffle(Decoder& d) {
  const std::string how = d.take_one({"IDX", "UP", "DOWN", "BFLY"});
  const Predicate in_range = d.predicate(0);
  const Destination out = d.destination(1);
  const Source a = d.integer(2), b = d.integer(3), c = d.integer(4);
  return [=](Warp& w, u32 active) {
    Lanes ra, rb, rc, result;
    const u32 *value = a.read(w, ra), *which = b.read(w, rb), *limits = c.read(w, rc);
    u32 within = 0;
    for (int l = 0; l < warp_size; ++l) {
      result[l] = value[l];
      if (!(active >> l & 1)) continue;
      const int segment = int(limits[l] >> 8 & 31), clamp = int(limits[l] & 31), n = int(which[l] & 31);
      const int first = l & segment, last = first | (clamp & ~segment);
      const int from = how == "IDX" ? first | (n & ~segment) : how == "UP" ? l - n : how == "DOWN" ? l + n : l ^ n;
      const bool inside = how == "UP" ? from >= last : from <= last;
      if (inside && !(active >> from & 1)) throw Fault("a shuffle from a thread that does not take part");
      result[l] = value[inside ? from : l];
      within |= u32(inside) << l;
    }
    out.write(w, result.v, active);
    in_range.write(w, within, active);
  };
}

// Whether a predicate holds in all, any or equally in all threads; and which of them.
Action vote(Decoder& d) {
  const std::string how = d.take_one({"ALL", "ANY", "EQ"});
  size_t n = 0;
  Destination which;
  Predicate result;
  if (!d.is(n, Operand::predicate)) which = d.destination(n++);
  if (d.is(n, Operand::predicate) && d.is(n + 1, Operand::predicate)) result = d.predicate(n++);
  const Predicate source = d.predicate(n);
  return [=](Warp& w, u32 active) {
    const u32 found = source.read(w) & active;
    const bool holds = how == "ALL" ? found == active : how == "ANY" ? found != 0 : found == 0 || found == active;
    Lanes all;
    std::fill_n(all.v, warp_size, found);
    which.write(w, all.v, active);
    result.write(w, holds ? all_threads : 0, active);
  };
}

// A value of all threads together, into a uniform register.
Action reduce(Decoder& d) {
  const std::string how = d.take_one({"SUM", "MIN", "MAX", "AND", "OR", "XOR"}, "AND");
  const bool is_signed = d.take("S32");
  const Destination out = d.destination();
  const Source a = d.integer(1);
  return [=](Warp& w, u32 active) {
    Lanes room, all;
    const u32* x = a.read(w, room);
    const u32 flip = is_signed ? 0x80000000 : 0;  // orders signed numbers as unsigned ones
    u32 found = x[__builtin_ctz(active)];
    for (u32 left = active & (active - 1); left; left &= left - 1) {
      const u32 v = x[__builtin_ctz(left)];
      found = how == "SUM"   ? found + v
              : how == "MIN" ? std::min(found ^ flip, v ^ flip) ^ flip
              : how == "MAX" ? std::max(found ^ flip, v ^ flip) ^ flip
              : how == "AND" ? found & v
              : how == "OR"  ? found | v
                             : found ^ v;
    }
    std::fill_n(all.v, warp_size, found);
    out.write(w, all.v, active);
  };
}

// Which threads have the same value.
Action match(Decoder& d) {
  if (!d.take("ANY")) d.unknown();
  const bool is_wide = d.take("U64");
  const Destination out = d.destination();
  const Source low = d.source(1, Source::bits), top = is_wide ? d.source(1, Source::bits, 1) : low;
  return [=](Warp& w, u32 active) {
    Lanes ra, rb, result;
    const u32 *x = low.read(w, ra), *y = top.read(w, rb);
    for (int l = 0; l < warp_size; ++l) {
      result[l] = 0;
      for (int m = 0; m < warp_size; ++m) result[l] |= u32(x[l] == x[m] && y[l] == y[m]) << m;
      result[l] &= active;
    }
    out.write(w, result.v, active);
  };
}

// How threads voted at the last barrier: how many, or whether any or all did, as the barrier before it asks.
Action barrier_result(Decoder& d) {
  if (!d.take("RESULT")) d.unknown();
  const std::vector<Instruction>& code = d.kernel.code;
  size_t at = d.instruction.at / 16;
  while (at-- > 0 && code[at].opcode != "BAR") {
  }
  if (at >= code.size()) d.unknown();
  const std::vector<std::string>& asked = code[at].modifiers;
  const bool of_all = std::find(asked.begin(), asked.end(), "AND") != asked.end();
  const Destination out = d.destination();
  Predicate result;
  if (d.count() > 1) result = d.predicate(1);
  return [=](Warp& w, u32 active) {
    Lanes all;
    std::fill_n(all.v, warp_size, w.votes);
    out.write(w, all.v, active);
    result.write(w, (of_all ? w.all_vote : w.votes > 0) ? all_threads : 0, active);
  };
}

}  // namespace

void add_moves(Table& t) {
  t["MOV"] = t["R2UR"] = move;
  t["SEL"] = [](Decoder& d) { return select(d, Source::integer); };
  t["FSEL"] = [](Decoder& d) { return select(d, Source::floating); };
  t["S2R"] = t["S2UR"] = t["CS2R"] = special;
  t["P2R"] = t["UP2UR"] = predicates_to_register;
  t["R2P"] = register_to_predicates;
  t["SHFL"] = shuffle;
  t["VOTE"] = t["VOTEU"] = vote;
  t["REDUX"] = reduce;
  t["MATCH"] = match;
  t["B2R"] = barrier_result;
}

}  // namespace sass
