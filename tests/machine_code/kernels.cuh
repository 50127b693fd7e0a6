// Idioms of memory and of control, correct and with a fault each, for tests/test_machine_code.py.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned;
using u64 = unsigned long long;

static __device__ __half2 as_half2(u32 v) {
  return *reinterpret_cast<__half2*>(&v);
}
static __device__ __nv_bfloat162 as_bfloat162(u32 v) {
  return *reinterpret_cast<__nv_bfloat162*>(&v);
}

#define KERNEL extern "C" __global__ void

// ---- loads and stores

// Each thread copies a T, which nothing is known of but its bytes.
template <class T>
static __device__ void copy_one(const T* in, T* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = in[i];
}
struct alignas(16) Sixteen {
  u32 word[4];
};
KERNEL copy_1(const u8* in, u8* out) {
  copy_one(in, out);
}
KERNEL copy_2(const u16* in, u16* out) {
  copy_one(in, out);
}
KERNEL copy_4(const u32* in, u32* out) {
  copy_one(in, out);
}
KERNEL copy_8(const u64* in, u64* out) {
  copy_one(in, out);
}
KERNEL copy_16(const uint4* in, uint4* out) {
  copy_one(in, out);
}
KERNEL copy_volatile(const volatile u32* in, volatile u32* out) {
  out[threadIdx.x] = in[threadIdx.x];
}
KERNEL copy_read_only(const u32* __restrict__ in, u32* __restrict__ out) {
  out[threadIdx.x] = __ldg(in + threadIdx.x);
}
KERNEL copy_hinted(const u32* in, u32* out) {
  __stcs(out + threadIdx.x, __ldcs(in + threadIdx.x) + __ldcg(in + threadIdx.x));
}
KERNEL widen_signed_1(const signed char* in, int* out) {
  out[threadIdx.x] = in[threadIdx.x];
}
KERNEL widen_unsigned_1(const u8* in, int* out) {
  out[threadIdx.x] = in[threadIdx.x];
}
KERNEL widen_signed_2(const short* in, int* out) {
  out[threadIdx.x] = in[threadIdx.x];
}
KERNEL widen_unsigned_2(const u16* in, int* out) {
  out[threadIdx.x] = in[threadIdx.x];
}

