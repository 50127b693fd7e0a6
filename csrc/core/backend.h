// What an op hands to a device as plain numbers and addresses, and what a device offers the ops. No torch.
#pragma once

#include <cstdint>

#include "core/argmax.h"
#include "core/axis.h"

namespace aablur {

enum class Dtype { float16, bfloat16, float32, float64 };

// What every kernel knows: the axes, and how a dense map lies (the channel last, or the width).
struct Shape {
  Axis axis[3];
  int64_t images = 0, channels = 0;
  bool channels_last = false;
};

// One call of an op.
struct Problem {
  Dtype dtype = Dtype::float32;
  int32_t device = -1;  // its index; -1 on the CPU
  int rank = 0;
  Shape shape;
  const void* taps = nullptr;  // accumulators (tap_rows, sum of sizes), the axes side by side; null for binomials
  int64_t tap_rows = 1;        // 1 or channels
};

// A map that is read where it lies.
struct Source {
  const void* data = nullptr;
  Strides strides;
};

// Memory of a call's device, for what the call does there.
class Workspace {
 public:
  virtual void* allocate(int64_t bytes) = 0;

 protected:
  ~Workspace() = default;
};

// Results are dense.
struct Backend {
  const char* (*name)();
  // Whether kernels read maps of any strides. If not: dense ones, and NCHW maps whose rows are contiguous.
  bool reads_any_strides;
  // Whether the gradient of the max follows codes alone: without them the forward runs again.
  bool needs_codes;
  // Is told of each new map of a million elements and up, before anything is written there.
  void (*allocated)(void* data, int64_t bytes);

  void (*blur)(const Problem&, const Source& x, void* out, Workspace&);
  void (*blur_backward)(const Problem&, const Source& grad, void* out, Workspace&);
  // Codes are written where there is room for them.
  void (*max_blur)(const Problem&, const Source& x, void* out, uint8_t* codes, Workspace&);
  // The maxima are known from codes, or else from x.
  void (*max_blur_backward)(const Problem&, const Source& grad, const uint8_t* codes, const Source& x, void* out,
                            Workspace&);
  void (*taps_gradient)(const Problem&, const Source& grad, const Source& x, void* out, Workspace&);
};

}  // namespace aablur
