// What the stubs of CUDA's runtime and driver share: the modules of the process, its memory, and what was launched.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "machine.h"

namespace sass {

class Session {
 public:
  static Session& get();

  // Executes a launch; returns why it failed, or an empty string.
  std::string launch(Module& module, const std::string& kernel, Launch launch);

  // What was launched since the last call, as JSON: a list of kernels, with their launch and its counts.
  std::string take_report();
  std::string profile(const std::string& kernel);  // lines of times issued and instruction
  std::string executed() const;                    // lines of kernels that were launched

  std::mutex mutex;
  GlobalMemory memory;
  // Of large grids a part stands for the whole: this share of the blocks, but no fewer than `least_blocks`.
  double share = 1;
  uint64_t least_blocks = 0;

 private:
  Program& program(Module& module, const std::string& kernel);
  std::map<std::pair<const Module*, std::string>, std::unique_ptr<Program>> programs_;
  std::vector<std::string> report_;
};

}  // namespace sass

// For ctypes. Strings live until the next call.
extern "C" {
const char* sass_report();
const char* sass_profile(const char* kernel);
const char* sass_executed();
void sass_execute_share(double share, uint64_t least_blocks);
void sass_allow(const void* begin, uint64_t bytes, bool writable);
void sass_forget(const void* begin);
}
