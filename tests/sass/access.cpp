// Loads and stores of all memories, and asynchronous copies.
#include <algorithm>

#include "decode.h"

namespace sass {
namespace {

using u32 = uint32_t;
using u64 = uint64_t;

struct Width {
  int bytes = 4;
  bool is_signed = false;
  int words() const { return std::max(1, bytes / 4); }
};

Width width(Decoder& d) {
  const std::string name = d.take_one({"U8", "S8", "U16", "S16", "64", "128"}, "32");
  if (name == "U8" || name == "S8") return {1, name[0] == 'S'};
  if (name == "U16" || name == "S16") return {2, name[0] == 'S'};
  return {name == "128" ? 16 : name == "64" ? 8 : 4, false};
}

// How caches are to be used, and who must see it: nothing that changes a value here.
void ignore_caching(Decoder& d) {
  d.ignore({"E", "CONSTANT", "STRONG", "WEAK", "GPU", "SYS", "CTA", "SM", "EF", "EL", "LU", "NA", "EU", "BYPASS",
            "LTC64B", "LTC128B", "LTC256B", "ACCESS"});
}

struct Address {
  Operand operand;
  Address() = default;
  explicit Address(const Operand& o) : operand(o) {}
  void read(const Warp& w, bool global, u64 (&out)[warp_size]) const {
    const bool has_uniform = operand.uniform_base != zero_uniform, has_base = operand.base != zero_register;
    u64 common = u64(int64_t(int32_t(operand.bits)));
    if (has_uniform) {
      common += w.uniform[operand.uniform_base];
      if (global) common += u64(w.uniform[operand.uniform_base + 1]) << 32;
    }
    for (int l = 0; l < warp_size; ++l) {
      u64 base = 0;
      if (has_base && operand.wide) {
        base = u64(w.registers[operand.base + 1][l]) << 32 | w.registers[operand.base][l];
      } else if (has_base) {
        base = u64(w.registers[operand.base][l]) * unsigned(operand.scale);
      }
      out[l] = base + common;
      if (!global) out[l] = u32(out[l]);
    }
  }
};

template <class F>
void each_lane(u32 lanes, F&& f) {
  for (; lanes; lanes &= lanes - 1) f(__builtin_ctz(lanes));
}

// `load(lane, address, to)` for the active lanes, into as many registers as the width has.
template <class F>
void load(Warp& w, u32 active, Width width, const Destination& out, const u64 (&address)[warp_size], F&& load) {
  Lanes word[4];
  each_lane(active, [&](int l) {
    u32 v[4] = {};
    load(l, address[l], v);
    if (width.bytes == 1 && width.is_signed) v[0] = u32(int32_t(int8_t(v[0])));
    if (width.bytes == 2 && width.is_signed) v[0] = u32(int32_t(int16_t(v[0])));
    for (int i = 0; i < width.words(); ++i) word[i][l] = v[i];
  });
  for (int i = 0; i < width.words(); ++i) out.write(w, word[i].v, active, i);
}

struct Stored {
  Source word[4];
  Stored() = default;
  Stored(Decoder& d, size_t n, Width width) {
    for (int i = 0; i < width.words(); ++i) word[i] = d.source(n, Source::bits, i);
  }
  // `store(lane, address, from)` for the active lanes.
  template <class F>
  void each(Warp& w, u32 active, Width width, const u64 (&address)[warp_size], F&& store) const {
    Lanes room[4];
    const u32* value[4];
    for (int i = 0; i < width.words(); ++i) value[i] = word[i].read(w, room[i]);
    each_lane(active, [&](int l) {
      u32 v[4];
      for (int i = 0; i < width.words(); ++i) v[i] = value[i][l];
      store(l, address[l], v);
    });
  }
};

Action load_global(Decoder& d) {
  ignore_caching(d);
  const Width size = width(d);
  const Destination out = d.destination();
  if (!d.is(1, Operand::address) || d.count() > 2) d.unknown();
  const Address from(d.operand(1));
  return [=](Warp& w, u32 active) {
    u64 at[warp_size];
    from.read(w, true, at);
    w.block.global->check(at, active, size.bytes, false);
    w.block.count_global(at, active, size.bytes, false);
    load(w, active, size, out, at, [&](int, u64 address, u32* to) {
      std::memcpy(to, reinterpret_cast<const void*>(address), size_t(size.bytes));
    });
  };
}

Action store_global(Decoder& d) {
  ignore_caching(d);
  const Width size = width(d);
  if (!d.is(0, Operand::address)) d.unknown();
  const Address to(d.operand(0));
  const Stored value(d, 1, size);
  return [=](Warp& w, u32 active) {
    u64 at[warp_size];
    to.read(w, true, at);
    w.block.global->check(at, active, size.bytes, true);
    w.block.count_global(at, active, size.bytes, true);
    value.each(w, active, size, at, [&](int, u64 address, const u32* from) {
      std::memcpy(reinterpret_cast<void*>(address), from, size_t(size.bytes));
    });
  };
}

Action load_shared(Decoder& d) {
  const Width size = width(d);
  const Destination out = d.destination();
  const Address from(d.operand(1));
  return [=](Warp& w, u32 active) {
    u64 at[warp_size];
    from.read(w, false, at);
    w.block.count_shared(at, active, size.bytes);
    load(w, active, size, out, at,
         [&](int l, u64 address, u32* to) { w.block.shared.read(w.thread(l), u32(address), size.bytes, to); });
  };
}

Action store_shared(Decoder& d) {
  const Width size = width(d);
  const Address to(d.operand(0));
  const Stored value(d, 1, size);
  return [=](Warp& w, u32 active) {
    u64 at[warp_size];
    to.read(w, false, at);
    w.block.count_shared(at, active, size.bytes);
    value.each(w, active, size, at, [&](int l, u64 address, const u32* from) {
      w.block.shared.write(w.thread(l), u32(address), size.bytes, from);
    });
  };
}

Action load_local(Decoder& d) {
  d.ignore({"LU"});
  const Width size = width(d);
  const Destination out = d.destination();
  const Address from(d.operand(1));
  return [=](Warp& w, u32 active) {
    u64 at[warp_size];
    from.read(w, false, at);
    load(w, active, size, out, at, [&](int l, u64 address, u32* to) { w.local[l].read(u32(address), size.bytes, to); });
  };
}

Action store_local(Decoder& d) {
  const Width size = width(d);
  const Address to(d.operand(0));
  const Stored value(d, 1, size);
  return [=](Warp& w, u32 active) {
    u64 at[warp_size];
    to.read(w, false, at);
    value.each(w, active, size, at,
               [&](int l, u64 address, const u32* from) { w.local[l].write(u32(address), size.bytes, from); });
  };
}

// A load or a store at addresses of any memory: the parts that lie in shared and in local memory, and the rest.
struct Parts {
  u32 shared = 0, local = 0, global = 0;
  Parts(const u64 (&address)[warp_size], u32 active) {
    each_lane(active, [&](int l) {
      const u64 window = address[l] / AnyMemory::window * AnyMemory::window;
      (window == AnyMemory::shared_window ? shared : window == AnyMemory::local_window ? local : global) |= u32(1) << l;
    });
  }
};

Action load_any(Decoder& d) {
  ignore_caching(d);
  const Width size = width(d);
  const Destination out = d.destination();
  const Address from(d.operand(1));
  return [=](Warp& w, u32 active) {
    u64 at[warp_size];
    from.read(w, true, at);
    const Parts parts(at, active);
    w.block.global->check(at, parts.global, size.bytes, false);
    w.block.count_global(at, parts.global, size.bytes, false);
    w.block.count_shared(at, parts.shared, size.bytes);
    load(w, active, size, out, at, [&](int l, u64 address, u32* to) {
      if (parts.shared >> l & 1) {
        w.block.shared.read(w.thread(l), u32(address), size.bytes, to);
      } else if (parts.local >> l & 1) {
        w.local[l].read(u32(address), size.bytes, to);
      } else {
        std::memcpy(to, reinterpret_cast<const void*>(address), size_t(size.bytes));
      }
    });
  };
}

Action store_any(Decoder& d) {
  ignore_caching(d);
  const Width size = width(d);
  const Address to(d.operand(0));
  const Stored value(d, 1, size);
  return [=](Warp& w, u32 active) {
    u64 at[warp_size];
    to.read(w, true, at);
    const Parts parts(at, active);
    w.block.global->check(at, parts.global, size.bytes, true);
    w.block.count_global(at, parts.global, size.bytes, true);
    w.block.count_shared(at, parts.shared, size.bytes);
    value.each(w, active, size, at, [&](int l, u64 address, const u32* from) {
      if (parts.shared >> l & 1) {
        w.block.shared.write(w.thread(l), u32(address), size.bytes, from);
      } else if (parts.local >> l & 1) {
        w.local[l].write(u32(address), size.bytes, from);
      } else {
        std::memcpy(reinterpret_cast<void*>(address), from, size_t(size.bytes));
      }
    });
  };
}

// Matrices of 8 x 8 halves between shared memory and registers: each of eight threads gives the address of a row, and
// of every matrix a thread holds two elements of row `lane / 4`, or of that column, T.
struct Matrices {
  int count = 1;
  bool transposed = false;
  explicit Matrices(Decoder& d) {
    if (!d.take("16")) d.unknown();
    transposed = d.take_one({"M88", "MT88"}) == "MT88";
    count = std::stoi(d.take_one({"2", "4"}, "1"));
  }
  u32 row_lanes() const { return count == 4 ? all_threads : (u32(1) << (8 * count)) - 1; }
  // Where half `part` of a thread's word of a matrix lies.
  u32 place(const u64 (&row)[warp_size], int matrix, int lane, int part) const {
    const int r = transposed ? lane % 4 * 2 + part : lane / 4, c = transposed ? lane / 4 : lane % 4 * 2 + part;
    return u32(row[8 * matrix + r]) + 2 * u32(c);
  }
};

void check_whole(const Warp& w, u32 active, const Matrices& m, const u64 (&row)[warp_size]) {
  if (active != all_threads) throw Fault("a matrix instruction of a part of a warp");
  each_lane(m.row_lanes(), [&](int l) {
    if (row[l] % 16) throw Fault("shared address " + std::to_string(row[l]) + " is not aligned to 16 bytes");
  });
  w.block.count_shared(row, m.row_lanes(), 16);
}

Action load_matrices(Decoder& d) {
  const Matrices m(d);
  const Destination out = d.destination();
  const Address from(d.operand(1));
  return [=](Warp& w, u32 active) {
    u64 row[warp_size];
    from.read(w, false, row);
    check_whole(w, active, m, row);
    Lanes word[4];
    for (int i = 0; i < m.count; ++i)
      for (int l = 0; l < warp_size; ++l)
        for (int part = 0; part < 2; ++part) {
          uint16_t half;
          w.block.shared.read(w.thread(l), m.place(row, i, l, part), 2, &half);
          word[i][l] = part ? word[i][l] | u32(half) << 16 : half;
        }
    for (int i = 0; i < m.count; ++i) out.write(w, word[i].v, active, i);
  };
}

Action store_matrices(Decoder& d) {
  const Matrices m(d);
  const Address to(d.operand(0));
  Source word[4];
  for (int i = 0; i < m.count; ++i) word[i] = d.source(1, Source::bits, i);
  const Source first = word[0], second = word[1], third = word[2], fourth = word[3];
  return [=](Warp& w, u32 active) {
    u64 row[warp_size];
    to.read(w, false, row);
    check_whole(w, active, m, row);
    const Source* words[] = {&first, &second, &third, &fourth};
    for (int i = 0; i < m.count; ++i) {
      Lanes room;
      const u32* v = words[i]->read(w, room);
      for (int l = 0; l < warp_size; ++l)
        for (int part = 0; part < 2; ++part) {
          const uint16_t half = uint16_t(v[l] >> (16 * part));
          w.block.shared.write(w.thread(l), m.place(row, i, l, part), 2, &half);
        }
    }
  };
}

// cp.async: from global to shared memory, landing at a later wait. ZFILL: where the predicate holds, the lowest bits of
// the address say how many of the last bytes are zeros and are not read; elsewhere all are.
Action copy(Decoder& d) {
  ignore_caching(d);
  const bool fills = d.take("ZFILL");
  const Width size = width(d);
  if (d.count() > (fills ? 3 : 2)) d.unknown();
  const Address to(d.operand(0)), from(d.operand(1));
  Predicate reads;
  if (fills) reads = d.predicate(2);
  return [=](Warp& w, u32 active) {
    u64 shared[warp_size], global[warp_size];
    to.read(w, false, shared);
    from.read(w, true, global);
    const u32 reading = active & reads.read(w);
    int zeros[warp_size] = {};
    u32 partly = 0;
    if (fills)
      each_lane(reading, [&](int l) {
        zeros[l] = int(global[l] % u64(size.bytes));
        global[l] -= u64(zeros[l]);
        partly |= u32(zeros[l] != 0) << l;
      });
    w.block.global->check(global, reading & ~partly, size.bytes, false);
    each_lane(partly, [&](int l) {
      for (int b = 0; b < size.bytes - zeros[l]; ++b) {
        u64 at[warp_size] = {};
        at[l] = global[l] + u64(b);
        w.block.global->check(at, u32(1) << l, 1, false);
      }
    });
    w.block.count_global(global, reading, size.bytes, false);
    w.block.count_shared(shared, active, size.bytes);
    each_lane(active, [&](int l) {
      uint8_t bytes[16] = {};
      const int read = reading >> l & 1 ? size.bytes - zeros[l] : 0;
      std::memcpy(bytes, reinterpret_cast<const void*>(global[l]), size_t(read));
      w.copy(l, u32(shared[l]), bytes, size.bytes);
    });
  };
}

// Constant memory at an address of each thread.
Action load_constant(Decoder& d) {
  const Width size = width(d);
  const Destination out = d.destination();
  if (!d.is(1, Operand::constant)) d.unknown();
  const Operand from = d.operand(1);
  return [=](Warp& w, u32 active) {
    u64 at[warp_size];
    for (int l = 0; l < warp_size; ++l) {
      const u32 base = from.base == zero_register ? 0 : w.registers[from.base][l];
      const u32 common = from.uniform_base == zero_uniform ? 0 : w.uniform[from.uniform_base];
      at[l] = u32(base + common + from.bits);
    }
    load(w, active, size, out, at, [&](int, u64 address, u32* to) {
      for (int i = 0; i < size.words(); ++i)
        to[i] = w.block.constant(from.index, address + 4 * unsigned(i), std::min(size.bytes, 4));
    });
  };
}

}  // namespace

void add_memory(Table& t) {
  t["LDG"] = load_global;
  t["STG"] = store_global;
  t["LDS"] = load_shared;
  t["STS"] = store_shared;
  t["LDL"] = load_local;
  t["STL"] = store_local;
  t["LD"] = load_any;
  t["ST"] = store_any;
  t["LDSM"] = load_matrices;
  t["STSM"] = store_matrices;
  t["LDGSTS"] = copy;
  t["LDC"] = load_constant;
}

}  // namespace sass