// Through shared memory, reversed, by words of each width.
template <class T>
static __device__ void reverse(const T* in, T* out) {
  __shared__ T tile[256];
  tile[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}
KERNEL reverse_1(const signed char* in, signed char* out) {
  reverse(in, out);
}
KERNEL reverse_2(const short* in, short* out) {
  reverse(in, out);
}
KERNEL reverse_4(const u32* in, u32* out) {
  reverse(in, out);
}
KERNEL reverse_8(const u64* in, u64* out) {
  reverse(in, out);
}
KERNEL reverse_16(const uint4* in, uint4* out) {
  reverse(in, out);
}
KERNEL reverse_dynamic(const u32* in, u32* out) {
  extern __shared__ u32 dynamic[];
  __shared__ u32 fixed[32];
  fixed[threadIdx.x & 31] = 7;
  dynamic[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = dynamic[blockDim.x - 1 - threadIdx.x] + fixed[0];
}

__constant__ u32 primes[16] = {2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53};
__constant__ signed char bytes_of_constants[5] = {-1, 2, -3, 4, -5};
__constant__ double doubles[4] = {0.5, -1.25, 3.0, 1e300};
struct Packed {
  int head;
  short list[9];
  u64 tail;
};
KERNEL constants(const u32* at, u32* out) {
  const u32 i = at[threadIdx.x];
  out[threadIdx.x] = primes[i & 15] + bytes_of_constants[i % 5];
}
KERNEL constants_64(const u32* at, double* out) {
  out[threadIdx.x] = doubles[at[threadIdx.x] & 3];
}
KERNEL structure(const u32* at, u64* out, Packed p, u8 last) {
  out[threadIdx.x] = p.head + p.list[at[threadIdx.x] % 9] + p.tail + last;
}
KERNEL local_array(const u32* at, u32* out) {
  u32 turned[24];
  for (int i = 0; i < 24; ++i) turned[at[i] % 24] = i * i + threadIdx.x;
  u32 sum = 0;
  for (int i = 0; i < 8; ++i) sum = 3 * sum + turned[at[(threadIdx.x + i) % 24] % 24];
  out[threadIdx.x] = sum;
}
KERNEL local_bytes(const u32* at, u32* out) {
  u8 bytes[16];
  for (int i = 0; i < 16; ++i) bytes[(at[i] + threadIdx.x) & 15] = u8(5 * i);
  out[threadIdx.x] = bytes[at[threadIdx.x & 15] & 15] + 256 * *reinterpret_cast<u16*>(bytes + 2 * (at[3] & 7));
}

template <int bytes>
static __device__ void copy_async(void* to, const void* from) {
  const u32 at = u32(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(at), "l"(from), "n"(bytes));
}
static __device__ void commit() {
  asm volatile("cp.async.commit_group;");
}
template <int but>
static __device__ void wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(but));
}
template <class T>
static __device__ void async_one(const T* in, T* out) {
  __shared__ T tile[128];
  copy_async<sizeof(T)>(tile + threadIdx.x, in + threadIdx.x);
  commit();
  wait<0>();
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x ^ 5];
}
KERNEL async_4(const u32* in, u32* out) {
  async_one(in, out);
}
KERNEL async_8(const u64* in, u64* out) {
  async_one(in, out);
}
KERNEL async_16(const Sixteen* in, Sixteen* out) {
  async_one(in, out);
}
KERNEL async_global_only(const Sixteen* in, Sixteen* out) {
  __shared__ Sixteen tile[128];
  const u32 at = u32(__cvta_generic_to_shared(tile + threadIdx.x));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(in + threadIdx.x));
  asm volatile("cp.async.wait_all;");
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x ^ 9];
}
// Bytes beyond the first `size` are zeros.
KERNEL async_zeros(const Sixteen* in, Sixteen* out, u32 size) {
  __shared__ Sixteen tile[128];
  const u32 at = u32(__cvta_generic_to_shared(tile + threadIdx.x)), bytes = threadIdx.x & 1 ? size : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(in + threadIdx.x), "r"(bytes));
  asm volatile("cp.async.wait_all;");
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}
// Three stages: what is used was copied two turns ago.
static __device__ void stages(const u32* in, u32* out, bool waits_for_one_less) {
  __shared__ u32 tile[3][128];
  for (int turn = 0; turn < 2; ++turn) {
    copy_async<4>(&tile[turn][threadIdx.x], in + 128 * turn + threadIdx.x);
    commit();
  }
  u32 sum = 0;
  for (int turn = 0; turn < 6; ++turn) {
    if (turn + 2 < 6) copy_async<4>(&tile[(turn + 2) % 3][threadIdx.x], in + 128 * (turn + 2) + threadIdx.x);
    commit();
    if (waits_for_one_less) {
      wait<3>();
    } else {
      wait<2>();
    }
    __syncthreads();
    sum = 5 * sum + tile[turn % 3][(threadIdx.x + 1) & 127];
    __syncthreads();
  }
  out[threadIdx.x] = sum;
}
KERNEL async_stages(const u32* in, u32* out) {
  stages(in, out, false);
}

// ---- what threads of a warp tell each other

