// Dense planes of NCHW maps, staged in shared memory: how they are cut, copied in and out, and read by words or
// vectors.
//
// Bank conflicts: neighbours of a warp take neighbouring strips. Wider ones take fewer instructions and meet more often
// in a bank: words of 8 halves by fours. Where rows are whole vectors, they are read and stored by vectors, which have
// no conflicts (the words beside a vector still do).
#pragma once

#include "gpu/configs.h"
#include "gpu/tile.h"

namespace aablur::gpu {

// ---- how maps are cut ------------------------------------------------------------------------------

// What a block takes: some planes, or of one plane a band of rows; what a thread takes at a time: a strip of columns,
// rolling down a segment of rows.
struct Cut {
  int planes = 1, band = 1, segment = 1;  // planes a block, groups of rows a block, a thread

  // Of `planes` planes of `rows` groups of rows in `strips` strips; shared_bytes(cut) is the shared memory that a block
  // then needs. Of the cuts that are possible it is one of least work: of rows that a block's threads execute, idle
  // ones counted, with what each segment and each block set up. Idle warps count like others: the shared memory that
  // their block holds is what keeps more blocks from being resident.
  //
  // - A plane's segments are alike, and not longer than `longest`.
  // - A band, where a plane does not fit, has as many segments as a block has `threads` for.
  // - A block takes at most as many planes as have `enough` bytes in shared memory, for several to be resident: in
  //   different phases they keep memory busy. At least half as many, for what it sets up to be little beside them.
  // - Of many planes it takes a multiple of 8: all blocks begin at whole 16-byte vectors.
  // - A few planes are spread over all SMs.
  template <class Config, class SharedBytes>
  static Cut of(int64_t planes, int64_t rows, int64_t strips, SharedBytes&& shared_bytes) {
    constexpr int64_t enough = Config::enough, threads = Config::threads, shortest = 4;
    constexpr int64_t least_blocks = 512, many = 16;
    constexpr int64_t block_set_up = 5;  // rows of each thread
    auto executed = [&](int64_t segments, int64_t segment) {
      return threads * (ceil_div(segments * strips, threads) * (segment + Config::set_up) + block_set_up);
    };
    Cut best;
    int64_t least = 0;
    auto take = [&](const Cut& cut, int64_t work) {  // work: of cut.planes planes
      if (least != 0 && work * best.planes >= least * cut.planes) return;
      best = cut, least = work;
    };
    const int64_t high = std::max<int64_t>(1, threads / strips);
    const int64_t fewest = ceil_div(rows, int64_t(Config::longest));
    for (int64_t n = fewest; n == fewest || ceil_div(rows, n) >= shortest; ++n) {
      Cut cut;
      cut.segment = int(ceil_div(rows, n));
      const int64_t segments = ceil_div(rows, cut.segment);
      cut.band = int(std::min(rows, cut.segment * high));
      while (cut.band > cut.segment && shared_bytes(cut) > most_shared_bytes)
        cut.band = int(cut.segment * (ceil_div(cut.band, cut.segment) - 1));
      if (cut.band < rows) {
        const int64_t each = cut.band / cut.segment, rest = segments % each;
        take(cut, segments / each * executed(each, cut.segment) + (rest ? executed(rest, cut.segment) : 0));
        continue;
      }
      Cut more = cut;
      more.planes = 1 + many;
      const int64_t one = shared_bytes(cut), fit = 1 + (enough - one) * many / (shared_bytes(more) - one);
      const int64_t most = std::max<int64_t>(1, std::min(fit, ceil_div(planes, least_blocks)));
      const int64_t step = most > many ? 8 : 1;
      for (int64_t p = most / step * step; p >= ceil_div(most, 2); p -= step) {
        cut.planes = int(p);
        take(cut, executed(p * segments, cut.segment));
      }
    }
    return best;
  }
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

// The element in half `half` of a word as its accumulator, or zero: `keep` says which. Floats are a word each.
template <class T>
AABLUR_HOST_DEVICE inline uint32_t keeping_half(int half, bool is_kept) {
  if constexpr (std::is_same_v<T, bfloat16>) return !is_kept ? 0x4444 : half ? 0x3244 : 0x1044;  // bytes of (0, word)
  else if constexpr (sizeof(T) == 2) return !is_kept ? 0 : half ? 0xffff0000 : 0xffff;
  else return is_kept ? ~0u : 0;
}
template <class T>
AABLUR_HOST_DEVICE inline float kept_half(uint32_t word, int half, uint32_t keep) {
  if constexpr (std::is_same_v<T, bfloat16>) return bit_cast<float>(permuted(word, 0, keep));
  else if constexpr (sizeof(T) == 2) return widen(T{uint16_t((word & keep) >> (half * 16))});
  else return bit_cast<float>(word & keep);
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

AABLUR_HOST_DEVICE inline void load_shared_vector([[maybe_unused]] const char* shared, uint32_t at, uint32_t* word) {
#if defined(__CUDA_ARCH__)
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(at)
               : "memory");
#else
  std::memcpy(word, shared + at, 16);
#endif
}

// Stores 2 or 4 words, which lie aligned, or nothing if `there` is 0: without a branch.
template <int Words>
AABLUR_HOST_DEVICE inline void store_shared_vector_if([[maybe_unused]] uint32_t there, [[maybe_unused]] uint32_t at,
                                                      [[maybe_unused]] const uint32_t (&word)[Words]) {
#if defined(__CUDA_ARCH__)
  if constexpr (Words == 4)
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %5, 0; @p st.shared.v4.b32 [%0], {%1, %2, %3, %4}; }" ::"r"(at),
                 "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3]), "r"(there)
                 : "memory");
  else
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %3, 0; @p st.shared.v2.b32 [%0], {%1, %2}; }" ::"r"(at), "r"(word[0]),
                 "r"(word[1]), "r"(there)
                 : "memory");
#endif
}

// Stores a word, or its lower half, or nothing if `there` is 0: without a branch.
template <int Bytes>
AABLUR_HOST_DEVICE inline void store_shared_if([[maybe_unused]] uint32_t there, [[maybe_unused]] uint32_t at,
                                               [[maybe_unused]] uint32_t word) {
#if defined(__CUDA_ARCH__)
  if constexpr (Bytes == 4)
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0; @p st.shared.b32 [%0], %1; }" ::"r"(at), "r"(word), "r"(there)
                 : "memory");
  else
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0; @p st.shared.b16 [%0], %1; }" ::"r"(at), "h"(uint16_t(word)),
                 "r"(there)
                 : "memory");
#endif
}

// N neighbours of a row in shared memory, from anywhere: read by words, or where a vector follows the first word, by
// that vector.
template <class T, int N, bool HasVector>
struct Neighbours {
  static constexpr int step = 4 / int(sizeof(T)), count = (N + step - 1) / step;
  uint32_t word[count];

  AABLUR_HOST_DEVICE Neighbours(const char* shared, uint32_t at) {
    static_assert(!HasVector || count >= 5);
    const uint32_t aligned = at & ~3u;
    if constexpr (HasVector) load_shared_vector(shared, aligned + 4, word + 1);
    AABLUR_UNROLL
    for (int i = 0; i < count; ++i)
      if (!HasVector || i == 0 || i > 4) word[i] = load_shared(shared, aligned + 4 * i);
    if constexpr (step > 1) {
      const uint32_t behind = N % step ? 0 : load_shared(shared, aligned + 4 * count);
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

}  // namespace aablur::gpu
