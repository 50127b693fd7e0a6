// Which maps go plane by plane through shared memory, and how they are cut.
#pragma once

#include "gpu/smem_max.h"

namespace aablur::gpu {

// Runs phases of kernel for blocks 0 ... blocks - 1 of its number of threads with `shared_bytes` bytes of shared
// memory; returns why it could not, or null.
template <class K>
const char* launch_blocks(const K& kernel, int64_t blocks, int64_t shared_bytes, void* stream);

// Whether maps of this size lie plane after plane.
inline bool are_planes(const Shape& shape, const Strides& strides, int64_t height, int64_t width) {
  auto follows = [](int64_t size, int64_t stride, int64_t elements) { return size == 1 || stride == elements; };
  return !shape.channels_last && follows(width, strides.axis[2], 1) && follows(height, strides.axis[1], width) &&
         follows(shape.channels, strides.channel, height * width) &&
         follows(shape.images, strides.image, shape.channels * height * width);
}

// Cuts the maps for Kernel; returns the shared memory that a block needs, 0 where they do not fit.
template <class Kernel>
int64_t cut_planes(Planes& map, const Shape& shape, bool backward) {
  const Axis &height = shape.axis[1], &width = shape.axis[2];
  const int64_t larger[2] = {height.size, width.size}, smaller[2] = {height.out(), width.out()};
  const auto &source = backward ? smaller : larger, &result = backward ? larger : smaller;
  constexpr int64_t most = int64_t(1) << 31, most_side = 1 << 15;
  if (shape.images * shape.channels >= most || std::max({larger[0], larger[1], smaller[0], smaller[1]}) > most_side ||
      !Kernel::serves(height) || !Kernel::serves(width))
    return 0;
  map.planes = int(shape.images * shape.channels);
  map.source_height = int(source[0]), map.source_width = int(source[1]);
  map.result_height = int(result[0]), map.result_width = int(result[1]);
  map.before_height = int(height.before), map.before_width = int(width.before);
  map.height = Fold(height), map.width = Fold(width);
  auto shared_bytes = [&](const Cut& cut) {
    map.cut = cut;
    map.bands = Divisor(uint32_t(ceil_div(result[0], cut.band)));
    map.banded = cut.band < result[0];
    return Kernel::divide(map);
  };
  const int64_t strips = ceil_div(result[1], Kernel::X);
  const int64_t needed = shared_bytes(Cut::of<typename Kernel::Config>(map.planes, result[0], strips, shared_bytes));
  // Bands do not hold what lies at the other end.
  if (map.banded && height.padding_mode == PaddingMode::circular) return 0;
  return needed > most_shared_bytes || map.blocks() >= most ? 0 : needed;
}

// Cuts the maps for Kernel and queues it; false where they do not fit it.
template <class Kernel, class T>
bool queue_planes(const Shape& shape, const Filters& filters, const Codes& codes, const T* x, const Strides& strides,
                  T* out, bool backward, void* stream, const char*& error) {
  Planes map;
  map.taps = static_cast<const float*>(filters.taps);
  map.codes = codes;
  const int64_t shared_bytes = cut_planes<Kernel>(map, shape, backward);
  if (shared_bytes == 0 || !are_planes(shape, strides, map.source_height, map.source_width)) return false;
  error = launch_blocks(Kernel{map, x, out}, map.blocks(), shared_bytes, stream);
  return true;
}

}  // namespace aablur::gpu