KERNEL shuffles(const u32* in, u32* out, u32 by, u32 width) {
  const int n = blockDim.x, t = threadIdx.x;
  const u32 v = in[t];
  out[t] = __shfl_sync(~0u, v, int(by), int(width));
  out[n + t] = __shfl_up_sync(~0u, v, by, int(width));
  out[2 * n + t] = __shfl_down_sync(~0u, v, by, int(width));
  out[3 * n + t] = __shfl_xor_sync(~0u, v, int(by), int(width));
  out[4 * n + t] = __shfl_sync(~0u, v, int(v & 31), 16);
  out[5 * n + t] = __shfl_up_sync(~0u, v, 3, 8);
  out[6 * n + t] = __shfl_down_sync(~0u, v, 1);
  out[7 * n + t] = __shfl_xor_sync(~0u, v, 16);
}
KERNEL shuffle_64(const u64* in, u64* out) {
  out[threadIdx.x] = __shfl_xor_sync(~0u, in[threadIdx.x], 7);
}
KERNEL shuffle_in_range(const u32* in, u32* out) {
  u32 v, inside;
  asm("{.reg .pred p; shfl.sync.up.b32 %0|p, %2, 5, 0, 0xffffffff; selp.u32 %1, 1, 0, p;}"
      : "=r"(v), "=r"(inside)
      : "r"(in[threadIdx.x]));
  out[threadIdx.x] = v + 1000 * inside;
}
KERNEL votes(const u32* in, u32* out) {
  const u32 v = in[threadIdx.x], n = blockDim.x;
  out[threadIdx.x] = __ballot_sync(~0u, v & 1);
  out[n + threadIdx.x] = __any_sync(~0u, v > 200) + 2 * __all_sync(~0u, v < 250);
  u32 same;
  asm volatile("{.reg .pred p, q; setp.gt.u32 p, %1, 100; vote.sync.uni.pred q, p, 0xffffffff; selp.u32 %0, 1, 0, q;}"
               : "=r"(same)
               : "r"(v));
  out[2 * n + threadIdx.x] = same;
  out[3 * n + threadIdx.x] = v & 2 ? __activemask() : 0;
}
KERNEL lanes(u32* out) {
  u32 below, up_to, above, lane;
  asm("mov.u32 %0, %%lanemask_lt; mov.u32 %1, %%lanemask_le; mov.u32 %2, %%lanemask_gt; mov.u32 %3, %%laneid;"
      : "=r"(below), "=r"(up_to), "=r"(above), "=r"(lane));
  out[threadIdx.x] = below + 3 * up_to + 5 * above + 7 * lane;
}
KERNEL reductions(const u32* in, u32* out) {
  const u32 v = in[threadIdx.x], n = blockDim.x;
  out[threadIdx.x] = __reduce_add_sync(~0u, v);
  out[n + threadIdx.x] = __reduce_min_sync(~0u, v);
  out[2 * n + threadIdx.x] = u32(__reduce_max_sync(~0u, int(v)));
  out[3 * n + threadIdx.x] = __reduce_and_sync(~0u, v) ^ __reduce_or_sync(~0u, v);
  out[4 * n + threadIdx.x] = __reduce_xor_sync(~0u, v);
}
KERNEL matches(const u32* in, u32* out) {
  out[threadIdx.x] = __match_any_sync(~0u, in[threadIdx.x] & 3);
}
// Half of a warp on its own.
KERNEL shuffle_of_halves(const u32* in, u32* out) {
  u32 v = in[threadIdx.x];
  if (threadIdx.x & 16) {
    v = __shfl_xor_sync(0xffff0000, v, 3) * 2;
  } else {
    v = __shfl_xor_sync(0x0000ffff, v, 5) * 3;
  }
  out[threadIdx.x] = v;
}
// The compiler does not know that all come here together.
KERNEL shuffle_after_loop(const u32* in, u32* out) {
  u32 v = in[threadIdx.x];
  for (int n = 0; n < int(threadIdx.x % 7); ++n) {
    v = v * 3 + n;
    if (v % 11 == 0) break;
  }
  out[threadIdx.x] = v + __shfl_xor_sync(~0u, v, 1);
}
KERNEL matrices(const u32* in, u32* out) {
  __shared__ alignas(16) u32 tile[128];
  for (int i = threadIdx.x; i < 128; i += 32) tile[i] = in[i];
  __syncthreads();
  const u32 at = u32(__cvta_generic_to_shared(tile + 4 * threadIdx.x));
  u32 a, b, c, d;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
               : "r"(at));
  out[threadIdx.x] = a, out[32 + threadIdx.x] = b, out[64 + threadIdx.x] = c, out[96 + threadIdx.x] = d;
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(a), "=r"(b) : "r"(at));
  out[128 + threadIdx.x] = a, out[160 + threadIdx.x] = b;
}
#if __CUDA_ARCH__ >= 900
KERNEL store_matrices(const u32* in, u32* out) {
  __shared__ alignas(16) u32 tile[128];
  const u32 at = u32(__cvta_generic_to_shared(tile + 4 * threadIdx.x)), t = threadIdx.x;
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(in[t]), "r"(in[32 + t]),
               "r"(in[64 + t]), "r"(in[96 + t]));
  __syncthreads();
  for (int i = t; i < 128; i += 32) out[i] = tile[i];
}
#endif

