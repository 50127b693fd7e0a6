// The fast gradient of the taps, of two alike axes of up to 5 taps. Sum (b, c) is, over all outputs, the gradient times
// what taps b of the height and c of the width read; a tap's gradient is these sums, weighed by the taps of the other
// axis. Two launches, each added in one fixed order:
//
//   grad, x --Partials--> registers: all sums of every parts-th output of a lane
//                         --of filters of each channel--> workspace[sum][part][lane]
//                         --of one filter, as a tree----> workspace[sum][block]
//           --Total-----> a warp: some of the sums, as a tree --> shared --> gradient[row][taps]
//
// Loads are of neighbours by neighbours: coalesced.
#pragma once

#include "gpu/generic.h"

namespace aablur::gpu {

#if defined(__CUDACC__)
// The sum over a warp, always in the same order; every thread gets it.
__device__ inline double sum_of_warp(double value) {
  AABLUR_UNROLL
  for (int away = 16; away > 0; away /= 2) value += __shfl_xor_sync(~0u, value, away);
  return value;
}
#endif

// Thread i has V lanes from V * (i % (lanes / V)) on, and part i / (lanes / V).
template <class T, int K, int V, class I>
struct TapsGradientPartials {
  using Thread = gpu::Thread<TapsGradientSplit::threads>;
  using Vector = Pixel<T, V>;
  static constexpr int warps = Thread::count / 32, resident = K > 3 || sizeof(I) == 8 ? 4 : V > 1 ? 5 : 8;

  BasicAxis<I> height, width;
  View<T, I> grad, x;
  Divisor heights, widths;
  int64_t vectors, parts, entries;  // vectors of lanes
  uint32_t rest;
  I columns;  // of the result
  bool channels_last, per_channel;
  double* workspace;

  TapsGradientPartials(const TapsArguments& a, const TapsGradientSplit& split)
      : height(in_type<I>(a.shape.axis[1])),
        width(in_type<I>(a.shape.axis[2])),
        grad(a.grad, a.grad_strides),
        x(a.x, a.x_strides),
        heights(uint32_t(height.out())),
        widths(uint32_t(width.out())),
        vectors(split.lanes / V),
        parts(split.parts),
        entries(split.entries(V)),
        rest(uint32_t(split.rest)),
        columns(width.out()),
        channels_last(a.shape.channels_last),
        per_channel(split.rows > 1),
        workspace(a.workspace) {}
  static constexpr int64_t shared_bytes = K * K * warps * int64_t(sizeof(double));

#if defined(__CUDACC__)
  __device__ void run(char* shared, uint32_t block) const {
    const int thread = int(threadIdx.x);
    const int64_t i = int64_t(block) * Thread::count + thread;
    accumulator<T> sum[K * K][V] = {};
    if (i < vectors * parts) add(uint32_t(i % vectors), uint32_t(i / vectors), sum);
    if (per_channel) {
      if (i >= vectors * parts) return;
      AABLUR_UNROLL
      for (int m = 0; m < K * K; ++m) AABLUR_UNROLL
      for (int l = 0; l < V; ++l) workspace[m * entries + i * V + l] = double(sum[m][l]);
      return;
    }
    auto of_warps = reinterpret_cast<double (*)[warps]>(shared);
    AABLUR_UNROLL
    for (int m = 0; m < K * K; ++m) {
      double total = 0;
      AABLUR_UNROLL
      for (int l = 0; l < V; ++l) total += double(sum[m][l]);
      total = sum_of_warp(total);
      if (thread % 32 == 0) of_warps[m][thread / 32] = total;
    }
    __syncthreads();
    if (thread >= K * K) return;
    double total = 0;
    AABLUR_UNROLL
    for (int w = 0; w < warps; ++w) total += of_warps[thread][w];
    workspace[thread * entries + block] = total;
  }

