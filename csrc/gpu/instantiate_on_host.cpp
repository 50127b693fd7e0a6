// The GPU kernels' twin for tests: the same functors, run thread by thread on the host. Compiled once an element
// type, too.
#include <vector>

#include "gpu/dispatch.h"

namespace aablur::gpu {

template <class K>
const char* launch(const K& kernel, int64_t count, void*) {
  for (int64_t i = 0; i < count; ++i) kernel(i);
  return nullptr;
}

template <int Phase, class K>
void run_phases(const K& kernel, const typename K::State& state, bool backwards) {
  constexpr int count = K::Thread::count;
  for (int i = 0; i < count; ++i) kernel.template run<Phase>(state, {backwards ? count - 1 - i : i});
  if constexpr (Phase + 1 < K::phases) run_phases<Phase + 1>(kernel, state, backwards);
}

template <class K>
const char* launch_blocks(const K& kernel, int64_t blocks, int64_t room, void*) {
  struct alignas(16) Vector {
    char bytes[16];
  };
  std::vector<Vector> shared(size_t(room / 16));
  for (int64_t block = 0; block < blocks; ++block) {
    std::memset(shared.data(), 0xff, size_t(room));  // NaN, wherever it is read before it is written
    // Every other block's threads run from the last to the first: they may not lean on each other's order.
    run_phases<0>(kernel, {kernel, uint32_t(block), reinterpret_cast<char*>(shared.data())}, block % 2 == 1);
  }
  return nullptr;
}

AABLUR_DEFINE_KERNELS(AABLUR_ELEMENT, AABLUR_TYPE)

}  // namespace aablur::gpu
