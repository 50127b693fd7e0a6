// The functions of CUDA's runtime that nvcc's host code calls, on the interpreter: kernels are launched as the library
// launches them, on tensors of the CPU.
//
// Linked with --wrap for the functions of torch by which an op comes to a tensor's memory and leaves it again: a launch
// may read what the op asked a pointer to, write what it asked a mutable one to, and nothing else. New tensors are NaN.
#include <algorithm>
#include <map>
#include <memory>

#include "session.h"

namespace {

using sass::Dim3;
using sass::Session;

class FatBinary {
 public:
  explicit FatBinary(const void* wrapper) : wrapper_(wrapper) {}
  sass::Module& module() {  // made when first asked for
    if (!module_) {
      cubin_ = sass::cubin_of_fat_binary(wrapper_);
      module_ = std::make_unique<sass::Module>(cubin_.data());
    }
    return *module_;
  }

 private:
  const void* wrapper_;
  std::vector<uint8_t> cubin_;
  std::unique_ptr<sass::Module> module_;
};

struct Function {
  FatBinary* binary;
  std::string name;
};

// By the host's address of a kernel.
std::map<const void*, Function>& functions() {
  static auto* all = new std::map<const void*, Function>;
  return *all;
}

struct Configuration {
  Dim3 grid, threads;
  size_t shared;
  void* stream;
};
thread_local Configuration configuration;
thread_local std::string error;
int multiprocessors = 132;  // an H100 has

constexpr int success = 0, launch_failure = 719;

int launch(const void* host, Dim3 grid, Dim3 threads, void** parameters, size_t shared) {
  Session& session = Session::get();
  const std::lock_guard lock(session.mutex);
  const Function& function = functions().at(host);
  try {
    sass::Launch launch;
    launch.grid = grid, launch.threads = threads;
    launch.dynamic_shared = uint32_t(shared), launch.parameters = parameters;
    error = session.launch(function.binary->module(), function.name, launch);
  } catch (const sass::Fault& fault) {
    error = fault.what();
  }
  return error.empty() ? success : launch_failure;
}

}  // namespace

extern "C" {

void** __cudaRegisterFatBinary(void* wrapper) {
  return reinterpret_cast<void**>(new FatBinary(wrapper));
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void** binary, const char* host, char*, const char* name, int, void*, void*, Dim3*, Dim3*,
                            int*) {
  functions()[host] = {reinterpret_cast<FatBinary*>(binary), name};
}
unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 threads, size_t shared, void* stream) {
  configuration = {grid, threads, shared, stream};
  return 0;
}
int __cudaPopCallConfiguration(Dim3* grid, Dim3* threads, size_t* shared, void* stream) {
  *grid = configuration.grid, *threads = configuration.threads, *shared = configuration.shared;
  *static_cast<void**>(stream) = configuration.stream;
  return success;
}
int __cudaGetKernel(const void** kernel, const void* host) {
  *kernel = host;
  return success;
}
int __cudaLaunchKernel(const void* kernel, Dim3 grid, Dim3 threads, void** parameters, size_t shared, void*) {
  return launch(kernel, grid, threads, parameters, shared);
}
int cudaLaunchKernel(const void* host, Dim3 grid, Dim3 threads, void** parameters, size_t shared, void*) {
  return launch(host, grid, threads, parameters, shared);
}
int cudaGetDevice(int* device) {
  *device = 0;
  return success;
}
int cudaDeviceGetAttribute(int* value, int, int) {
  *value = multiprocessors;  // the one that is asked for
  return success;
}
int cudaGetLastError() {
  return error.empty() ? success : launch_failure;
}
const char* cudaGetErrorString(int) {
  static thread_local std::string said;
  said.swap(error);
  error.clear();
  return said.c_str();
}

