#include "warp.h"

#include <algorithm>

namespace sass {

namespace {

template <class F>
void each_lane(uint32_t lanes, F&& f) {
  for (; lanes; lanes &= lanes - 1) f(__builtin_ctz(lanes));
}

}  // namespace

void Warp::begin(uint32_t threads) {
  alive = group = threads;
  next = 0;
  others_ = waiting_ = parked_ = at_block_ = orders_memory_ = votes = 0;
  meets_ = ~0u;
  // Registers hold what earlier kernels left in them.
  std::memset(registers, 0xee, sizeof(Lanes) * size_t(block.kernel->registers));
  std::memset(&registers[zero_register], 0, sizeof(Lanes));
  std::memset(uniform, 0xdd, sizeof uniform);
  uniform[zero_uniform] = 0;
  std::memset(predicates, 0, sizeof predicates);
  predicates[true_predicate] = predicates[first_uniform_predicate + true_predicate] = all_threads;
  std::memset(barriers_, 0, sizeof barriers_);
  std::memset(committed_, 0, sizeof committed_);
  copies_.clear();
  for (LocalMemory& memory : local) memory.begin(block.kernel->frame);
}

// The threads that are least far; they run until they meet others, wait or part.
bool Warp::pick() {
  each_lane(group, [&](int lane) { at_[lane] = next; });
  others_ |= group;
  group = 0;
  while (release()) {
  }
  if (!others_ && parked_) {  // those that are left come to the block's barrier together, or never
    const uint32_t first = at_[__builtin_ctz(parked_)];
    bool together = parked_ == alive;
    each_lane(parked_, [&](int lane) { together = together && at_[lane] == first; });
    if (!together) throw Fault("__syncthreads that only some threads of a warp reach");
    others_ = parked_, parked_ = 0;
  }
  if (!others_) {
    if (!waiting_) return false;
    const int one = __builtin_ctz(waiting_);
    int other = one;
    each_lane(waiting_, [&](int lane) { other = at_[lane] == at_[one] ? other : lane; });
    throw Fault(
        "threads of a warp wait for ever, at a barrier that only some threads of a warp reach: before instructions " +
        std::to_string(at_[one]) + " and " + std::to_string(at_[other]));
  }
  next = ~0u;
  each_lane(others_, [&](int lane) { next = std::min(next, at_[lane]); });
  each_lane(others_, [&](int lane) { group |= uint32_t(at_[lane] == next) << lane; });
  others_ &= ~group;
  meets_ = ~0u;
  each_lane(others_, [&](int lane) { meets_ = std::min(meets_, at_[lane]); });
  return true;
}

// Lets threads go on whose convergence barrier all have reached that take part and live; whether there were any.
bool Warp::release() {
  uint32_t released = 0;
  each_lane(waiting_, [&](int lane) {
    const uint32_t participants = barriers_[waits_for_[lane]][lane] & alive;
    bool all = true;
    each_lane(participants,
              [&](int other) { all = all && (waiting_ >> other & 1) && waits_for_[other] == waits_for_[lane]; });
    released |= uint32_t(all) << lane;
  });
  for (uint32_t left = released & orders_memory_; left;) {
    const int lane = __builtin_ctz(left);
    const uint32_t threads = barriers_[step_barrier][lane];
    block.shared.order.synchronise_warp(index, (threads & alive) == alive ? all_threads : threads);
    left &= ~(threads | uint32_t(1) << lane);
  }
  orders_memory_ &= ~released;
  waiting_ &= ~released;
  others_ |= released;
  return released != 0;
}

void Warp::jump(uint32_t taken, uint32_t target) {
  if (taken == group) {
    next = target;
    if (others_) pick();
    return;
  }
  ++next;
  if (!taken) return;
  each_lane(taken, [&](int lane) { at_[lane] = target; });
  others_ |= taken;
  group &= ~taken;
  pick();
}

void Warp::jump(uint32_t taken, const Lanes& targets) {
  ++next;
  each_lane(taken, [&](int lane) { at_[lane] = targets[lane]; });
  others_ |= taken;
  group &= ~taken;
  pick();
}

void Warp::exit(uint32_t threads) {
  alive &= ~threads;
  group &= ~threads;
  ++next;
}

void Warp::set_barrier(int barrier, uint32_t threads, uint32_t participants) {
  each_lane(threads, [&](int lane) { barriers_[barrier][lane] = participants; });
}

uint32_t Warp::participants(int barrier) const {
  return group ? barriers_[barrier][__builtin_ctz(group)] : 0;
}

void Warp::leave_barrier(int barrier, uint32_t threads) {
  const uint32_t known = participants(barrier);
  each_lane(known, [&](int lane) { barriers_[barrier][lane] &= ~threads; });
}

void Warp::wait(int barrier) {
  each_lane(group, [&](int lane) { waits_for_[lane] = barrier, at_[lane] = next + 1; });
  waiting_ |= group;
  group = 0;
}

void Warp::wait_for_threads(uint32_t threads, bool orders_memory) {
  set_barrier(step_barrier, group, threads);
  if (orders_memory) orders_memory_ |= group;
  wait(step_barrier);
}

void Warp::park() {
  each_lane(group, [&](int lane) { at_[lane] = next; });
  parked_ |= group;
  group = 0;
}

void Warp::wait_for_block() {
  block_barrier_at_ = next;
  each_lane(group, [&](int lane) { at_[lane] = next + 1; });
  at_block_ |= group;
  group = 0;
}

void Warp::open_block_barrier() {
  others_ |= at_block_;
  at_block_ = 0;
}

void Warp::copy(int lane, uint32_t to, const void* from, int width) {
  Copy copy{lane, committed_[lane], to, width, {}};
  std::memcpy(copy.bytes.data(), from, size_t(width));
  block.shared.begin_copy(thread(lane), to, width, from);
  copies_.push_back(copy);
}

void Warp::commit_copies(uint32_t threads) {
  each_lane(threads, [&](int lane) { ++committed_[lane]; });
}

void Warp::land_copies(uint32_t threads, uint32_t but_latest) {
  const auto lands = [&](const Copy& copy) {
    if (!(threads >> copy.lane & 1) || copy.group + but_latest >= committed_[copy.lane]) return false;
    block.shared.land(thread(copy.lane), copy.to, copy.width, copy.bytes.data());
    return true;
  };
  copies_.erase(std::remove_if(copies_.begin(), copies_.end(), lands), copies_.end());
}

void Block::arrive(Warp& warp, uint32_t number, uint32_t of_threads, bool waits, uint32_t votes) {
  if (number >= 16) throw Fault("no barrier " + std::to_string(number));
  BlockBarrier& barrier = barriers[number];
  if (of_threads % warp_size) throw Fault("a barrier of a part of a warp");
  if (barrier.arrived && barrier.threads != of_threads) throw Fault("a barrier of different numbers of threads");
  barrier.threads = of_threads;
  barrier.arrived += warp_size;
  barrier.votes += uint32_t(__builtin_popcount(votes));
  barrier.all_vote &= votes == warp.group;
  barrier.arrivals.push_back(shared.order.arrive(warp.index));
  if (!waits) {
    ++warp.next;
    return;
  }
  barrier.waiting.push_back(&warp);
  warp.wait_for_block();
}

bool Block::open_barriers(const std::vector<Warp*>& alive) {
  bool any = false;
  for (BlockBarrier& barrier : barriers) {
    const bool of_all = barrier.threads == 0;
    if (!barrier.arrived || (of_all ? barrier.waiting.size() < alive.size() : barrier.arrived < barrier.threads))
      continue;
    if (of_all) {
      for (const Warp* warp : barrier.waiting)
        if (warp->block_barrier_at() != barrier.waiting[0]->block_barrier_at())
          throw Fault("warps of a block wait at different calls of __syncthreads");
      shared.order.synchronise_block();
    } else {
      std::vector<int> waiting;
      for (const Warp* warp : barrier.waiting) waiting.push_back(warp->index);
      shared.order.synchronise_warps(barrier.arrivals, waiting);
    }
    for (Warp* warp : barrier.waiting)
      warp->votes = barrier.votes, warp->all_vote = barrier.all_vote, warp->open_block_barrier();
    barrier = {};
    any = true;
  }
  return any;
}

uint32_t Block::constant(int bank, uint64_t at, int width) const {
  const std::vector<uint8_t>* data = &bank0;
  if (bank != 0) {
    const auto it = kernel->banks.find(bank);
    if (it == kernel->banks.end()) throw Fault("no constant bank " + std::to_string(bank));
    data = &it->second;
  }
  if (at + uint64_t(width) > data->size()) throw Fault("constant read past the end of bank " + std::to_string(bank));
  uint32_t value = 0;
  std::memcpy(&value, data->data() + at, size_t(width));
  return value;
}

// An access of 8 or 16 bytes a thread is made in two or four parts; in a part, each of 32 banks gives a word a
// wavefront.
void Block::count_shared(const uint64_t (&address)[32], uint32_t active, int width) {
  const int parts = width == 16 ? 4 : width == 8 ? 2 : 1, threads = warp_size / parts, words = std::max(1, width / 4);
  for (int part = 0; part < parts; ++part) {
    uint32_t seen[warp_size][warp_size], count[warp_size] = {}, most = 0;
    each_lane(active & uint32_t(((uint64_t(1) << threads) - 1) << (part * threads)), [&](int lane) {
      for (int w = 0; w < words; ++w) {
        const uint32_t word = uint32_t(address[lane] / 4) + uint32_t(w), bank = word % warp_size;
        if (std::find(seen[bank], seen[bank] + count[bank], word) != seen[bank] + count[bank]) continue;
        seen[bank][count[bank]++] = word;
        most = std::max(most, count[bank]);
      }
    });
    counts.wavefronts += most;
    counts.wavefronts_ideal += most > 0;
  }
}

void Block::count_global(const uint64_t (&address)[32], uint32_t active, int width, bool write) {
  constexpr uint64_t sector = 32;
  uint64_t of_instruction[warp_size];
  int count = 0;
  each_lane(active, [&](int lane) {
    (void)width;  // an aligned access lies in one sector
    const uint64_t touched = address[lane] / sector * 2 + write;
    for (int i = count; i-- > 0;)
      if (of_instruction[i] == touched) return;
    of_instruction[count++] = touched;
  });
  counts.requested_sectors += uint64_t(count);
  sectors.insert(sectors.end(), of_instruction, of_instruction + count);
}

void Block::count_sectors() {
  std::sort(sectors.begin(), sectors.end());
  counts.sectors += uint64_t(std::unique(sectors.begin(), sectors.end()) - sectors.begin());
  sectors.clear();
}

}  // namespace sass
