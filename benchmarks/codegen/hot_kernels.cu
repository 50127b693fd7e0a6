// The hot kernels alone, for cuda_kernels.py to compile: 3 taps, stride 2, windows of 2 and 3 with codes, in the
// configurations of gpu/configs.h.
#include "gpu/launch_cuda.cuh"

namespace aablur::gpu {

#define AABLUR_HOT_TILES(...) \
  template __global__ void run_prepared<__VA_ARGS__>(const __grid_constant__ __VA_ARGS__, uint32_t);
#define AABLUR_HOT_PLANES(...) template __global__ void run_block<__VA_ARGS__>(const __grid_constant__ __VA_ARGS__);
#define AABLUR_HOT_WINDOW(T, W)                                                              \
  AABLUR_HOT_TILES(MaxBlurTile<T, Forward, MaxBandVector<T, Forward, W>::wide, W, true>)     \
  AABLUR_HOT_TILES(MaxBackwardTile<T, Backward, MaxBandVector<T, Backward, W>::backward, W>) \
  AABLUR_HOT_PLANES(MaxBlurPlanes<T, Forward, W, true>)                                      \
  AABLUR_HOT_PLANES(MaxBackwardPlanes<T, Backward, W>)
#define AABLUR_HOT_OF(T)                                        \
  AABLUR_HOT_TILES(BandTile<T, Forward, widest<T>, false>)      \
  AABLUR_HOT_TILES(BandTile<T, Backward, widest<T>, false>)     \
  AABLUR_HOT_TILES(BandTile<T, Forward, widest<T> / 2, false>)  \
  AABLUR_HOT_TILES(BandTile<T, Backward, widest<T> / 2, false>) \
  AABLUR_HOT_TILES(BandTile<T, Forward, 4, true>)               \
  AABLUR_HOT_TILES(BandTile<T, Backward, 4, true>)              \
  AABLUR_HOT_PLANES(BandPlanes<T, Forward>)                     \
  AABLUR_HOT_PLANES(BandPlanes<T, Backward>)                    \
  AABLUR_HOT_WINDOW(T, 2)                                       \
  AABLUR_HOT_WINDOW(T, 3)
using Forward = Bands<3, 2, false>;
using Backward = Bands<3, 2, true>;
AABLUR_HOT_OF(float)
AABLUR_HOT_OF(bfloat16)

}  // namespace aablur::gpu
