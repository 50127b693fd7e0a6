// The GPU kernels for CUDA: compiled once an element type (AABLUR_ELEMENT names it), so that ninja does them side by
// side.
#include "gpu/launch_cuda.cuh"

namespace aablur::gpu {

AABLUR_DEFINE_KERNELS(AABLUR_ELEMENT, AABLUR_TYPE)

}  // namespace aablur::gpu
