// The hot kernels alone, for cuda_kernels.py to compile and count: 3 taps, stride 2.
#include "gpu/launch_cuda.cuh"

namespace aablur::gpu {

#define AABLUR_HOT(...) template __global__ void run<__VA_ARGS__>(const __grid_constant__ __VA_ARGS__, int64_t);
AABLUR_HOT(BlurTile<float, 4, 3, 2, 2, 4, false>)
AABLUR_HOT(BlurTile<float, 1, 3, 2, 2, 8, true>)
AABLUR_HOT(BlurTile<float, 1, 3, 2, 2, 4, false>)
AABLUR_HOT(BlurTile<bfloat16, 8, 3, 2, 2, 4, false>)
AABLUR_HOT(BlurTile<bfloat16, 1, 3, 2, 4, 8, true>)
AABLUR_HOT(BlurTile<bfloat16, 1, 3, 2, 2, 4, false>)
AABLUR_HOT(BlurBackwardTile<float, 4, 3, 2, 2, 2, false, 1>)
AABLUR_HOT(BlurBackwardTile<float, 1, 3, 2, 4, 4, true, 1>)
AABLUR_HOT(BlurBackwardTile<float, 1, 3, 2, 2, 4, false, 1>)
AABLUR_HOT(BlurBackwardTile<bfloat16, 8, 3, 2, 2, 4, false, 1>)
AABLUR_HOT(BlurBackwardTile<bfloat16, 1, 3, 2, 8, 4, true, 1>)
AABLUR_HOT(BlurBackwardTile<bfloat16, 1, 3, 2, 2, 4, false, 1>)
AABLUR_HOT(MaxBlurTile<float, 4, 3, 2, 2, 4, false, 2, true>)
AABLUR_HOT(MaxBlurTile<float, 1, 3, 2, 2, 4, true, 2, true>)
AABLUR_HOT(MaxBlurTile<bfloat16, 4, 3, 2, 2, 4, false, 2, true>)
AABLUR_HOT(MaxBlurTile<bfloat16, 1, 3, 2, 4, 6, true, 2, true>)
AABLUR_HOT(MaxBlurTile<bfloat16, 1, 3, 2, 2, 4, true, 2, true>)
AABLUR_HOT(BlurBackwardTile<float, 4, 3, 2, 4, 4, false, 2>)
AABLUR_HOT(BlurBackwardTile<float, 1, 3, 2, 4, 4, true, 2>)
AABLUR_HOT(BlurBackwardTile<bfloat16, 4, 3, 2, 4, 4, false, 2>)
AABLUR_HOT(BlurBackwardTile<bfloat16, 1, 3, 2, 8, 8, true, 2>)
AABLUR_HOT(BlurBackwardTile<bfloat16, 1, 3, 2, 4, 4, true, 2>)
#define AABLUR_HOT_BLOCKS(...) template __global__ void run_blocks<__VA_ARGS__>(const __grid_constant__ __VA_ARGS__);
AABLUR_HOT_BLOCKS(BlurPlanes<float, 3, 2>)
AABLUR_HOT_BLOCKS(BlurPlanes<bfloat16, 3, 2>)
AABLUR_HOT_BLOCKS(BlurBackwardPlanes<float, 3, 2>)
AABLUR_HOT_BLOCKS(BlurBackwardPlanes<bfloat16, 3, 2>)
AABLUR_HOT_BLOCKS(MaxBlurPlanes<float, 3, 2, true>)
AABLUR_HOT_BLOCKS(MaxBlurPlanes<bfloat16, 3, 2, true>)
AABLUR_HOT_BLOCKS(MaxBackwardPlanes<float, 3, 2>)
AABLUR_HOT_BLOCKS(MaxBackwardPlanes<bfloat16, 3, 2>)

}  // namespace aablur::gpu