#pragma GCC visibility push(default)
// From now on the card has so many.
void sass_set_multiprocessors(int count) {
  multiprocessors = count;
}
// Lines of all kernels there are.
const char* sass_kernels() {
  static std::string names;
  names.clear();
  for (const auto& [host, function] : functions()) names += function.name + "\n";
  return names.c_str();
}
// Lines of kernels that have an instruction which is not known, with its text.
const char* sass_unknown() {
  static std::string found;
  found.clear();
  for (const auto& [host, function] : functions()) {
    try {
      sass::decode(function.binary->module().kernel(function.name));
    } catch (const sass::Fault& fault) {
      found += function.name + ": " + fault.what() + "\n";
    }
  }
  return found.c_str();
}
#pragma GCC visibility pop

// ---- torch's stable ABI: a tensor's memory may be touched from when an op asks where it is until it lets it go

struct AtenTensorOpaque;
using Handle = AtenTensorOpaque*;
int aoti_torch_get_dim(Handle, int64_t*);
int aoti_torch_get_sizes(Handle, int64_t**);
int aoti_torch_get_strides(Handle, int64_t**);
int aoti_torch_get_dtype(Handle, int32_t*);
int32_t aoti_torch_dtype_float16();
int32_t aoti_torch_dtype_bfloat16();
int32_t aoti_torch_dtype_float32();
int32_t aoti_torch_dtype_uint8();
int aoti_torch_get_storage_size(Handle, int64_t*);
int __real_aoti_torch_empty_strided(int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t, Handle*);
int __real_torch_get_const_data_ptr(Handle, const void**);
int __real_torch_get_mutable_data_ptr(Handle, void**);
int __real_aoti_torch_get_data_ptr(Handle, void**);
int __real_aoti_torch_delete_tensor_object(Handle);

static void allow(Handle tensor, const void* begin, bool writable) {
  int64_t dim = 0, *sizes = nullptr, *strides = nullptr;
  int32_t dtype = 0;
  aoti_torch_get_dim(tensor, &dim), aoti_torch_get_dtype(tensor, &dtype);
  aoti_torch_get_sizes(tensor, &sizes), aoti_torch_get_strides(tensor, &strides);
  int64_t elements = 1;
  for (int64_t d = 0; d < dim; ++d) {
    if (sizes[d] == 0) return;
    elements += (sizes[d] - 1) * strides[d];
  }
  const int64_t bytes = dtype == aoti_torch_dtype_uint8()                                             ? 1
                        : dtype == aoti_torch_dtype_float16() || dtype == aoti_torch_dtype_bfloat16() ? 2
                        : dtype == aoti_torch_dtype_float32()                                         ? 4
                                                                                                      : 8;
  Session& session = Session::get();
  const std::lock_guard lock(session.mutex);
  session.memory.allow(tensor, begin, uint64_t(elements * bytes), writable);
}

int __wrap_aoti_torch_empty_strided(int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                                    int32_t device, int32_t index, Handle* out) {
  const int code = __real_aoti_torch_empty_strided(dim, sizes, strides, dtype, device, index, out);
  void* begin = nullptr;
  int64_t bytes = 0;
  if (code == 0 && __real_aoti_torch_get_data_ptr(*out, &begin) == 0 && aoti_torch_get_storage_size(*out, &bytes) == 0)
    std::memset(begin, 0xff, size_t(bytes));
  return code;
}
int __wrap_torch_get_const_data_ptr(Handle tensor, const void** out) {
  const int code = __real_torch_get_const_data_ptr(tensor, out);
  if (code == 0) allow(tensor, *out, false);
  return code;
}
int __wrap_torch_get_mutable_data_ptr(Handle tensor, void** out) {
  const int code = __real_torch_get_mutable_data_ptr(tensor, out);
  if (code == 0) allow(tensor, *out, true);
  return code;
}
int __wrap_aoti_torch_get_data_ptr(Handle tensor, void** out) {
  const int code = __real_aoti_torch_get_data_ptr(tensor, out);
  if (code == 0) allow(tensor, *out, true);
  return code;
}
int __wrap_aoti_torch_delete_tensor_object(Handle tensor) {
  Session& session = Session::get();
  {
    const std::lock_guard lock(session.mutex);
    session.memory.forget(tensor);
  }
  return __real_aoti_torch_delete_tensor_object(tensor);
}

}  // extern "C"
