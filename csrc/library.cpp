// The schemas of aablur/schemas.py, which the build writes to schemas.inc.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(aablur, m) {
  static const char* const schemas[] = {
#include "schemas.inc"
  };
  for (const char* schema : schemas) m.def(schema);
}
