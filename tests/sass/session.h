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

  std::mutex mutex;
  GlobalMemory memory;
  uint64_t blocks = 0;  // as of Launch

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
void sass_execute_blocks(uint64_t blocks);
void sass_allow(const void* begin, uint64_t bytes, bool writable);
void sass_forget(const void* begin);
}
