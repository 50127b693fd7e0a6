// The hot kernels alone, for cuda_kernels.py to compile: 3 taps, stride 2, windows of 2 with codes, in the
// configurations of gpu/configs.h.
#include "gpu/launch_cuda.cuh"

namespace aablur::gpu {

#define AABLUR_HOT(...) template __global__ void run<__VA_ARGS__>(const __grid_constant__ __VA_ARGS__, int64_t);
#define AABLUR_HOT_TILES(T)                                      \
  AABLUR_HOT(BlurTile<T, 3, 2, BlurNhwc<T>>)                     \
  AABLUR_HOT(BlurTile<T, 3, 2, BlurElements>)                    \
  AABLUR_HOT(BlurBackwardTile<T, 3, 2, BlurBackwardNhwc<T>, 1>)  \
  AABLUR_HOT(BlurBackwardTile<T, 3, 2, BlurBackwardElements, 1>) \
  AABLUR_HOT(MaxBlurTile<T, 3, 2, MaxNhwc, 2, true>)             \
  AABLUR_HOT(BlurBackwardTile<T, 3, 2, MaxBackwardNhwc, 2>)
AABLUR_HOT_TILES(float)
AABLUR_HOT_TILES(bfloat16)

#define AABLUR_HOT_BLOCKS(...) template __global__ void run_blocks<__VA_ARGS__>(const __grid_constant__ __VA_ARGS__);
#define AABLUR_HOT_PLANES(T)                      \
  AABLUR_HOT_BLOCKS(BlurPlanes<T, 3, 2>)          \
  AABLUR_HOT_BLOCKS(BlurBackwardPlanes<T, 3, 2>)  \
  AABLUR_HOT_BLOCKS(MaxBlurPlanes<T, 3, 2, true>) \
  AABLUR_HOT_BLOCKS(MaxBackwardPlanes<T, 3, 2>)
AABLUR_HOT_PLANES(float)
AABLUR_HOT_PLANES(bfloat16)

}  // namespace aablur::gpu
