// The tile and block shapes of the GPU kernels, each with its reason. dispatch.h chooses among them for a map, and the
// hot kernels of benchmarks/codegen are made of them.
#pragma once

namespace aablur::gpu {

// Threads of a block, where threads share nothing: four warps, of which registers let four to eight blocks be resident.
constexpr int block_threads = 128;

// ---- register tiles --------------------------------------------------------------------------------

// What a thread makes: columns x rows of the result, of pixels of `vector` elements of channels.
template <int Vector, int Columns, int Rows>
struct TileConfig {
  static constexpr int vector = Vector, columns = Columns, rows = Rows;
};

// Elements of 16 bytes, the widest access.
template <class T>
constexpr int widest = 16 / int(sizeof(T));

// Forward, 3 taps, stride 2. Nhwc: 5 x 9 pixels are loaded for 8 results, 5.6 each where one alone takes 9. Sums take
// 64 registers for halves. Elements: channels are no whole vectors, or planes are not dense; each element has an
// address of its own, so that a larger tile gains little.
template <class T>
struct BlurNhwc : TileConfig<widest<T>, 2, 4> {};
struct BlurElements : TileConfig<1, 2, 4> {};

// Backward: the larger map is the result, and its elements wait in registers as sums. Four float pixels of 4 channels
// take as many as eight of halves, and fit 80 registers: more blocks are resident.
template <class T>
struct BlurBackwardNhwc : TileConfig<widest<T>, 2, sizeof(T) == 4 ? 2 : 4> {};
struct BlurBackwardElements : TileConfig<1, 2, 4> {};

// With a max, more than four lanes of maxima and codes would not fit the registers.
struct MaxNhwc : TileConfig<4, 2, 4> {};
struct MaxElements : TileConfig<1, 2, 4> {};

struct MaxBackwardNhwc : TileConfig<4, 4, 4> {};
struct MaxBackwardElements : TileConfig<1, 2, 2> {};

// What the backward's border tiles are made of, one part after the other: the weights of a whole tile, which differ
// from element to element there, would take its registers.
template <int Vector>
struct BackwardBorder : TileConfig<Vector, 2, 2> {};

// ---- planes in shared memory -----------------------------------------------------------------------

// Threads of a block; columns of the result that a thread makes side by side (a strip), and the most rows that it rolls
// down (a segment), in whole row_steps. A block takes planes until it has `enough` bytes of shared memory: five or six
// such blocks are resident in 228 KB, two in 100 KB, and being in different phases they keep memory busy.
template <int Threads, int Columns, int Longest, int RowStep>
struct SmemConfig {
  static constexpr int threads = Threads, columns = Columns, longest = Longest, row_step = RowStep, enough = 36 << 10;
};

// Strips of 4 columns of the larger map: 2-way bank conflicts for halves, 4-way for floats, a third to a half of what
// shared memory moves in the time of a copy. Segments are long, for what a thread sets up to be little beside them.
template <int Stride>
struct SmemBlur : SmemConfig<128, 4 / Stride, 16, 1> {};
template <int Stride>
struct SmemBlurBackward : SmemConfig<128, 4, 32, Stride> {};

// The max's strips are wider for halves, for fewer instructions: bank conflicts take nearly all that shared memory has.
// Of so few strips more threads would find none.
template <class T>
struct SmemMax : SmemConfig<64, 8 / int(sizeof(T)), 16, 1> {};
template <class T, int Window>
struct SmemMaxBackward : SmemConfig<64, sizeof(T) == 2 && Window == 2 ? 8 : 4, 32, 2> {};

}  // namespace aablur::gpu
