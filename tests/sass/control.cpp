// Branches, convergence barriers, calls, and the barriers of a block.
#include "decode.h"

namespace sass {
namespace {

using u32 = uint32_t;

constexpr u32 instruction_bytes = 16;

Action branch(Decoder& d) {
  d.ignore({"U"});
  if (!d.is(d.count() - 1, Operand::immediate)) d.unknown();
  const u32 target = d.immediate(d.count() - 1) / instruction_bytes;
  const bool if_parted = d.take("DIV"), if_in_step = d.take("CONV");
  if (if_parted || if_in_step) {  // whether the threads that run are those of a mask
    const Source mask = d.integer(0);
    return [=](Warp& w, u32 active) {
      Lanes room;
      const u32 wanted = mask.read(w, room)[__builtin_ctz(active)] & w.alive;
      w.jump((active == wanted) == if_in_step ? active : 0, target);
    };
  }
  Predicate also;
  if (d.count() > 1) also = d.predicate(0);
  return [=](Warp& w, u32 active) { w.jump(active & also.read(w), target); };
}

Action call(Decoder& d) {
  d.ignore({"REL", "NOINC"});
  const u32 target = d.immediate(d.count() - 1) / instruction_bytes;
  return [=](Warp& w, u32 active) { w.jump(active, target); };
}

// Back to where a register says, in bytes from the beginning of the function.
Action return_to(Decoder& d) {
  d.ignore({"REL", "NODEC"});
  const Source to = d.source(0, Source::bits);
  if (d.immediate(1) != 0) d.unknown();
  return [=](Warp& w, u32 active) {
    Lanes room, target;
    const u32* at = to.read(w, room);
    for (int l = 0; l < warp_size; ++l) target[l] = at[l] / instruction_bytes;
    w.jump(active, target);
  };
}

int barrier(Decoder& d, size_t n) {
  if (!d.is(n, Operand::barrier)) d.unknown();
  return d.operand(n).index;
}

Action move_barrier(Decoder& d) {
  const bool clears = d.take("CLEAR");
  d.ignore({"32"});
  if (d.is(0, Operand::barrier)) {
    const int to = barrier(d, 0);
    const Source value = d.integer(1);
    return [=](Warp& w, u32 active) {
      Lanes room;
      const u32* v = value.read(w, room);
      for (u32 left = active; left; left &= left - 1) {
        const int l = __builtin_ctz(left);
        w.set_barrier(to, u32(1) << l, v[l]);
      }
      ++w.next;
    };
  }
  const int from = barrier(d, 1);
  const Destination out = d.destination();
  return [=](Warp& w, u32 active) {
    Lanes all;
    for (u32& v : all.v) v = w.participants(from);
    out.write(w, all.v, active);
    if (clears) w.set_barrier(from, w.group, 0);
    ++w.next;
  };
}

// A barrier of the block: its number, and of how many threads, 0 for all; a register has both, the latter from bit 16
// on. RED lets threads vote, B2R tells how they did.
Action block_barrier(Decoder& d) {
  d.ignore({"DEFER_BLOCKING"});
  const bool arrives = d.take("ARV"), reduces = !arrives && d.take("RED");
  if (!arrives && !reduces && !d.take("SYNC")) d.unknown();
  Predicate vote;
  if (reduces) d.take_one({"POPC", "OR", "AND"}), vote = d.predicate(d.count() - 1);
  const Source number = d.source(0, Source::bits);
  const bool has_count = d.count() > (reduces ? 2 : 1), packed = has_count && !d.is(1, Operand::immediate);
  const Source threads = has_count ? d.source(1, Source::bits) : number;
  if (packed && d.operand(0).index != d.operand(1).index) d.unknown();
  return [=](Warp& w, u32 active) {
    if (active != w.group) throw Fault("__syncthreads that only some threads of a warp reach");
    if (active != w.alive) {
      w.park();
      return;
    }
    Lanes ra, rb;
    const u32 *n = number.read(w, ra), *of = threads.read(w, rb);
    const int first = __builtin_ctz(active);
    for (u32 left = active; left; left &= left - 1)
      if (n[__builtin_ctz(left)] != n[first]) throw Fault("threads of a warp come to different barriers");
    const u32 of_threads = packed ? of[first] >> 16 : has_count ? of[first] : 0;
    w.block.arrive(w, packed ? n[first] & 15 : n[first], of_threads, !arrives, vote.read(w) & active);
  };
}

// Waits until the threads of a mask have come to the same. A __syncwarp is one that orders memory; in code for threads
// that are not in step (COLLECTIVE), one that encloses nothing but a NOP.
Action warp_barrier(Decoder& d) {
  const bool all = d.take("ALL"), collective = d.take("COLLECTIVE");
  const u32 next = d.instruction.at / instruction_bytes + 1;
  const std::vector<Instruction>& code = d.kernel.code;
  const bool orders_memory = !all && (!collective || (next < code.size() && code[next].opcode == "NOP"));
  Source mask;
  if (!all) mask = d.source(0, Source::bits);
  if (collective) d.ignore_operand(d.count() - 1);  // behind what is enclosed
  return [=](Warp& w, u32 active) {
    if (active != w.group) throw Fault("WARPSYNC under a condition that differs in a group");
    Lanes room;
    const u32 threads = all ? w.alive : mask.read(w, room)[__builtin_ctz(active)];
    if ((threads & active) != active) throw Fault("__syncwarp of threads that its mask does not name");
    w.wait_for_threads(threads, orders_memory);
  };
}

}  // namespace

// These say where the group goes on; every other instruction is followed by the next.
void add_control(Table& t) {
  t["BRA"] = branch;
  t["CALL"] = call;
  t["RET"] = return_to;
  t["EXIT"] = [](Decoder& d) {
    d.ignore({"KEEPREFCOUNT"});
    return Action([](Warp& w, u32 active) { w.exit(active); });
  };
  t["BSSY"] = [](Decoder& d) {
    d.ignore({"RECONVERGENT"});
    const int n = barrier(d, 0);
    d.ignore_operand(1);  // where they will wait
    return Action([n](Warp& w, u32) { w.set_barrier(n), ++w.next; });
  };
  t["BSYNC"] = [](Decoder& d) {
    d.ignore({"RECONVERGENT"});
    const int n = barrier(d, 0);
    return Action([n](Warp& w, u32 active) {
      if (active != w.group) throw Fault("BSYNC under a condition that differs in a group");
      w.wait(n);
    });
  };
  t["BREAK"] = [](Decoder& d) {
    d.ignore({"RELIABLE"});
    const int n = barrier(d, d.count() - 1);
    Predicate also;
    if (d.count() > 1) also = d.predicate(0);
    return Action([=](Warp& w, u32 active) { w.leave_barrier(n, active & also.read(w)), ++w.next; });
  };
  t["BMOV"] = move_barrier;
  t["BAR"] = block_barrier;
  t["WARPSYNC"] = warp_barrier;
  t["ENDCOLLECTIVE"] = [](Decoder&) { return Action([](Warp& w, u32) { ++w.next; }); };
  // __syncwarp where the threads are in step; otherwise padding.
  t["NOP"] = [](Decoder&) { return Action([](Warp& w, u32) { w.synchronise(), ++w.next; }); };
  t["YIELD"] = [](Decoder&) { return Action([](Warp& w, u32) { ++w.next; }); };
  t["LDGDEPBAR"] = [](Decoder&) { return Action([](Warp& w, u32 active) { w.commit_copies(active), ++w.next; }); };
  // Waits for memory: of barrier 0, for all but the latest groups of asynchronous copies.
  t["DEPBAR"] = [](Decoder& d) {
    d.ignore({"LE"});
    const bool of_copies = d.operand(0).text == "SB0";
    const u32 but = d.count() > 1 ? d.immediate(1) : 0;
    return Action([=](Warp& w, u32 active) {
      if (of_copies) w.land_copies(active, but);
      ++w.next;
    });
  };
}

}  // namespace sass
