// How CUDA runs a kernel of gpu_points.h or gpu_tiles.h: one __global__ template.
#pragma once

#include "gpu_dispatch.h"

namespace aablur::gpu {

template <class K>
__global__ void __launch_bounds__(128) run(const __grid_constant__ K kernel, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) kernel(i);
}

template <class K>
const char* launch(const K& kernel, int64_t count, void* stream) {
  constexpr int64_t threads = 128, most_blocks = (int64_t(1) << 31) - 1;
  const int64_t blocks = ceil_div(count, threads);
  if (blocks > most_blocks) return "more threads than a grid holds";
  if (blocks > 0) run<<<unsigned(blocks), unsigned(threads), 0, static_cast<cudaStream_t>(stream)>>>(kernel, count);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace aablur::gpu
