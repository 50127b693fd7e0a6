// Dense planes of NCHW maps, staged in shared memory.
//
//   global x --cp.async, 16 bytes a thread--> shared: planes one after the other, or a band of rows of one
//   taps -----weights of every row, column--> shared: a table
//                 __syncthreads
//   shared -----words of a strip, rolling down a segment of rows--> registers --strips--> shared: the result
//                 __syncthreads
//   shared -----16 bytes a thread--> global out
//
// Bank conflicts: neighbours of a warp take strips of 4 columns of the larger map, so that halves meet by twos and
// floats by fours: a third to a half of what shared memory does in the time of a copy. Wider strips take fewer
// instructions and meet more often: the max's, of 8 halves, nearly all of it.
//
// A kernel is a functor of (block, thread, shared memory) in phases, with a barrier between.
#pragma once

#include "gpu/configs.h"
#include "gpu/tile.h"

namespace aablur::gpu {

constexpr int most_shared_bytes = 48 << 10;  // bytes of shared memory a block, unless more is asked for

// One of a block's threads.
template <int Count>
struct Thread {
  static constexpr int count = Count;
  int index;
};

// ---- how maps are cut ------------------------------------------------------------------------------

// What a block takes: some planes, or of one plane a band of rows; what a thread takes at a time: a strip of columns,
// rolling down a segment of rows.
struct Cut {
  int planes = 1, band = 1, segment = 1;  // planes a block, rows a block, rows a thread; rows of the result

  // Of `planes` results of `rows` rows in `strips` strips; shared_bytes(cut) is the shared memory that a block then
  // needs.
  //
  // - A segment is long: what a thread sets up, and what it reads of its neighbours, is little beside it. A plane's are
  //   alike, and of whole row_steps.
  // - A band has as many segments as a block has `threads` for.
  // - A block takes planes until it has `enough` in shared memory, for what it sets up to be little beside them, too.
  //   Five or six such blocks are on an SM of 228 KB, two in 100 KB; they are in different phases, which
  //   keeps memory busy.
  // - Of up to twice as few planes, those that leave least lanes of warps idle beside what a block sets up, which is as
  //   much as some `setup` rows of a strip.
  // - Of many planes it takes a multiple of 8: all blocks begin at whole 16-byte vectors.
  // - A few planes are spread over all SMs.
  template <class Config, class SharedBytes>
  static Cut of(int64_t planes, int64_t rows, int64_t strips, SharedBytes&& shared_bytes) {
    constexpr int64_t longest = Config::longest, row_step = Config::row_step, enough = Config::enough,
                      threads = Config::threads;
    constexpr int64_t least_blocks = 512, many = 16, setup = 5, warp = 32;
    Cut cut;
    const int64_t segments = ceil_div(rows, longest), high = std::max<int64_t>(1, threads / strips);
    cut.segment = int(ceil_div(ceil_div(rows, segments), row_step) * row_step);
    cut.band = int(std::min(rows, cut.segment * high));
    while (cut.band > cut.segment && shared_bytes(cut) > most_shared_bytes)
      cut.band = int(cut.segment * (ceil_div(cut.band, cut.segment) - 1));
    if (cut.band < rows) return cut;
    Cut more = cut;
    more.planes = 1 + many;
    const int64_t one = shared_bytes(cut), fit = 1 + (enough - one) * many / (shared_bytes(more) - one);
    const int64_t most = std::max<int64_t>(1, std::min(fit, ceil_div(planes, least_blocks)));
    const int64_t items = strips * ceil_div(rows, cut.segment), step = most > many ? 8 : 1;
    auto executed = [&](int64_t p) { return ceil_div(p * items, warp) * warp * cut.segment + setup * threads; };
    int64_t best = most / step * step;
    for (int64_t p = best - step; p >= ceil_div(most, 2); p -= step)
      if (executed(p) * best < executed(best) * p) best = p;
    cut.planes = int(best);
    return cut;
  }
};

// Rows from `first` on, `count` of them.
struct Rows {
  int first, count;
};

// ---- copies ----------------------------------------------------------------------------------------

// Shared memory for `elements` that begin anywhere in a vector.
template <class T>
constexpr int64_t staged_bytes(int64_t elements) {
  return ceil_div(elements * int64_t(sizeof(T)) + 15, 16) * 16;
}

// Where an array stands in its part of shared memory: as far behind a whole vector as it does in memory.
template <class T>
AABLUR_HOST_DEVICE inline T* staged(char* part, const T* array) {
  return reinterpret_cast<T*>(part + reinterpret_cast<uintptr_t>(array) % 16);
}

AABLUR_HOST_DEVICE inline void copy_vector_in(void* to, const void* from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(uint32_t(__cvta_generic_to_shared(to))), "l"(from)
               : "memory");
#else
  *static_cast<Pixel<uint32_t, 4>*>(to) = load<Pixel<uint32_t, 4>>(from);
#endif
}

