// How the hot kernels of hot_kernels.cu cut planes, for plane_cuts.py: compiled by itself, on any machine.
#include "gpu/smem_dispatch.h"

namespace aablur::gpu {
namespace {

enum { threads, planes, rows, segment, strips, elements_in, elements_out, table, code_bytes, shared_bytes };

template <class Kernel, class T>
void describe(int64_t count, int64_t side, int64_t window, bool backward, int64_t* out) {
  Shape shape;
  for (int a = 1; a < 3; ++a) shape.axis[a] = {side, 3, 2, 1, 1, PaddingMode::reflect, window, 0, 1};
  shape.images = count;
  shape.channels = 1;
  Planes map;
  map.codes.packing = Packing(shape.axis, false, 1);
  out[shared_bytes] = cut_planes<Kernel>(map, shape, backward);
  out[threads] = Kernel::Thread::count;
  out[planes] = map.cut.planes, out[rows] = map.cut.band, out[segment] = map.cut.segment;
  out[strips] = map.strips.strips.value();
  out[elements_in] = map.cut.planes * most_rows<Kernel>(map) * map.source_width;
  out[elements_out] = map.cut.planes * map.cut.band * map.result_width;
  out[table] = Kernel::table_size(map);
  out[code_bytes] = map.cut.planes * map.codes.packing.plane_bytes * map.cut.band / map.result_height;
}

template <class T>
bool describe(int kernel, int64_t count, int64_t side, int64_t* out) {
  switch (kernel) {
    case 0: describe<BlurPlanes<T, 3, 2>, T>(count, side, 1, false, out); return true;
    case 1: describe<BlurBackwardPlanes<T, 3, 2>, T>(count, side, 1, true, out); return true;
    case 2: describe<MaxBlurPlanes<T, 3, 2, true>, T>(count, side, 2, false, out); return true;
    case 3: describe<MaxBackwardPlanes<T, 3, 2>, T>(count, side, 2, true, out); return true;
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
