// The schemas of aablur/schemas.py, which the build writes to schemas.inc.
#include "ops/problem.h"

STABLE_TORCH_LIBRARY(aablur, m) {
  static const char* const schemas[] = {
#include "schemas.inc"
  };
  for (const char* schema : schemas) m.def(schema);
}

namespace aablur {
namespace {

// The architectures that CUDA kernels were compiled for; empty without them.
Ints cuda_archs() {
  return characters(AABLUR_CUDA_ARCHS);
}

}  // namespace
}  // namespace aablur

STABLE_TORCH_LIBRARY_IMPL(aablur, CompositeExplicitAutograd, m) {
  m.impl("cuda_archs", TORCH_BOX(&aablur::cuda_archs));
}
