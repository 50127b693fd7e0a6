#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

using u16 = unsigned short;
using u32 = unsigned;
using u64 = unsigned long long;

static __device__ __half2 as_half2(u32 v) { return *reinterpret_cast<__half2*>(&v); }
static __device__ __nv_bfloat162 as_bfloat162(u32 v) { return *reinterpret_cast<__nv_bfloat162*>(&v); }
