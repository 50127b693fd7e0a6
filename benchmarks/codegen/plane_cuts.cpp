// How the hot kernels of hot_kernels.cu cut planes, for plane_cuts.py: compiled by itself, on any machine.
#include "gpu/max_planes.h"

namespace aablur::gpu {
namespace {

enum { threads, planes, rows, segment, strips, elements_in, elements_out, shared_bytes };

template <class Kernel>
void describe(int64_t count, int64_t side, int64_t window, bool backward, int64_t* out) {
  Shape shape;
  for (int a = 1; a < 3; ++a) shape.axis[a] = {side, 3, 2, 1, 1, PaddingMode::reflect, window, 0, 1};
  Kernel kernel;
  Band::make(shape.axis[1], backward, kernel.height);
  kernel.width = kernel.height;
  out[shared_bytes] = 0;
  kernel.divide(shape, count, out[shared_bytes]);
  out[threads] = Kernel::Thread::count;
  out[planes] = kernel.cut.planes, out[rows] = kernel.cut.band, out[segment] = kernel.cut.segment;
  out[strips] = kernel.strips.strips.value();
  out[elements_in] = kernel.cut.planes * kernel.source_rows(0, kernel.cut.band).count() * kernel.source_size[1];
  out[elements_out] = kernel.cut.planes * kernel.made(0, kernel.cut.band).count() * kernel.result_size[1];
}

template <class T>
bool describe(int kernel, int64_t count, int64_t side, int64_t* out) {
  using Forward = Bands<3, 2, false>;
  using Backward = Bands<3, 2, true>;
  switch (kernel) {
    case 0: describe<BandPlanes<T, Forward>>(count, side, 1, false, out); return true;
    case 1: describe<BandPlanes<T, Backward>>(count, side, 1, true, out); return true;
    case 2: describe<MaxBlurPlanes<T, Forward, 2, true>>(count, side, 2, false, out); return true;
    case 3: describe<MaxBackwardPlanes<T, Backward, 2>>(count, side, 2, true, out); return true;
    default: return false;
  }
}

}  // namespace
}  // namespace aablur::gpu

// The cut of `count` square planes, 3 taps, stride 2, windows of 2, for kernel 0, 1, 2, 3 of elements of 2 or 4 bytes.
extern "C" bool cut(int kernel, int bytes, int64_t count, int64_t side, int64_t* out) {
  using namespace aablur::gpu;
  return bytes == 2 ? describe<bfloat16>(kernel, count, side, out) : describe<float>(kernel, count, side, out);
}