  // The outputs part, part + parts ... of a vector of lanes.
  __device__ void add(uint32_t lane, uint32_t part, accumulator<T> (&sum)[K * K][V]) const {
    const I channel = channels_last ? I(lane) * V : I(lane / uint32_t(columns));
    const T* const grads = grad.data + channel * grad.strides.channel;
    const T* const from = x.data + channel * x.strides.channel;
    I w = channels_last ? 0 : I(lane) - channel * columns, row[K], column[K];
    if (!channels_last) fold_all(width, w, x.strides.axis[2], column);
    AABLUR_NO_UNROLL
    for (uint32_t output = part; output < rest; output += uint32_t(parts)) {
      uint32_t image = output;
      if (channels_last) {
        w = I(widths.split(image));
        fold_all(width, w, x.strides.axis[2], column);
      }
      const I h = I(heights.split(image));
      fold_all(height, h, x.strides.axis[1], row);
      const Vector dy =
          load<Vector>(grads + (I(image) * grad.strides.image + h * grad.strides.axis[1] + w * grad.strides.axis[2]));
      const T* const begin = from + I(image) * x.strides.image;
      bool has_all = true;
      AABLUR_UNROLL
      for (int t = 0; t < K; ++t) has_all = has_all && row[t] != outside && column[t] != outside;
      if (has_all) {  // all loads before the first is waited for
        Vector value[K * K];
        AABLUR_UNROLL
        for (int m = 0; m < K * K; ++m) value[m] = load<Vector>(begin + (row[m / K] + column[m % K]));
        AABLUR_UNROLL
        for (int m = 0; m < K * K; ++m) add_product(dy, value[m], sum[m]);
      } else {
        AABLUR_UNROLL
        for (int m = 0; m < K * K; ++m)
          if (row[m / K] != outside && column[m % K] != outside)
            add_product(dy, load<Vector>(begin + (row[m / K] + column[m % K])), sum[m]);
      }
    }
  }
  // Where the elements of an axis lie that output o reads, `outside` where there is none.
  __device__ static void fold_all(const BasicAxis<I>& axis, I o, I stride, I (&at)[K]) {
    AABLUR_UNROLL
    for (int t = 0; t < K; ++t) {
      const I source = fold(axis, o * axis.stride - axis.before + t);
      at[t] = source == outside ? outside : source * stride;
    }
  }
  __device__ static void add_product(const Vector& dy, const Vector& value, accumulator<T> (&sum)[V]) {
    AABLUR_UNROLL
    for (int l = 0; l < V; ++l) sum[l] += widen(dy.element[l]) * widen(value.element[l]);
  }
#endif
};

// A block has a row of taps.
template <class T>
struct TapsGradientTotal {
  using Thread = gpu::Thread<512>;
  static constexpr int warps = Thread::count / 32, resident = 1;

  Weights<T> weights;
  int taps;
  int64_t lanes, parts, entries;
  uint32_t beside;  // neighbouring entries of a row
  const double* workspace;
  accumulator<T>* out;

  TapsGradientTotal(const TapsArguments& a, const TapsGradientSplit& split, int64_t vector)
      : weights(a.filters, a.shape),
        taps(int(split.taps)),
        lanes(split.rows > 1 ? split.lanes : split.entries(vector)),
        parts(split.rows > 1 ? split.parts : 1),
        entries(split.entries(vector)),
        beside(uint32_t(lanes / split.rows)),
        workspace(a.workspace),
        out(static_cast<accumulator<T>*>(a.out)) {}
  int64_t shared_bytes() const { return taps * taps * int64_t(sizeof(double)); }

#if defined(__CUDACC__)
  __device__ void run(char* shared, uint32_t row) const {
    auto sums = reinterpret_cast<double*>(shared);
    const int thread = int(threadIdx.x);
    for (int m = thread / 32; m < taps * taps; m += warps) {
      const double* const from = workspace + m * entries + int64_t(row) * beside;
      double total = 0;
      if (beside >= 32) {
        for (int64_t part = 0; part < parts; ++part)
#pragma unroll 8
          for (uint32_t e = thread % 32; e < beside; e += 32) total += from[part * lanes + e];
      } else {
#pragma unroll 8
        for (uint32_t e = thread % 32; e < beside * uint32_t(parts); e += 32)
          total += from[int64_t(e / beside) * lanes + e % beside];
      }
      total = sum_of_warp(total);
      if (thread % 32 == 0) sums[m] = total;
    }
    __syncthreads();
    if (thread >= 2 * taps) return;
    const bool of_width = thread >= taps;
    const int tap = of_width ? thread - taps : thread;
    double total = 0;
    for (int other = 0; other < taps; ++other)
      total +=
          sums[of_width ? other * taps + tap : tap * taps + other] * double(weights.tap(of_width ? 1 : 2, other, row));
    out[int64_t(row) * 2 * taps + thread] = accumulator<T>(total);
  }
#endif
};

}  // namespace aablur::gpu