// Waits for the vectors that this thread has copied in.
AABLUR_HOST_DEVICE inline void finish_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// This thread's share of a copy of `count` elements between memory and shared memory, which lie alike in vectors:
// whole vectors with `vector`, what is left at both ends with `one`. The first is given an element, the second bytes.
template <class T, class Thread, class One, class Vector>
AABLUR_HOST_DEVICE inline void share(const T* global, int count, Thread thread, One&& one, Vector&& vector) {
  constexpr int wide = 16 / int(sizeof(T)), at_once = 4;
  const int to_vector = int(-uint32_t(reinterpret_cast<uintptr_t>(global)) % 16 / sizeof(T));
  const int head = to_vector < count ? to_vector : count, vectors = unsigned(count - head) / wide;
  const int tail = head + vectors * wide;
  int at = head * int(sizeof(T)) + thread.index * 16;
  AABLUR_NO_UNROLL
  for (int v = thread.index; v < vectors; v += at_once * Thread::count, at += at_once * Thread::count * 16) {
    AABLUR_UNROLL
    for (int u = 0; u < at_once; ++u)
      if (v + u * Thread::count < vectors) vector(at, u * Thread::count * 16);
  }
  if (thread.index >= wide) return;
  if (thread.index < head) one(thread.index);
  if (thread.index < count - tail) one(tail + thread.index);
}
template <class T, class Thread>
AABLUR_HOST_DEVICE inline void copy_in(T* to, const T* from, int count, Thread thread) {
  share(
      from, count, thread, [&](int i) { to[i] = from[i]; },
      [&](int at, int more) {
        copy_vector_in(reinterpret_cast<char*>(to) + at + more, reinterpret_cast<const char*>(from) + at + more);
      });
}
template <class T, class Thread>
AABLUR_HOST_DEVICE inline void copy_out(T* to, const T* from, int count, Thread thread) {
  share(
      to, count, thread, [&](int i) { to[i] = from[i]; },
      [&](int at, int more) {
        using Vector = Pixel<uint32_t, 4>;
        *reinterpret_cast<Vector*>(reinterpret_cast<char*>(to) + at + more) =
            *reinterpret_cast<const Vector*>(reinterpret_cast<const char*>(from) + at + more);
      });
}

// Bytes of shared memory that words read along with what was copied beside them.
template <class Thread>
AABLUR_HOST_DEVICE inline void clear(void* from, const void* to, Thread thread) {
  AABLUR_NO_UNROLL
  for (char* at = static_cast<char*>(from) + thread.index; at < to; at += Thread::count) *at = 0;
}

// An element as its accumulator, or zero: `keep` says which.
template <class T>
AABLUR_HOST_DEVICE inline uint32_t keeping(bool all) {
  if constexpr (std::is_same_v<T, bfloat16>) return all ? 0x1044 : 0x4444;  // for `permuted`: bytes of (0, element)
  else return all ? ~0u : 0u;
}
template <class T>
AABLUR_HOST_DEVICE inline float widen_kept(T v, uint32_t keep) {
  if constexpr (std::is_same_v<T, float>) {
    return bit_cast<float>(bit_cast<uint32_t>(v) & keep);
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    return bit_cast<float>(permuted(v.bits, 0, keep));
  } else {
    return widen(T{uint16_t(v.bits & keep)});
  }
}

// Where something is in shared memory, and a word there.
AABLUR_HOST_DEVICE inline uint32_t shared_address(const void* p, [[maybe_unused]] const char* shared) {
#if defined(__CUDA_ARCH__)
  return uint32_t(__cvta_generic_to_shared(p));
#else
  return uint32_t(static_cast<const char*>(p) - shared);
#endif
}
AABLUR_HOST_DEVICE inline uint32_t load_shared([[maybe_unused]] const char* shared, uint32_t at) {
  uint32_t word;
#if defined(__CUDA_ARCH__)
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(at) : "memory");
#else
  std::memcpy(&word, shared + at, sizeof word);
