// The GPU's side of the ops: problems to kernels' parameters, queued on the current stream. Problems of the CPU, which
// tests have, go to kernels that run there.
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <optional>

#include "gpu/params.h"

namespace aablur::gpu {
namespace {

const Kernels& kernels_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::float16: return float16_kernels;
    case Dtype::bfloat16: return bfloat16_kernels;
    case Dtype::float64: return float64_kernels;
    case Dtype::float32: break;
  }
  return float32_kernels;
}

// The device of a problem made current, and its stream.
class Queue {
 public:
  explicit Queue(const Problem& problem) : device_(problem.device) {
    if (device_ >= 0) guard_.emplace(device_);
  }
  // The function lies in libtorch_cuda, which a CPU build of torch lacks: it is looked up, not linked.
  void* stream() const {
    if (device_ < 0) return nullptr;
    using Function = AOTITorchError (*)(int32_t, void**);
    static const Function function = [] {
      void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_NOW);
      return reinterpret_cast<Function>(library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr);
    }();
    STD_TORCH_CHECK(function, "aablur: this build of torch has no CUDA");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(function(device_, &stream));
    return stream;
  }

 private:
  int32_t device_;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
};

template <class Arguments>
void launch(const Problem& problem, const char* (*Kernels::*kernel)(Arguments, void*), const Arguments& arguments) {
  const Queue queue(problem);
  const char* error = (kernels_of(problem.dtype).*kernel)(arguments, queue.stream());
  STD_TORCH_CHECK(!error, "aablur: ", error ? error : "");
}

Filters filters_of(const Problem& problem) {
  Filters filters;
  for (int a = 0; a < 3; ++a) {
    filters.offset[a] = a < 3 - problem.rank ? -1 : filters.row;
    if (a >= 3 - problem.rank) filters.row += problem.shape.axis[a].taps;
  }
  filters.taps = problem.taps;
  filters.per_channel = problem.tap_rows > 1;
  return filters;
}

Codes codes_of(const Shape& shape, const uint8_t* data) {
  return {const_cast<uint8_t*>(data), Packing(shape.axis, shape.channels_last, shape.channels)};
}

void blur(const Problem& problem, const Source& x, void* out, Workspace& workspace) {
  launch(problem, &Kernels::blur,
         BlurArguments{problem.shape, filters_of(problem), x.data, x.strides, out, {}, &workspace});
}

void blur_backward(const Problem& problem, const Source& grad, void* out, Workspace& workspace) {
  launch(problem, &Kernels::blur_backward,
         BlurArguments{problem.shape, filters_of(problem), grad.data, grad.strides, out, {}, &workspace});
}

void max_blur(const Problem& problem, const Source& x, void* out, uint8_t* codes, Workspace& workspace) {
  launch(problem, &Kernels::max_blur,
         BlurArguments{problem.shape, filters_of(problem), x.data, x.strides, out, codes_of(problem.shape, codes),
                       &workspace});
}

void max_blur_backward(const Problem& problem, const Source& grad, const uint8_t* codes, const Source&, void* out,
                       Workspace& workspace) {
  launch(problem, &Kernels::max_blur_backward,
         MaxBackwardArguments{problem.shape, filters_of(problem), grad.data, grad.strides,
                              codes_of(problem.shape, codes), out, &workspace});
}

// Pieces that the general kernel takes the taps' gradient in: as many as make a million shares.
int64_t chunks_of(const Problem& problem) {
  constexpr int64_t most_shares = 1 << 20;
  return std::clamp<int64_t>(most_shares / (problem.tap_rows * filters_of(problem).row), 1, 4096);
}

void taps_gradient(const Problem& problem, const Source& grad, const Source& x, void* out, Workspace& workspace) {
  const Filters filters = filters_of(problem);
  const TapsGradientSplit split(problem.shape, filters);
  const int64_t doubles = split.taps ? split.doubles() : chunks_of(problem) * problem.tap_rows * filters.row;
  launch(problem, &Kernels::taps_gradient,
         TapsArguments{problem.shape, filters, grad.data, x.data, grad.strides, x.strides, chunks_of(problem),
                       static_cast<double*>(workspace.allocate(doubles * int64_t(sizeof(double)))), out});
}

}  // namespace

extern const Backend backend;
const Backend backend = {[] { return "machine_code"; },
                         true,
                         true,
                         [](void*, int64_t) {},
                         blur,
                         blur_backward,
                         max_blur,
                         max_blur_backward,
                         taps_gradient};

}  // namespace aablur::gpu
