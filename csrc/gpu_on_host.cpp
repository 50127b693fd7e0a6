// The GPU kernels' twin for tests: the same functors, run thread by thread on the host.
#include "gpu_dispatch.h"

namespace aablur::gpu {

template <class K>
const char* launch(const K& kernel, int64_t count, void*) {
  for (int64_t i = 0; i < count; ++i) kernel(i);
  return nullptr;
}

const Kernels float16_kernels = Dispatch<float16>::kernels, bfloat16_kernels = Dispatch<bfloat16>::kernels,
              float32_kernels = Dispatch<float>::kernels, float64_kernels = Dispatch<double>::kernels;

}  // namespace aablur::gpu
