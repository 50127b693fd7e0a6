// A warp: its registers, and which of its threads go on where (independent thread scheduling, convergence barriers).
#pragma once

#include <array>
#include <cstring>
#include <vector>

#include "memory.h"
#include "module.h"

namespace sass {

constexpr int warp_size = 32;
constexpr uint32_t all_threads = ~0u;

struct alignas(64) Lanes {
  uint32_t v[warp_size];
  uint32_t& operator[](int lane) { return v[lane]; }
  uint32_t operator[](int lane) const { return v[lane]; }
};

struct Dim3 {
  uint32_t x = 1, y = 1, z = 1;
  uint32_t count() const { return x * y * z; }
};

// What a launch issued, and what it asked of the memories.
struct Counts {
  uint64_t blocks = 0;              // that were executed
  uint64_t instructions = 0;        // of warps: each takes an issue slot
  uint64_t half_rate = 0;           // of them integers, bits, comparisons and conversions, which have half the lanes
  uint64_t active_threads = 0;      // over all instructions
  uint64_t wavefronts = 0;          // of shared memory
  uint64_t wavefronts_ideal = 0;    // without bank conflicts
  uint64_t requested_sectors = 0;   // of 32 bytes of global memory, by each instruction
  uint64_t sectors = 0;             // likewise, each counted once a block: what the first-level cache cannot save
  uint64_t local = 0, atomics = 0;  // instructions
};

class Warp;

// A barrier of the block: `threads` of it, or all that live where 0.
struct BlockBarrier {
  uint32_t threads = 0, arrived = 0, votes = 0;
  bool all_vote = true;
  std::vector<Order::Arrival> arrivals;
  std::vector<Warp*> waiting;
};

// What the warps of a block share.
struct Block {
  const Kernel* kernel = nullptr;
  const GlobalMemory* global = nullptr;
  SharedMemory shared;
  std::vector<uint8_t> bank0;  // the launch's dimensions and parameters
  Counts counts;
  Dim3 grid, threads, index;
  BlockBarrier barriers[16];
  std::vector<uint64_t> sectors;  // touched by this block, with marks of reads and writes; unsorted

  // A warp comes to a barrier, of which some of its threads vote; it waits there or goes on.
  void arrive(Warp& warp, uint32_t barrier, uint32_t threads, bool waits, uint32_t votes);
  // Opens the barriers that all have reached; whether there were any.
  bool open_barriers(const std::vector<Warp*>& alive);

  uint32_t constant(int bank, uint64_t at, int width) const;
  void count_shared(const uint64_t (&address)[32], uint32_t active, int width);
  void count_global(const uint64_t (&address)[32], uint32_t active, int width, bool write);
  void count_sectors();
};

class Warp {
 public:
  Warp(Block& block, int index) : block(block), index(index) {}

  Lanes registers[256];
  uint32_t predicates[16];  // P0 ... PT, UP0 ... UPT: a bit a thread; of uniform ones all are alike
  uint32_t uniform[64];
  Block& block;
  const int index;

  void begin(uint32_t threads);
  int thread(int lane) const { return index * warp_size + lane; }

  // ---- where its threads are; instructions are numbered from 0
  uint32_t group = 0;  // those that run
  uint32_t next = 0;   // what they run next
  uint32_t alive = 0;
  bool pick();  // chooses the group that runs; false when none can before the block's barrier opens
  void jump(uint32_t taken, uint32_t target);
  void jump(uint32_t taken, const Lanes& targets);
  void exit(uint32_t threads);
  void set_barrier(int barrier) { set_barrier(barrier, group, group); }
  void set_barrier(int barrier, uint32_t threads, uint32_t participants);
  uint32_t participants(int barrier) const;
  void leave_barrier(int barrier, uint32_t threads);
  void wait(int barrier);
  void wait_for_threads(uint32_t threads, bool orders_memory);  // until all of these that live wait likewise
  // Threads that go on in step have come to a __syncwarp.
  void synchronise() { block.shared.order.synchronise_warp(index, group == alive ? all_threads : group); }
  void park();  // at the block's barrier, until it is known that the other threads exit
  void wait_for_block();
  bool at_block_barrier() const { return at_block_ != 0; }
  uint32_t block_barrier_at() const { return block_barrier_at_; }
  void open_block_barrier();
  uint32_t votes = 0;  // of the latest barrier: how many threads, and whether all
  bool all_vote = false;
  bool meets_others() const { return next == meets_; }  // threads that stand where the group comes by

  // ---- asynchronous copies to shared memory (cp.async)
  void copy(int lane, uint32_t to, const void* from, int width);
  void commit_copies(uint32_t threads);
  void land_copies(uint32_t threads, uint32_t but_latest);

  LocalMemory local[warp_size];

 private:
  struct Copy {
    int lane;
    uint32_t group, to;  // of copies committed together
    int width;
    std::array<uint8_t, 16> bytes;
  };
  bool release();

  static constexpr int step_barrier = 16;  // behind the barriers that have a register: of a __syncwarp
  Lanes at_;                               // where each thread goes on that does not run now
  uint32_t others_ = 0, waiting_ = 0, parked_ = 0, at_block_ = 0, block_barrier_at_ = 0, orders_memory_ = 0;
  uint32_t meets_ = ~0u;
  int waits_for_[warp_size];
  uint32_t barriers_[17][warp_size];  // the participants that each thread knows of
  uint32_t committed_[warp_size];
  std::vector<Copy> copies_;
};

}  // namespace sass
