#include "session.h"

#include <algorithm>
#include <cmath>
#include <sstream>

namespace sass {

Session& Session::get() {
  static auto* session = new Session;  // outlives what is destroyed at exit
  return *session;
}

Program& Session::program(Module& module, const std::string& kernel) {
  std::unique_ptr<Program>& known = programs_[{&module, kernel}];
  if (!known) known = std::make_unique<Program>(module.kernel(kernel));
  return *known;
}

std::string Session::launch(Module& module, const std::string& name, Launch launch) {
  try {
    const uint64_t all = uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
    if (share < 1) launch.blocks = std::max(least_blocks, uint64_t(std::ceil(share * double(all))));
    Program& of_kernel = program(module, name);
    const Kernel& kernel = of_kernel.kernel;
    const Counts counts = execute(of_kernel, launch, memory);
    std::ostringstream out;
    const auto field = [&](const char* key, uint64_t value) { out << ", \"" << key << "\": " << value; };
    out << "{\"kernel\": \"" << name << '"';
    field("grid", all), field("threads", launch.threads.count());
    field("registers", uint64_t(kernel.registers)), field("shared", kernel.static_shared + launch.dynamic_shared);
    field("stack", kernel.frame), field("blocks", counts.blocks), field("instructions", counts.instructions);
    field("half_rate", counts.half_rate), field("active_threads", counts.active_threads);
    field("wavefronts", counts.wavefronts), field("wavefronts_ideal", counts.wavefronts_ideal);
    field("requested_sectors", counts.requested_sectors), field("sectors", counts.sectors);
    field("local", counts.local), field("atomics", counts.atomics);
    out << '}';
    report_.push_back(out.str());
    return {};
  } catch (const std::exception& error) {
    return error.what();
  }
}

std::string Session::take_report() {
  std::string out = "[";
  for (const std::string& one : report_) out += (out.size() > 1 ? ",\n" : "") + one;
  report_.clear();
  return out + "]";
}

std::string Session::profile(const std::string& kernel) {
  std::ostringstream out;
  for (const auto& [key, program] : programs_) {
    if (key.second != kernel) continue;
    for (size_t i = 0; i < program->executed.size(); ++i)
      if (program->executed[i]) out << program->executed[i] << '\t' << program->kernel.code[i].text << '\n';
  }
  return out.str();
}

std::string Session::executed() const {
  std::string out;
  for (const auto& [key, program] : programs_) out += key.second + "\n";
  return out;
}

}  // namespace sass

namespace {

std::string answer;

}  // namespace

#pragma GCC visibility push(default)
extern "C" {
const char* sass_report() {
  auto& session = sass::Session::get();
  const std::lock_guard lock(session.mutex);
  return (answer = session.take_report()).c_str();
}
const char* sass_profile(const char* kernel) {
  auto& session = sass::Session::get();
  const std::lock_guard lock(session.mutex);
  return (answer = session.profile(kernel)).c_str();
}
const char* sass_executed() {
  auto& session = sass::Session::get();
  const std::lock_guard lock(session.mutex);
  return (answer = session.executed()).c_str();
}
void sass_execute_share(double share, uint64_t least_blocks) {
  sass::Session::get().share = share;
  sass::Session::get().least_blocks = least_blocks;
}
void sass_allow(const void* begin, uint64_t bytes, bool writable) {
  auto& session = sass::Session::get();
  const std::lock_guard lock(session.mutex);
  session.memory.allow(begin, begin, bytes, writable);
}
void sass_forget(const void* begin) {
  auto& session = sass::Session::get();
  const std::lock_guard lock(session.mutex);
  session.memory.forget(begin);
}
}
#pragma GCC visibility pop
