// How the work is cut: units, bands of rows, tiles of lanes; and the rows of a map as they lie in memory.
#pragma once

#include <algorithm>
#include <memory>

#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace aablur::AABLUR_ISA {

// Zeroed room for n elements, with two vectors to spare on both sides.
template <class E>
class Buffer {
 public:
  explicit Buffer(int64_t n) : storage_(new E[n + 2 * margin]()) {}
  E* get() const { return storage_.get() + margin; }
  static constexpr int64_t margin = 2 * vector_bytes / sizeof(E) + 2;

 private:
  std::unique_ptr<E[]> storage_;
};

// The piece of the work that one call of a kernel's body does: band of plane of image.
struct Unit {
  int64_t image, plane, band;
};

// Calls f with the units [begin, end).
template <class F>
inline void for_units(const Plan& plan, int64_t begin, int64_t end, F&& f) {
  Unit unit{begin / plan.bands / plan.planes, begin / plan.bands % plan.planes, begin % plan.bands};
  for (int64_t index = begin; index < end; ++index) {
    f(unit);
    if (++unit.band < plan.bands) continue;
    unit.band = 0;
    if (++unit.plane < plan.planes) continue;
    unit.plane = 0;
    ++unit.image;
  }
}

// Bands cut the first axis that has more than one row. Band `band` of `size` rows.
inline Range band_range(int64_t size, int64_t band, int64_t bands) {
  return {size * band / bands, size * (band + 1) / bands};
}
struct RowRange {
  Range depth, height;
};
inline RowRange band_rows(const Plan& plan, int64_t band, int64_t depth, int64_t height) {
  if (plan.cut_depth) return {band_range(depth, band, plan.bands), {0, height}};
  return {{0, depth}, band_range(height, band, plan.bands)};
}

// Lanes [first, first + count) of a row.
struct Tile {
  int64_t first, count;
};

// Calls f for each run of a tile that is contiguous in a row with `pixel` elements from pixel to pixel:
// f(offset in the row, offset in a row of the tile alone, length).
template <class F>
inline void for_runs(int64_t width, Tile tile, int64_t pixel, F&& f) {
  if (pixel == tile.count) return f(int64_t(0), int64_t(0), width * tile.count);
  for (int64_t w = 0; w < width; ++w) f(w * pixel, w * tile.count, tile.count);
}

// Asks for memory before it is read, where reading goes from low to high: what the caches fetch by themselves comes too
// late, and not across pages.
class Ahead {
 public:
  // What lies before p has been read, or will be right now.
  void operator()(const void* p) {
    const char *const at = static_cast<const char*>(p), *const end = at + distance;
    if (next_ < at || next_ - at > 4 * distance) next_ = at;
    for (; next_ < end; next_ += 64) __builtin_prefetch(next_);
  }

 private:
  static constexpr int64_t distance = 2048;  // bytes
  const char* next_ = nullptr;
};

// Prologue `identity`: rows as they lie in memory.
template <class T>
struct MemoryRows {
  const T* base = nullptr;
  Strides strides;

  MemoryRows() = default;
  MemoryRows(const void* data, const Strides& strides, const Unit& unit, Tile tile)
      : base(static_cast<const T*>(data) + unit.image * strides.image + unit.plane * strides.channel + tile.first),
        strides(strides) {}
  int64_t pixel() const { return strides.axis[2]; }
  const T* row(int64_t d, int64_t h) const { return base + d * strides.axis[0] + h * strides.axis[1]; }
};

}  // namespace aablur::AABLUR_ISA
