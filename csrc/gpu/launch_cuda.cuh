// How CUDA runs a kernel: one __global__ template of threads, and one of blocks with phases (gpu/smem_planes.h).
#pragma once

#include "gpu/dispatch.h"

namespace aablur::gpu {

template <class K>
__global__ void __launch_bounds__(block_threads) run(const __grid_constant__ K kernel, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) kernel(i);
}

template <class K>
const char* launch(const K& kernel, int64_t count, void* stream) {
  constexpr int64_t most_blocks = (int64_t(1) << 31) - 1;
  const int64_t blocks = ceil_div(count, block_threads);
  if (blocks > most_blocks) return "more threads than a grid holds";
  if (blocks > 0) run<<<unsigned(blocks), block_threads, 0, static_cast<cudaStream_t>(stream)>>>(kernel, count);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <int Phase, class K>
__device__ void run_phases(const K& kernel, const typename K::State& state) {
  kernel.template run<Phase>(state, typename K::Thread{int(threadIdx.x)});
  if constexpr (Phase + 1 < K::phases) {
    if constexpr (Phase == 0) finish_copies();
    __syncthreads();
    run_phases<Phase + 1>(kernel, state);
  }
}

template <class K>
__global__ void __launch_bounds__(K::Thread::count) run_blocks(const __grid_constant__ K kernel) {
  extern __shared__ uint4 shared[];
  run_phases<0>(kernel, typename K::State(kernel, blockIdx.x, reinterpret_cast<char*>(shared)));
}

template <class K>
const char* launch_blocks(const K& kernel, int64_t blocks, int64_t shared_bytes, void* stream) {
  static_assert(most_shared_bytes <= 48 << 10, "more shared memory must be asked for");
  if (blocks > 0)
    run_blocks<<<unsigned(blocks), K::Thread::count, size_t(shared_bytes), static_cast<cudaStream_t>(stream)>>>(kernel);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace aablur::gpu
