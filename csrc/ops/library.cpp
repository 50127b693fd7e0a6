// The schemas of aablur/schemas.py, which the build writes to schemas.inc.
#include <torch/csrc/stable/library.h>

#include <string>

STABLE_TORCH_LIBRARY(aablur, m) {
  static const char* const schemas[] = {
#include "schemas.inc"
  };
  for (const char* schema : schemas) m.def(schema);
}

namespace aablur {
namespace {

// The architectures that CUDA kernels were compiled for; empty without them.
std::string cuda_archs() {
  return AABLUR_CUDA_ARCHS;
}

}  // namespace
}  // namespace aablur

STABLE_TORCH_LIBRARY_IMPL(aablur, CompositeExplicitAutograd, m) {
  m.impl("cuda_archs", TORCH_BOX(&aablur::cuda_archs));
}
