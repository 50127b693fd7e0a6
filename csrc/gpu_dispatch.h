// Arguments -> kernels, for one element type. `launch` is the device's, or a loop on the host.
#pragma once

#include "gpu_points.h"

namespace aablur::gpu {

// Runs kernel(0) ... kernel(count - 1) in any order; returns why it could not, or null.
template <class K>
const char* launch(const K& kernel, int64_t count, void* stream);

template <class K>
const char* launch(const K& kernel, void* stream) {
  return launch(kernel, kernel.count(), stream);
}

template <class T>
struct Dispatch {
  static const char* blur(const BlurArguments& arguments, void* stream) {
    return launch(BlurPoint<T>{arguments}, stream);
  }
  static const char* blur_backward(const BlurArguments& arguments, void* stream) {
    return launch(BlurBackwardPoint<T>{arguments}, stream);
  }
  static const char* max_blur(const BlurArguments& arguments, void* stream) {
    if (arguments.codes.data)
      if (const char* error = launch(CodesPoint<T>{arguments}, stream)) return error;
    return launch(BlurPoint<T>{arguments}, stream);
  }
  static const char* max_blur_backward(const MaxBackwardArguments& arguments, void* stream) {
    return launch(MaxBackwardPoint<T>{arguments}, stream);
  }
  static const char* taps_gradient(const TapsArguments& arguments, void* stream) {
    if (const char* error = launch(TapsShare<T>{arguments}, stream)) return error;
    return launch(TapsSum<T>{arguments}, stream);
  }
  static constexpr Kernels kernels{blur, blur_backward, max_blur, max_blur_backward, taps_gradient};
};

}  // namespace aablur::gpu