// ---- control

KERNEL divergent(const u32* in, u32* out) {
  const u32 v = in[threadIdx.x];
  u32 r = 0;
  if (v % 3 == 0) {
    r = v * 5;
    if (v % 2 == 0) {
      r += in[v % 32];
    } else {
      r -= in[(v + 1) % 32];
    }
  } else if (v % 3 == 1) {
    r = v ^ 0x55;
    for (u32 i = 0; i < v % 5; ++i) r = r * 7 + i;
  } else {
    r = ~v;
  }
  out[threadIdx.x] = r + 1;
}
KERNEL nested_loops(const u32* in, u32* out) {
  const u32 v = in[threadIdx.x];
  u32 r = v;
#pragma unroll 1
  for (u32 i = 0; i < v % 9; ++i) {
#pragma unroll 1
    for (u32 j = i; j < v % 13; ++j) {
      if ((r + j) % 7 == 3) continue;
      r = r * 31 + j;
      if (r % 29 == 5) break;
    }
    r ^= i;
  }
  out[threadIdx.x] = r;
}
KERNEL early_exit(const u32* in, u32* out, u32 n) {
  const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  u32 v = in[i];
  while (v > 1) {
    if (v == 97) return;
    v = v & 1 ? 3 * v + 1 : v / 2;
    ++out[i];
  }
  out[i] += 1000;
}
// Those that are left go on to a barrier.
KERNEL exit_before_barrier(const u32* in, u32* out) {
  __shared__ u32 tile[128];
  if (threadIdx.x >= 100) return;
  tile[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[99 - threadIdx.x];
}
static __device__ __noinline__ u32 twice_and(u32 v, u32 w) {
  u32 kept[6];
  for (u32 i = 0; i < 6; ++i) kept[(v + i) % 6] = v * i;
  return 2 * v + kept[w % 6];
}
static __device__ __noinline__ u32 outer(u32 v, u32 w) {
  return twice_and(v, w) + (v & 1 ? twice_and(w, v) : 5);
}
KERNEL calls(const u32* in, u32* out) {
  const u32 v = in[threadIdx.x];
  u32 r = outer(v, threadIdx.x);
  if (v % 3) r += twice_and(r, v);
  out[threadIdx.x] = r;
}
KERNEL cases(const u32* in, u32* out) {
  const u32 v = in[threadIdx.x];
  u32 r = v;
  switch (v % 12) {
    case 0: r = v * 3 + in[0]; break;
    case 1: r = v ^ in[1]; break;
    case 2: r = v - in[2] * v; break;
    case 3: r = v / 7; break;
    case 4: r = in[v % 32]; [[fallthrough]];
    case 5: r += 77; break;
    case 6: r = __popc(v) + in[6]; break;
    case 7: r = v << 5 | in[7]; break;
    case 8: r = __brev(v) + in[8]; break;
    case 9:
      for (u32 i = 0; i < v % 8; ++i) r = r * 5 + in[i];
      break;
    case 10: r = ~v + in[10]; break;
    default: r = 1234567;
  }
  out[threadIdx.x] = r;
}
KERNEL sum_of_block(const u32* in, u32* out) {
  __shared__ u32 tile[256];
  const u32 t = threadIdx.x;
  tile[t] = in[blockIdx.x * blockDim.x + t];
  __syncthreads();
  for (u32 n = blockDim.x / 2; n > 32; n /= 2) {
    if (t < n) tile[t] += tile[t + n];
    __syncthreads();
  }
  if (t < 32) {
    for (u32 n = 32; n > 0; n /= 2) {
      const u32 v = tile[t] + (t < n ? tile[t + n] : 0);
      __syncwarp();
      tile[t] = v;
      __syncwarp();
    }
  }
  if (t == 0) out[blockIdx.x] = tile[0];
}
// Halves of a warp are in step among themselves, each by a barrier of its own.
KERNEL halves_in_step(const u32* in, u32* out) {
  __shared__ u32 tile[32];
  const u32 t = threadIdx.x;
  if (t < 16) {
    tile[t] = in[t] * 3;
    __syncwarp(0xffff);
    out[t] = tile[t ^ 1];
  } else {
    tile[t] = in[t] * 5;
    __syncwarp(0xffff0000);
    out[t] = tile[t ^ 2];
  }
}
// Threads come to the barrier of their warp by different ways.
KERNEL parted_in_step(const u32* in, u32* out) {
  __shared__ u32 tile[32];
  const u32 t = threadIdx.x;
  if (t & 1) {
    for (u32 i = 0; i < in[t] % 7; ++i) out[t] += i;
    tile[t] = in[t];
    __syncwarp();
    out[t] += tile[t ^ 3];
  } else {
    tile[t] = 2 * in[t];
    __syncwarp();
    out[t] = tile[t ^ 5];
  }
}
KERNEL same_value_by_all(u32* out) {
  __shared__ u32 flag;
  flag = 17;
  __syncthreads();
  out[threadIdx.x] = flag;
}
KERNEL named_barriers(const u32* in, u32* out) {
  __shared__ u32 tile[128];
  const u32 t = threadIdx.x, half = t / 64;
  for (u32 turn = 0; turn < 3 + half; ++turn) {
    tile[t] = in[t] + turn;
    asm volatile("bar.sync %0, 64;" ::"r"(half + 1) : "memory");
    out[t] += tile[t ^ 63];
    asm volatile("bar.sync %0, 64;" ::"r"(half + 1) : "memory");
  }
}
// Every thread hands its place on to the next warp's, which waits for all that arrive.
KERNEL arrive_and_wait(const u32* in, u32* out) {
  __shared__ u32 tile[32];
  const u32 t = threadIdx.x;
  if (t < 32) {
    tile[t] = in[t];
    asm volatile("bar.arrive 3, 64;" ::: "memory");
  } else {
    asm volatile("bar.sync 3, 64;" ::: "memory");
    out[t - 32] = tile[63 - t];
  }
}
KERNEL counting_barrier(const u32* in, u32* out) {
  const u32 v = in[threadIdx.x];
  out[threadIdx.x] = __syncthreads_count(v & 1) + 1000 * __syncthreads_or(v > 254) + 2000 * __syncthreads_and(v < 256);
}
KERNEL grid_of_three(u32* out) {
  const u32 x = blockIdx.x, t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  out[x * blockDim.x * blockDim.y * blockDim.z + t] =
      threadIdx.x + 100 * threadIdx.y + 10000 * threadIdx.z + 1000000 * x + 100000000 * gridDim.x;
}
// Pointers that may be to any memory.
static __device__ __noinline__ u32 read_any(const u32* p, u32 i) {
  return p[i];
}
KERNEL any_memory(const u32* in, u32* out, u32 which) {
  __shared__ u32 tile[64];
  u32 own[8];
  for (u32 i = 0; i < 8; ++i) own[(in[i] + i) % 8] = threadIdx.x + i;
  tile[threadIdx.x] = 2 * in[threadIdx.x];
  __syncthreads();
  const u32 way = (which + threadIdx.x) % 3;
  const u32* from = way == 0 ? tile : way == 1 ? own : in;
  out[threadIdx.x] = read_any(from, (threadIdx.x * 5) % 8);
}

// ---- faults

KERNEL read_at(const u32* in, u32* out, long long at) {
  out[0] = *reinterpret_cast<const u32*>(reinterpret_cast<const char*>(in) + at);
}
KERNEL write_at(u32* out, long long at) {
  *reinterpret_cast<u32*>(reinterpret_cast<char*>(out) + at) = 5;
}
KERNEL read_wide_at(const uint4* in, uint4* out, long long at) {
  out[0] = *reinterpret_cast<const uint4*>(reinterpret_cast<const char*>(in) + at);
}
// One thread of many.
KERNEL one_reads_behind(const u32* in, u32* out, u32 n) {
  out[threadIdx.x] = in[threadIdx.x == 21 ? n : threadIdx.x];
}
KERNEL write_read_only(u32* in, u32* out) {
  out[0] = in[0];
  in[1] = 3;
}
KERNEL shared_never_written(u32* out) {
  __shared__ u32 tile[64];
  if (threadIdx.x < 31) tile[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}
KERNEL shared_at(u32* out, u32 at) {
  __shared__ u32 tile[64];
  tile[threadIdx.x] = threadIdx.x;
  tile[threadIdx.x + 32] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = *reinterpret_cast<u32*>(reinterpret_cast<char*>(tile) + at);
}
KERNEL shared_written_at(u32* out, u32 at) {
  __shared__ u32 tile[64];
  *reinterpret_cast<u32*>(reinterpret_cast<char*>(tile) + at) = 4;
  out[0] = *reinterpret_cast<u32*>(reinterpret_cast<char*>(tile) + at);
}
KERNEL dynamic_at(u32* out, u32 at) {
  extern __shared__ u32 dynamic[];
  dynamic[at] = 4;
  out[0] = dynamic[at];
}
KERNEL local_never_written(const u32* at, u32* out) {
  u32 own[16];
  for (u32 i = 0; i < at[0]; ++i) own[at[i + 1]] = i;
  out[threadIdx.x] = own[at[1] + threadIdx.x];
}
// Neighbours of `by` threads: of one warp or of different ones; with or without what orders them.
template <bool block, bool warp>
static __device__ void read_after_write(const u32* in, u32* out, u32 by) {
  __shared__ u32 tile[128];
  tile[threadIdx.x] = in[threadIdx.x];
  if (block) __syncthreads();
  if (warp) __syncwarp();
  out[threadIdx.x] = tile[threadIdx.x ^ by];
}
KERNEL read_after_write_block(const u32* in, u32* out, u32 by) {
  read_after_write<true, false>(in, out, by);
}
KERNEL read_after_write_warp(const u32* in, u32* out, u32 by) {
  read_after_write<false, true>(in, out, by);
}
KERNEL read_after_write_none(const u32* in, u32* out, u32 by) {
  read_after_write<false, false>(in, out, by);
}
template <bool block, bool warp>
static __device__ void write_after_read(const u32* in, u32* out, u32 by) {
  __shared__ u32 tile[128];
  tile[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  const u32 v = tile[threadIdx.x ^ by];
  if (block) __syncthreads();
  if (warp) __syncwarp();
  tile[threadIdx.x] = v + 1;
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}
KERNEL write_after_read_block(const u32* in, u32* out, u32 by) {
  write_after_read<true, false>(in, out, by);
}
KERNEL write_after_read_warp(const u32* in, u32* out, u32 by) {
  write_after_read<false, true>(in, out, by);
}
KERNEL write_after_read_none(const u32* in, u32* out, u32 by) {
  write_after_read<false, false>(in, out, by);
}
// All read one word, then one thread writes it.
template <bool synchronised>
static __device__ void write_after_reads_of_all(const u32* in, u32* out, u32 writer) {
  __shared__ u32 tile[2];
  if (threadIdx.x == 0) tile[0] = in[0];
  __syncthreads();
  const u32 v = tile[0];
  if (synchronised) __syncthreads();
  if (threadIdx.x == writer) tile[0] = v + 1;
  out[threadIdx.x] = v;
}
KERNEL write_after_reads_of_all_block(const u32* in, u32* out, u32 writer) {
  write_after_reads_of_all<true>(in, out, writer);
}
KERNEL write_after_reads_of_all_none(const u32* in, u32* out, u32 writer) {
  write_after_reads_of_all<false>(in, out, writer);
}
template <bool block, bool warp>
static __device__ void write_after_write(const u32* in, u32* out, u32 by) {
  __shared__ u32 tile[128];
  tile[threadIdx.x] = in[threadIdx.x];
  if (block) __syncthreads();
  if (warp) __syncwarp();
  tile[threadIdx.x ^ by] = in[threadIdx.x] + 1;
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}
KERNEL write_after_write_block(const u32* in, u32* out, u32 by) {
  write_after_write<true, false>(in, out, by);
}
KERNEL write_after_write_warp(const u32* in, u32* out, u32 by) {
  write_after_write<false, true>(in, out, by);
}
KERNEL write_after_write_none(const u32* in, u32* out, u32 by) {
  write_after_write<false, false>(in, out, by);
}
KERNEL write_of_one_instruction(const u32* in, u32* out) {
  __shared__ u32 tile[32];
  tile[threadIdx.x / 2] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x / 2];
}
// A barrier that only half of a warp's threads take part in orders nothing of the other half.
KERNEL half_in_step(const u32* in, u32* out) {
  __shared__ u32 tile[32];
  const u32 t = threadIdx.x;
  if (t < 16) {
    tile[t] = in[t];
    __syncwarp(0xffff);
    out[t] = tile[t ^ 1];
  } else {
    out[t] = tile[t - 16];
  }
}
// Warp-wide shuffles order no memory.
KERNEL shuffle_is_no_barrier(const u32* in, u32* out) {
  __shared__ volatile u32 tile[32];
  const u32 t = threadIdx.x;
  tile[t] = in[t];
  const u32 v = __shfl_xor_sync(~0u, in[t], 1);
  out[t] = tile[t ^ 1] + v;
}
template <bool waits, bool synchronises>
static __device__ void async_race(const u32* in, u32* out, u32 by) {
  __shared__ u32 tile[128];
  copy_async<4>(tile + threadIdx.x, in + threadIdx.x);
  commit();
  if (waits) wait<0>();
  if (synchronises) __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x ^ by];
}
KERNEL async_waited(const u32* in, u32* out, u32 by) {
  async_race<true, false>(in, out, by);
}
KERNEL async_not_waited(const u32* in, u32* out, u32 by) {
  async_race<false, true>(in, out, by);
}
KERNEL async_one_stage_late(const u32* in, u32* out) {
  stages(in, out, true);
}
KERNEL async_not_committed(const u32* in, u32* out) {
  __shared__ u32 tile[128];
  copy_async<4>(tile + threadIdx.x, in + threadIdx.x);
  wait<0>();
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}
KERNEL async_over_write(const u32* in, u32* out, u32 by) {
  __shared__ u32 tile[128];
  tile[threadIdx.x ^ by] = 3;
  copy_async<4>(tile + threadIdx.x, in + threadIdx.x);
  commit();
  wait<0>();
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}
KERNEL write_under_async(const u32* in, u32* out) {
  __shared__ u32 tile[128];
  copy_async<4>(tile + threadIdx.x, in + threadIdx.x);
  commit();
  tile[threadIdx.x] = 4;
  wait<0>();
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}
// Those that do not come to the barrier come to another.
KERNEL barrier_of_some(const u32* in, u32* out) {
  if (in[threadIdx.x] > 16) asm volatile("barrier.sync 0;" ::: "memory");
  for (u32 i = 0; i < in[threadIdx.x]; ++i) out[i] += 1;
  asm volatile("barrier.sync 0;" ::: "memory");
  out[threadIdx.x] = 5;
}
KERNEL barriers_at_two_places(const u32* in, u32* out) {
  if (in[0] + threadIdx.x / 32 == 1) {
    __syncthreads();
    out[threadIdx.x] = 1;
  } else {
    __syncthreads();
    out[threadIdx.x + 1] = in[2];
  }
}
KERNEL barrier_missed(const u32* in, u32* out) {
  if (threadIdx.x < 32) asm volatile("bar.sync 1, 96;" ::: "memory");
  out[threadIdx.x] = in[0];
}
KERNEL clocks(u64* out) {
  out[threadIdx.x] = clock64();
}
KERNEL adds_atomically(u32* out) {
  atomicAdd(out, threadIdx.x);
}
KERNEL first_block_writes(u32* out) {
  __shared__ u32 tile[32];
  if (blockIdx.x == 0) tile[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}

// ---- counts

KERNEL store_shared(u32* out, u32 stride, u32 offset) {
  __shared__ u32 tile[32 * 33];
  tile[threadIdx.x * stride + offset] = 7;
  if (out[0] == 12345) out[1] = tile[threadIdx.x];
}
KERNEL store_shared_2(u32* out, u32 stride) {
  __shared__ u16 tile[32 * 16];
  tile[threadIdx.x * stride] = 7;
  if (out[0] == 12345) out[1] = tile[threadIdx.x];
}
KERNEL store_shared_8(u32* out, u32 stride) {
  __shared__ uint2 tile[32 * 16];
  tile[threadIdx.x * stride] = make_uint2(7, 7);
  if (out[0] == 12345) out[1] = tile[threadIdx.x].x;
}
KERNEL store_shared_16(u32* out, u32 stride) {
  __shared__ uint4 tile[32 * 8];
  tile[threadIdx.x * stride] = make_uint4(7, 7, 7, 7);
  if (out[0] == 12345) out[1] = tile[threadIdx.x].x;
}
KERNEL read_strided(const u32* in, u32* out, u32 stride) {
  const u32 v = in[threadIdx.x * stride];
  if (v == 12345) out[0] = v;
}
KERNEL read_strided_16(const uint4* in, u32* out, u32 stride) {
  const uint4 v = in[threadIdx.x * stride];
  if (v.x + v.y + v.z + v.w == 12345) out[0] = v.x;
}
KERNEL read_twice(const volatile u32* in, u32* out) {
  const u32 v = in[threadIdx.x], w = in[threadIdx.x ^ 1];
  if (v + w == 12345) out[0] = v;
}
KERNEL straight(const u32* in, u32* out) {
  const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = in[i] * 3 + 1;
}
KERNEL two_ways(const u32* in, u32* out) {
  u32 v = in[threadIdx.x];
  if (v & 1) {
#pragma unroll 1
    for (u32 i = 0; i < 3; ++i) v = v * v + out[i + 64];
  } else {
#pragma unroll 1
    for (u32 i = 0; i < 5; ++i) v = v * 3 + out[i + 80];
  }
  out[threadIdx.x] = v;
}
KERNEL turns(u32* out, u32 n) {
#pragma unroll 1
  for (u32 i = 0; i < n * (threadIdx.x + 1); ++i) *static_cast<volatile u32*>(out + threadIdx.x) = i;
}
