// Branches, convergence barriers, calls, and the barriers of a block.
#include "decode.h"

namespace sass {
namespace {

using u32 = uint32_t;

constexpr u32 instruction_bytes = 16;

Action branch(Decoder& d) {
  d.ignore({"U", "CONV"});
  if (!d.is(d.count() - 1, Operand::immediate)) d.unknown();
  const u32 target = d.immediate(d.count() - 1) / instruction_bytes;
  if (d.take("DIV")) {  // to the code for warps whose threads are not in step
    return [=](Warp& w, u32 active) {
      if (active != w.alive) throw Fault("BRA.DIV of a part of a warp");
      ++w.next;
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

Action block_barrier(Decoder& d) {
  if (!d.take("SYNC")) d.unknown();
  d.ignore({"DEFER_BLOCKING"});
  const u32 number = d.immediate(0);
  if (d.count() > 1) d.unknown();  // a barrier of a part of the block
  return [=](Warp& w, u32 active) {
    if (active != w.group) throw Fault("__syncthreads that only some threads of a warp reach");
    w.land_copies(0, 0);
    w.wait_for_block(int(number));
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
  t["WARPSYNC"] = [](Decoder& d) {
    d.ignore({"ALL"});
    return Action([](Warp& w, u32) { w.synchronise(), ++w.next; });
  };
  // __syncwarp where the compiler knows that the warp is in step; otherwise padding.
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
