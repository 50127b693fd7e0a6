#include "machine.h"

#include <algorithm>
#include <memory>
#include <sstream>

namespace sass {
namespace {

// Until all threads have exited or wait at the block's barrier.
void run(Program& program, Warp& warp) {
  Counts& counts = warp.block.counts;
  while (warp.group || warp.pick()) {
    if (warp.meets_others()) warp.pick();
    if (warp.next >= program.steps.size()) throw Fault("past the end of the code");
    const Step& step = program.steps[warp.next];
    const uint32_t guard = warp.predicates[step.guard], active = warp.group & (step.guard_inverted ? ~guard : guard);
    ++counts.instructions;
    counts.half_rate += step.half_rate;
    counts.local += step.local;
    counts.atomics += step.atomic;
    counts.active_threads += uint64_t(__builtin_popcount(active));
    ++program.executed[warp.next];
    if (step.control && active) {
      step.action(warp, active);
    } else {
      if (active) step.action(warp, active);
      ++warp.next;
    }
  }
}

// All warps from barrier to barrier.
void run_block(Program& program, std::vector<std::unique_ptr<Warp>>& warps, std::string& where) {
  std::vector<Warp*> alive;
  for (auto& warp : warps) alive.push_back(warp.get());
  while (!alive.empty()) {
    for (Warp* warp : alive) {
      if (warp->at_block_barrier()) continue;
      try {
        run(program, *warp);
      } catch (const Fault&) {
        std::ostringstream out;
        out << "warp " << warp->index << ", instruction " << warp->next;
        if (warp->next < program.steps.size()) out << ": " << program.kernel.code[warp->next].text;
        where = out.str();
        throw;
      }
    }
    alive.erase(std::remove_if(alive.begin(), alive.end(), [](const Warp* w) { return !w->alive; }), alive.end());
    if (!alive.empty() && !alive[0]->block.open_barriers(alive))
      throw Fault("warps of a block wait for ever at a barrier that others do not reach");
  }
}

// Where in its part of a grid a block is chosen: anywhere, so that no pattern of the grid is met or missed; always
// alike.
double within(uint64_t i) {
  return double((i + 1) * 11400714819323198485ull >> 11) * 0x1p-53;
}

// Constant bank 0: the launch's dimensions, where the stack begins, and the parameters.
std::vector<uint8_t> bank0(const Kernel& kernel, const Launch& launch) {
  uint32_t size = kernel.first_parameter();
  for (const Parameter& p : kernel.parameters) size = std::max(size, kernel.first_parameter() + p.offset + p.size);
  std::vector<uint8_t> bank((size + 15) / 16 * 16, 0);
  const auto put = [&](size_t at, uint32_t v) { std::memcpy(&bank[at], &v, 4); };
  const uint32_t dimensions[] = {launch.threads.x, launch.threads.y, launch.threads.z,
                                 launch.grid.x,    launch.grid.y,    launch.grid.z};
  for (size_t i = 0; i < 6; ++i) put(4 * i, dimensions[i]);
  constexpr size_t shared_window = 0x18, local_window = 0x20, stack = 0x28;
  put(shared_window + 4, AnyMemory::shared_window >> 32);
  put(local_window + 4, AnyMemory::local_window >> 32);
  put(stack, LocalMemory::top);
  for (size_t i = 0; i < kernel.parameters.size(); ++i)
    std::memcpy(&bank[kernel.first_parameter() + kernel.parameters[i].offset], launch.parameters[i],
                kernel.parameters[i].size);
  return bank;
}

}  // namespace

Counts execute(Program& program, const Launch& launch, const GlobalMemory& global) {
  program.executed.resize(program.steps.size());
  Block block;
  block.kernel = &program.kernel;
  block.global = &global;
  block.bank0 = bank0(program.kernel, launch);
  block.grid = launch.grid, block.threads = launch.threads;
  std::vector<std::unique_ptr<Warp>> warps;
  for (uint32_t first = 0; first < launch.threads.count(); first += warp_size)
    warps.push_back(std::make_unique<Warp>(block, int(warps.size())));
  const uint32_t begin = program.kernel.shared_begin(),
                 end = begin + program.kernel.static_shared + launch.dynamic_shared;
  const uint64_t blocks = uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z,
                 executed = launch.blocks == 0 ? blocks : std::min(blocks, launch.blocks);
  for (uint64_t i = 0; i < executed; ++i) {
    const uint64_t number =
        executed < blocks ? uint64_t((double(i) + within(i)) * double(blocks) / double(executed)) : i;
    block.index = {uint32_t(number % launch.grid.x), uint32_t(number / launch.grid.x % launch.grid.y),
                   uint32_t(number / launch.grid.x / launch.grid.y)};
    block.shared.begin_block(begin, end, int(warps.size()));
    for (BlockBarrier& barrier : block.barriers) barrier = {};
    for (auto& warp : warps) {
      const uint32_t left = launch.threads.count() - uint32_t(warp->index) * warp_size;
      warp->begin(left >= warp_size ? all_threads : (1u << left) - 1);
    }
    std::string where;
    try {
      run_block(program, warps, where);
    } catch (const Fault& fault) {
      std::ostringstream out;
      out << fault.what() << " [" << program.kernel.name << ", block " << number << " of " << blocks;
      if (!where.empty()) out << ", " << where;
      throw Fault(out.str() + "]");
    }
    block.count_sectors();
  }
  block.counts.blocks = executed;
  return block.counts;
}

}  // namespace sass
