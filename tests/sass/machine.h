// Executes launches of compiled kernels on the CPU: their machine code, warp by warp, and counts what they issue.
#pragma once

#include <string>
#include <vector>

#include "decode.h"

namespace sass {

struct Launch {
  Dim3 grid, threads;
  uint32_t dynamic_shared = 0;
  void* const* parameters = nullptr;  // addresses of the arguments
  // Blocks that are executed, evenly spread over the grid; 0: all.
  uint64_t blocks = 0;
};

// A kernel that can be launched.
class Program {
 public:
  explicit Program(const Kernel& kernel) : kernel(kernel), steps(decode(kernel)) {}
  const Kernel& kernel;
  const std::vector<Step> steps;
  std::vector<uint64_t> executed;  // times a warp issued each instruction, over all launches
};

// Throws Fault, which says where.
Counts execute(Program& program, const Launch& launch, const GlobalMemory& global);

}  // namespace sass
