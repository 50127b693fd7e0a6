// How CUDA runs a kernel: of threads, of threads that prepare shared memory, of blocks.
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

template <class K>
__global__ void __launch_bounds__(block_threads, K::resident)
    run_prepared(const __grid_constant__ K kernel, uint32_t count) {
  __shared__ typename K::Shared shared;
  kernel.prepare(shared, int(threadIdx.x), block_threads);
  __syncthreads();
  const uint32_t i = blockIdx.x * block_threads + threadIdx.x;
  if (i < count) kernel.run(i, shared);
}

template <class K>
const char* launch_prepared(const K& kernel, int64_t count, void* stream) {
  const unsigned blocks = unsigned(ceil_div(count, block_threads));
  if (blocks > 0)
    run_prepared<<<blocks, block_threads, 0, static_cast<cudaStream_t>(stream)>>>(kernel, uint32_t(count));
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <class K>
__global__ void __launch_bounds__(K::Thread::count, K::resident) run_block(const __grid_constant__ K kernel) {
  extern __shared__ uint4 shared[];
  kernel.run(reinterpret_cast<char*>(shared), blockIdx.x);
}

template <class K>
const char* launch_block_kernel(const K& kernel, int64_t blocks, int64_t shared_bytes, void* stream) {
  static_assert(most_shared_bytes <= 48 << 10, "more shared memory must be asked for");
  if (blocks > 0)
    run_block<<<unsigned(blocks), K::Thread::count, size_t(shared_bytes), static_cast<cudaStream_t>(stream)>>>(kernel);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

inline int64_t multiprocessors() {
  int device = 0, count = 0;
  const bool known = cudaGetDevice(&device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess;
  return known ? count : 1;
}

}  // namespace aablur::gpu
