// The tile and block shapes of the GPU kernels, each with its reason. dispatch.h chooses among them for a map, and the
// hot kernels of benchmarks/codegen are made of them.
#pragma once

#include <algorithm>

namespace aablur::gpu {

// Threads of a block, where threads share nothing: four warps.
constexpr int block_threads = 128;

// `resident` below: how many blocks a multiprocessor's registers must have room for. More warps hide more of the
// latency of memory; each value is what was fastest on an H200. Other forms would spill at these values.
template <class Form>
constexpr bool is_default = Form::taps == 3 && Form::up * Form::down == 2;

// ---- register tiles --------------------------------------------------------------------------------

// Elements of 16 bytes, the widest access.
template <class T>
constexpr int widest = 16 / int(sizeof(T));

// The blur and its transpose: groups of columns a thread. Two share what their windows overlap in; of single elements,
// whose loads take as long as those of vectors, four do. Fewer where the sums that wait, and the vectors of a row,
// would not fit 128 registers.
template <class T, class Form, int Vector, bool PerChannel>
struct BandConfig {
  static constexpr int registers(int groups) {
    const int sums = Vector * groups * Form::up * Form::reach,
              row = ((groups - 1) * Form::down + Form::reach) * (Vector * int(sizeof(T)) / 4 + 1),
              weights = PerChannel ? Vector * (groups + 1) * Form::entries : 0;
    return sums + row + weights;
  }
  static constexpr int groups = Vector == 1 && registers(4) < 48 ? 4 : registers(2) <= 90 ? 2 : 1;
  static constexpr int resident = !PerChannel && is_default<Form> ? 5 : 4;
};

// Channels a thread: 8 bytes, and of the shapes that networks have 16, for fewer instructions. Filters of each channel
// have their weights in registers, too.
template <class T, class Form>
struct BandVector {
  static constexpr bool is_hot = !Form::more && Form::up * Form::down == 2 && (Form::taps == 3 || Form::taps == 4);
  static constexpr int half = widest<T> / 2, wide = is_hot ? widest<T> : half;
  static constexpr int per_channel = Form::taps <= 4 ? 4 : 2;
};

// With a max: channels a thread, whose codes are whole bytes, and as many groups of columns as leave sums and maxima in
// 128 registers, for neighbours to share more of what they make twice; backward two.
template <class T, class Form, int Window>
struct MaxBandVector {
  static constexpr int backward = Window == 3 ? 8 / int(sizeof(T)) : 4, half = backward,
                       wide = Window == 2 && Form::reach <= 3 ? widest<T> : half;
};
template <class T, class Form, int Vector, int Window, bool WithCodes>
struct MaxBandConfig {
  static constexpr int groups = sizeof(T) == 2 && Vector == 4 && Window == 2 && Form::reach <= 3            ? 3
                                : Vector * Form::reach > 16 || (sizeof(T) == 4 && Window == 2 && WithCodes) ? 1
                                                                                                            : 2;
};
template <class T, class Form, int Window>
constexpr int resident_backward = sizeof(T) == 4 && Window == 3 && is_default<Form> ? 5 : 4;

// ---- planes in shared memory -----------------------------------------------------------------------

// Threads of a block; columns of the result that a thread makes side by side (a strip); the most rows that it rolls
// down (a segment), and to how many a segment's set-up comes. A block takes planes until it has `enough` KB of shared
// memory, so that several are resident: in different phases they keep memory busy. Sizes are those that were fastest on
// an H200.
template <int Threads, int Columns, int Longest, int SetUp, int Enough, int Resident>
struct SmemConfig {
  static constexpr int threads = Threads, columns = Columns, longest = Longest, set_up = SetUp, enough = Enough << 10,
                       resident = Resident;
};

// The blur and its transpose: strips of two words, so that neighbours meet by twos in a bank; of float, whose columns
// are words, two columns of the larger map. Segments (groups of rows) are long, for what a thread sets up to be little.
template <class T, class Form>
constexpr int strip_groups = std::max(1, (sizeof(T) == 2 ? 8 : 4) / (Form::up * Form::down));
template <class T, class Form>
struct PlanesConfig
    : SmemConfig<128, strip_groups<T, Form>, 16, 4, sizeof(T) == 2 ? 36 : 24, is_default<Form> ? 8 : 1> {};

// With a max: narrow strips. Wide ones take fewer instructions, and leave too few warps to hide latency.
template <class T, class Form, int Window>
struct SmemMax : SmemConfig<64, sizeof(T) == 2 || Window == 3 ? 4 : 2, 16, 8,
                            Window == 2      ? 18
                            : sizeof(T) == 2 ? 24
                                             : 36,
                            !is_default<Form> ? 1
                            : Window == 2     ? 12
                                              : 8> {};
template <class T, class Form, int Window>
struct SmemMaxBackward : SmemConfig<64, sizeof(T) == 2 ? (Window == 2 ? 4 : 3) : 2, 16, 4, Window == 2 ? 18 : 24,
                                    is_default<Form> ? 12 : 1> {};

}  // namespace aablur::gpu
