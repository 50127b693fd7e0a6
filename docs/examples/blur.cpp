// A C++ program that blurs with aablur: it opens the package's library, which gives torch's dispatcher the ops.
//
//     ./blur "$(python -c 'import aablur; print(aablur.library_path())')"
//
// docs/torch.md says how it is built.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/arange.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>

#include <iostream>
#include <optional>
#include <string_view>

namespace {

// blur_pool(Tensor x, Tensor? taps, int[] axes, str padding_mode) -> Tensor, as aablur/schemas.py has it.
using BlurPool = at::Tensor(const at::Tensor&, const std::optional<at::Tensor>&, at::IntArrayRef, std::string_view);

at::Tensor blur_pool2d(const at::Tensor& x) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aablur::blur_pool", "").typed<BlurPool>();
  // Of the height, then of the width: taps, stride, padding before and after. No taps: the binomial filter.
  return op.call(x, std::nullopt, {3, 2, 1, 1, 3, 2, 1, 1}, "reflect");
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2 || dlopen(arguments[1], RTLD_NOW) == nullptr) {
    std::cerr << "usage: blur LIBRARY\n" << (count == 2 ? dlerror() : "") << '\n';
    return 1;
  }
  const c10::InferenceMode guard;  // the gradients are ops of their own, aablur::blur_pool_backward
  const at::Tensor x = at::arange(24, at::kFloat).view({1, 1, 4, 6}), y = blur_pool2d(x);
  std::cout << y << '\n';
}
