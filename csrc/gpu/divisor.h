// Division by what is the same for all threads.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/axis.h"

namespace aablur::gpu {

// n / d and n % d for n < 2**31, by a multiplication.
class Divisor {
 public:
  Divisor() = default;
  explicit Divisor(uint32_t d) : d_(d) {
    while ((uint64_t(1) << shift_) < d) ++shift_;
    magic_ = uint32_t((((uint64_t(1) << shift_) - d) << 32) / d + 1);
  }
  // Divides n; returns the rest.
  AABLUR_HOST_DEVICE uint32_t split(uint32_t& n) const {
    const uint32_t high = uint32_t((uint64_t(n) * magic_) >> 32), quotient = (high + n) >> shift_,
                   rest = n - quotient * d_;
    n = quotient;
    return rest;
  }
  AABLUR_HOST_DEVICE uint32_t value() const { return d_; }

 private:
  uint32_t d_ = 1, magic_ = 1, shift_ = 0;
};

// The same of any n.
class WideDivisor {
 public:
  WideDivisor() = default;
  explicit WideDivisor(int64_t d) : d_(d) {}
  AABLUR_HOST_DEVICE int64_t split(int64_t& n) const {
    const int64_t rest = n % d_;
    n /= d_;
    return rest;
  }

 private:
  int64_t d_ = 1;
};

}  // namespace aablur::gpu
