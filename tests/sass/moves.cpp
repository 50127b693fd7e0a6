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
  static const std::vector<std::string> known = {"SR_TID.X",   "SR_TID.Y",   "SR_TID.Z",  "SR_CTAID.X",
                                                 "SR_CTAID.Y", "SR_CTAID.Z", "SR_LANEID", "SR_CgaCtaId",
                                                 "SRZ",        "SR_LTMASK",  "SR_SWINHI"};
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
                            (u32(1) << l) - 1,
                            0x7f00};
      result[l] = values[which];
    }
    out.write(w, result.v, active);
    if (!is_wide) return;
    std::fill_n(result.v, warp_size, 0);
    out.write(w, result.v, active, 1);
  };
}

// The predicates as bits of a register, and back.
Action predicates_to_register(Decoder& d) {
  const Source base = d.integer(2), mask = d.integer(3);
  const Destination out = d.destination();
  return [=](Warp& w, u32 active) {
    Lanes ra, rb, result;
    const u32 *x = base.read(w, ra), *m = mask.read(w, rb);
    for (int l = 0; l < warp_size; ++l) {
      u32 bits = 0;
      for (int p = 0; p < true_predicate; ++p) bits |= (w.predicates[p] >> l & 1) << p;
      result[l] = (bits & m[l]) | (x[l] & ~m[l]);
    }
    out.write(w, result.v, active);
  };
}

Action register_to_predicates(Decoder& d) {
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
    w.synchronise();
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
    w.synchronise();
    which.write(w, all.v, active);
    result.write(w, holds ? all_threads : 0, active);
  };
}

}  // namespace

void add_moves(Table& t) {
  t["MOV"] = t["R2UR"] = move;
  t["SEL"] = [](Decoder& d) { return select(d, Source::integer); };
  t["FSEL"] = [](Decoder& d) { return select(d, Source::floating); };
  t["S2R"] = t["S2UR"] = t["CS2R"] = special;
  t["P2R"] = predicates_to_register;
  t["R2P"] = register_to_predicates;
  t["SHFL"] = shuffle;
  t["VOTE"] = t["VOTEU"] = vote;
}

}  // namespace sass
