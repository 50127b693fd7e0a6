// The GPU kernels' twin for tests: the same functors, run thread by thread on the host. Compiled once an element
// type, too.
#include "gpu_dispatch.h"

namespace aablur::gpu {

template <class K>
const char* launch(const K& kernel, int64_t count, void*) {
  for (int64_t i = 0; i < count; ++i) kernel(i);
  return nullptr;
}

AABLUR_DEFINE_KERNELS(AABLUR_ELEMENT, AABLUR_TYPE)

}  // namespace aablur::gpu
