// The memories that a launch touches, and what may not be done to them.
//
// Global memory is the process's own: an access must lie inside of one of the ranges that were allowed, aligned to its
// width. Shared memory remembers of each byte who wrote and who read it last, and when. What two threads do to a byte
// is ordered by __syncthreads, inside of a warp by __syncwarp, too; an access that is not is a race. Reads of bytes
// that nobody wrote in this block are faults, and so is touching what an asynchronous copy (cp.async) will still write:
// it lands when its thread waits for it. Local memory is a thread's own: reads of what it did not write are faults.
#pragma once

#include <cstdint>
#include <vector>

#include "instruction.h"
#include "order.h"

namespace sass {

struct Range {
  const void* owner;
  uint64_t begin, end;
  bool writable;
};

class GlobalMemory {
 public:
  void allow(const void* owner, const void* begin, uint64_t bytes, bool writable);
  void forget(const void* owner);
  // Throws Fault unless every active lane's access is allowed.
  void check(const uint64_t (&address)[32], uint32_t active, int width, bool write) const;

 private:
  const Range* find(uint64_t begin, uint64_t end) const;
  std::vector<Range> ranges_;
};

class SharedMemory {
 public:
  Order order;
  void begin_block(uint32_t begin, uint32_t end, int warps);
  bool has(uint32_t at) const { return at >= begin_ && at < end_; }
  // `by`: the number of a thread in its block.
  void read(int by, uint32_t at, int width, void* to);
  void write(int by, uint32_t at, int width, const void* from);
  void begin_copy(int by, uint32_t at, int width, const void* from);  // a write that lands later
  void land(int by, uint32_t at, int width, const void* from);

 private:
  // Of several readers since a write it is enough to know whether they were of one warp, or of which warps.
  struct Byte {
    uint32_t written = 0, read = 0, warps = 0;
    uint16_t writer = 0, reader = 0;
    bool in_flight = false;
  };
  static constexpr uint16_t several_of_warp = 0x8000, several = 0xffff;

  void check(uint32_t at, int width) const;
  void store(int by, uint32_t at, int width, const void* from);
  bool reads_are_before(int by, const Byte& byte) const;

  uint32_t begin_ = 0, end_ = 0;
  std::vector<uint8_t> data_;
  std::vector<Byte> bytes_;
};

// Where addresses of any memory have the other two: beyond what a process can have.
struct AnyMemory {
  static constexpr uint64_t window = uint64_t(1) << 32, shared_window = uint64_t(1) << 56,
                            local_window = uint64_t(2) << 56;
};

// The stack of one thread: `frame` bytes below `top`.
class LocalMemory {
 public:
  static constexpr uint32_t top = 0x00fffff0;
  void begin(uint32_t frame);
  void read(uint32_t at, int width, void* to) const;
  void write(uint32_t at, int width, const void* from);

 private:
  size_t offset(uint32_t at, int width) const;
  std::vector<uint8_t> data_;
  std::vector<bool> written_;
};

}  // namespace sass
