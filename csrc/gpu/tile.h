// What the fast kernels are made of: pixels, words of halves.
//
// A pixel is V neighbouring elements: channels that lie last, or one element.
#pragma once

#include "gpu/indices.h"

namespace aablur::gpu {

constexpr int most_shared_bytes = 48 << 10;  // bytes of shared memory a block, unless more is asked for

// One of a block's threads.
template <int Count>
struct Thread {
  static constexpr int count = Count;
  int index;
};

// ---- pixels --------------------------------------------------------------------------------------

// V elements as they lie in memory: at once, where V is a power of two.
template <class T, int V>
struct alignas(V&(V - 1) ? sizeof(T) : sizeof(T) * V) Pixel {
  T element[V];
};

template <class P>
AABLUR_HOST_DEVICE inline P load(const void* p) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(P) == 1) return bit_cast<P>(__ldg(static_cast<const unsigned char*>(p)));
  if constexpr (sizeof(P) == 16) return bit_cast<P>(__ldg(static_cast<const uint4*>(p)));
  if constexpr (sizeof(P) == 8) return bit_cast<P>(__ldg(static_cast<const uint2*>(p)));
  if constexpr (sizeof(P) == 4) return bit_cast<P>(__ldg(static_cast<const unsigned*>(p)));
  if constexpr (sizeof(P) == 2) return bit_cast<P>(__ldg(static_cast<const unsigned short*>(p)));
#else
  return *static_cast<const P*>(p);
#endif
}

// The low bytes of a word.
template <class P>
AABLUR_HOST_DEVICE inline P truncated(uint32_t word) {
  P pixel;
  AABLUR_UNROLL
  for (int i = 0; i < int(sizeof(P)); ++i) pixel.element[i] = uint8_t(word >> (8 * i));
  return pixel;
}

// A word of bytes.
template <class P>
AABLUR_HOST_DEVICE inline uint32_t widened(const P& pixel) {
  uint32_t word = 0;
  AABLUR_UNROLL
  for (int i = 0; i < int(sizeof(P)); ++i) word |= uint32_t(pixel.element[i]) << (8 * i);
  return word;
}

template <class T>
AABLUR_HOST_DEVICE inline uint32_t rounded_pair(float low, float high) {
  uint32_t word = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, bfloat16>) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  else asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
#else
  word = bit_cast<uint16_t>(narrow<T>(low)) | uint32_t(bit_cast<uint16_t>(narrow<T>(high))) << 16;
#endif
  return word;
}

// Elements rounded from their accumulators; two halves at a time where the GPU can.
template <class T, int V>
AABLUR_HOST_DEVICE inline Pixel<T, V> rounded(const float (&value)[V]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  constexpr bool by_twos = sizeof(T) == 2 && V % 2 == 0;
#else
  constexpr bool by_twos = false;
#endif
  if constexpr (by_twos) {
    uint32_t words[V / 2];
    AABLUR_UNROLL
    for (int i = 0; i < V / 2; ++i) words[i] = rounded_pair<T>(value[2 * i], value[2 * i + 1]);
    return bit_cast<Pixel<T, V>>(words);
  } else {
    Pixel<T, V> pixel;
    AABLUR_UNROLL
    for (int i = 0; i < V; ++i) pixel.element[i] = narrow<T>(value[i]);
    return pixel;
  }
}

// Keeps a value in a register: the compiler would make it anew in every turn of a loop.
AABLUR_HOST_DEVICE inline void pin([[maybe_unused]] uint32_t& value) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(value));
#endif
}

// Four bytes of (high, low), which the selector's lowest four digits name.
AABLUR_HOST_DEVICE inline uint32_t permuted(uint32_t low, uint32_t high, uint32_t selector) {
#if defined(__CUDA_ARCH__)
  return __byte_perm(low, high, selector);
#else
  uint32_t bytes = 0;
  for (int i = 0; i < 4; ++i)
    bytes |= uint32_t((uint64_t(high) << 32 | low) >> (selector >> (4 * i) & 7) * 8 & 0xff) << (8 * i);
  return bytes;
#endif
}
// 32 bits of (high, low), from bit `bit` % 32 on.
AABLUR_HOST_DEVICE inline uint32_t bits_from(uint32_t low, uint32_t high, uint32_t bit) {
#if defined(__CUDA_ARCH__)
  return __funnelshift_r(low, high, bit);
#else
  return uint32_t((uint64_t(high) << 32 | low) >> (bit & 31));
#endif
}

// Tap t of K binomial ones.
template <int K>
AABLUR_HOST_DEVICE inline float binomial(int t) {
  constexpr float taps[7][7] = {{1.f},
                                {.5f, .5f},
                                {.25f, .5f, .25f},
                                {.125f, .375f, .375f, .125f},
                                {.0625f, .25f, .375f, .25f, .0625f},
                                {.03125f, .15625f, .3125f, .3125f, .15625f, .03125f},
                                {.015625f, .09375f, .234375f, .3125f, .234375f, .09375f, .015625f}};
  return taps[K - 1][t];
}

}  // namespace aablur::gpu
