// The functions of CUDA's driver that Triton's launcher calls, on the interpreter: a libcuda.so.1 for tests.
//
// A launch may touch what sass_allow named.
#include <cstring>

#include "session.h"

namespace {

using sass::Module;
using sass::Session;

struct Function {
  Module* module;
  std::string name;
};

struct Configuration {  // the head of CUlaunchConfig
  unsigned grid[3], block[3], shared;
};

struct {
  unsigned grid[3], block[3];
  std::vector<uint64_t> parameters;
} last;

std::string error;
int context;

constexpr int success = 0, invalid_value = 1, launch_failed = 719;

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

int cuModuleLoadData(Module** out, const void* image) {
  try {
    *out = new Module(image);
    return success;
  } catch (const sass::Fault& fault) {
    error = fault.what();
    return invalid_value;
  }
}
int cuModuleGetFunction(Function** out, Module* module, const char* name) {
  *out = new Function{module, name};
  return success;
}
int cuLaunchKernelEx(const Configuration* config, Function* function, void** parameters, void**) {
  Session& session = Session::get();
  const std::lock_guard lock(session.mutex);
  sass::Launch launch;
  launch.grid = {config->grid[0], config->grid[1], config->grid[2]};
  launch.threads = {config->block[0], config->block[1], config->block[2]};
  launch.dynamic_shared = config->shared, launch.parameters = parameters;
  std::memcpy(last.grid, config->grid, sizeof last.grid);
  std::memcpy(last.block, config->block, sizeof last.block);
  last.parameters.clear();
  try {
    for (const sass::Parameter& p : function->module->kernel(function->name).parameters) {
      uint64_t value = 0;
      if (p.size <= sizeof value) std::memcpy(&value, parameters[last.parameters.size()], p.size);
      last.parameters.push_back(value);
    }
    error = session.launch(*function->module, function->name, launch);
  } catch (const sass::Fault& fault) {
    error = fault.what();
  }
  return error.empty() ? success : launch_failed;
}
int cuGetErrorString(int, const char** out) {
  *out = error.c_str();
  return success;
}
// The last launch: as many parameters as there is room for.
int sass_last_launch(uint64_t* values, int room, unsigned* grid, unsigned* block) {
  std::memcpy(grid, last.grid, sizeof last.grid);
  std::memcpy(block, last.block, sizeof last.block);
  for (size_t i = 0; i < last.parameters.size() && int(i) < room; ++i) values[i] = last.parameters[i];
  return int(last.parameters.size());
}

int cuPointerGetAttribute(void* out, int, uint64_t pointer) {
  *static_cast<uint64_t*>(out) = pointer;
  return success;
}
int cuDeviceGetAttribute(int* out, int attribute, int) {
  switch (attribute) {                 // CUdevice_attribute, an H100's
    case 10: *out = 32; break;         // lanes of a warp
    case 16: *out = 132; break;        // multiprocessors
    case 81: *out = 228 << 10; break;  // bytes of shared memory of one
    case 97: *out = 227 << 10; break;  // and the most that a block may ask for
    default: *out = 1024;
  }
  return success;
}
int cuFuncGetAttribute(int* out, int attribute, Function*) {
  *out = attribute ? 0 : 1024;
  return success;
}
int cuCtxGetCurrent(void** out) {
  *out = &context;
  return success;
}
#define NOTHING(name) \
  int name(void) {    \
    return success;   \
  }
NOTHING(cuInit)
NOTHING(cuCtxGetDevice)
NOTHING(cuCtxGetLimit)
NOTHING(cuCtxSetCurrent)
NOTHING(cuCtxSetLimit)
NOTHING(cuDeviceGet)
NOTHING(cuDeviceGetCount)
NOTHING(cuDevicePrimaryCtxRetain)
NOTHING(cuDriverGetVersion)
NOTHING(cuFuncSetAttribute)
NOTHING(cuFuncSetCacheConfig)
NOTHING(cuModuleUnload)
NOTHING(cuOccupancyMaxActiveClusters)
NOTHING(cuStreamIsCapturing)
NOTHING(cuTensorMapEncodeIm2col)
NOTHING(cuTensorMapEncodeTiled)
}
#pragma GCC visibility pop
