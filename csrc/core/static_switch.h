// From a run-time value to a template parameter.
#pragma once

#include <cstdint>
#include <type_traits>

namespace aablur {

// Calls f with the one of Choices that `value` is, as a constant; the last stands for all other values.
template <int First, int... Others, class F>
auto static_switch(int64_t value, F&& f) {
  const std::integral_constant<int, First> choice;
  if constexpr (sizeof...(Others) == 0) return f(choice);
  else return value == First ? f(choice) : static_switch<Others...>(value, f);
}

}  // namespace aablur