#endif
  return word;
}

// N neighbours of a row in shared memory, from anywhere: read by words.
template <class T, int N>
struct Neighbours {
  static constexpr int step = 4 / int(sizeof(T)), count = (N + step - 1) / step;
  uint32_t word[count];

  AABLUR_HOST_DEVICE Neighbours(const char* shared, uint32_t at) {
    const uint32_t aligned = at & ~3u;
    AABLUR_UNROLL
    for (int i = 0; i < count; ++i) word[i] = load_shared(shared, aligned + 4 * i);
    if constexpr (step > 1) {
      const uint32_t behind = load_shared(shared, aligned + 4 * count);
      AABLUR_UNROLL
      for (int i = 0; i < count; ++i) word[i] = bits_from(word[i], i + 1 < count ? word[i + 1] : behind, at * 8);
    }
  }
  // V of them, from the one with index `first` on.
  template <int V>
  AABLUR_HOST_DEVICE Pixel<T, V> pixel(int first) const {
    uint32_t part[V / step];
    AABLUR_UNROLL
    for (int i = 0; i < V / step; ++i) {
      const int w = first / step + i, next = w + 1 < count ? w + 1 : w;
      part[i] = first % step ? permuted(word[w], word[next], 0x5432) : word[w];
    }
    return bit_cast<Pixel<T, V>>(part);
  }
};

// ---- the maps --------------------------------------------------------------------------------------

// How rows are handed to threads: strips of columns, each in segments of rows.
struct Strips {
  Divisor strips, segments;
  int segment = 1;

  Strips() = default;
  Strips(int64_t strips, int64_t rows, int segment)
      : strips(uint32_t(strips)), segments(uint32_t(ceil_div(rows, segment))), segment(segment) {}
  // Calls f(plane, first row, rows, strip) for all that a thread has of planes of `rows` rows.
  template <class Thread, class F>
  AABLUR_HOST_DEVICE void each(int planes, int rows, Thread thread, F&& f) const {
    const int items = planes * int(segments.value() * strips.value());
    AABLUR_NO_UNROLL
    for (int i = thread.index; i < items; i += Thread::count) {
      uint32_t rest = uint32_t(i);
      const int strip = int(strips.split(rest)), first = int(segments.split(rest)) * segment, left = rows - first;
      if (left > 0) f(int(rest), first, left < segment ? left : segment, strip);
    }
  }
};

// Planes that lie one after the other, and their cut.
struct Planes {
  int planes = 0;
  int source_height = 0, source_width = 0, result_height = 0, result_width = 0;  // of a plane
  int before_height = 0, before_width = 0;
  Fold height, width;
  Cut cut;
  Strips strips;
  Divisor bands;
  bool banded = false;
  int source_offset = 0, codes_offset = 0, result_offset = 0;  // bytes of shared memory before
  const float* taps = nullptr;
  Codes codes;

  int64_t blocks() const { return ceil_div(planes, cut.planes) * bands.value(); }
};

// What a block has.
struct Block {
  int plane, planes, row, rows;  // the first plane, the first row

  AABLUR_HOST_DEVICE Block(const Planes& map, uint32_t block) {
    row = int(map.bands.split(block)) * map.cut.band;
    rows = map.result_height - row < map.cut.band ? map.result_height - row : map.cut.band;
    plane = int(block) * map.cut.planes;
    planes = map.planes - plane < map.cut.planes ? map.planes - plane : map.cut.planes;
  }
};

// Rows [row, row + rows) of every plane of a block in a map of planes of height x width.
template <class T>
AABLUR_HOST_DEVICE inline T* at_block(T* map, const Block& block, int row, int height, int width) {
  return map + int64_t(block.plane) * (height * width) + row * width;
}

// The most rows of the source that a block reads.
template <class Kernel>
int64_t most_rows(const Planes& map) {
  int64_t most = 0;
  for (int row = 0; row < map.result_height; row += map.cut.band)
    most = std::max<int64_t>(most, Kernel::read(map, row, std::min(map.cut.band, map.result_height - row)).count);
  return most;
}

}  // namespace aablur::gpu
