// The blur and its transpose of dense planes, by bands (core/bands.h).
//
//   taps, bands --------------------------> shared: the weights of both axes
//   global x --cp.async, 16 bytes a thread--> shared: planes one after the other, or a band of rows of one
//                 __syncthreads
//   shared --words of a strip-------------> registers: columns, 0 outside of the map
//          --weights of the columns-------> registers: the last `reach` rows of sums
//          --weights of the rows----------> shared: rows of results
//                 __syncthreads
//   shared --16 bytes a thread------------> global out
//
// A thread has a strip of some groups of columns and rolls down a segment of groups of rows. Neighbours of a warp take
// neighbouring strips; two words wide, they meet by twos in a bank.
#pragma once

#include "gpu/band_tiles.h"
#include "gpu/smem_planes.h"

namespace aablur::gpu {

// What kernels of dense planes have in common: how planes are cut, and the weights. A strip makes `Made` columns of
// results, from the one with index First of its groups on; its own `Own` groups' begin with index Lead.
template <class T, class Form_, class Config_, int First_, int Made_, int Own, int Lead>
struct PlaneBands {
  using Form = Form_;
  using Config = Config_;
  using Thread = gpu::Thread<Config::threads>;
  static constexpr int resident = Config::resident;
  static constexpr int up = Form::up, down = Form::down, reach = Form::reach, own = Own, First = First_, Made = Made_;
  static constexpr int G = int(ceil_div(First + Made, up)), Y = own * up;  // groups it reads; its own columns
  static constexpr int kept = reach > down ? reach - down : 0, N = (G - 1) * down + reach;
  static constexpr int halves = 4 / int(sizeof(T));  // elements of a word
  static constexpr bool has_codes = false;

  Band height, width;
  int row_groups = 0, column_groups = 0;         // at least the bands', for what else they have to do
  int source_size[2] = {}, result_size[2] = {};  // of a plane
  int planes = 0;
  Cut cut;  // rows are groups
  Cover<up> strip_columns;
  Strips strips;
  Divisor bands;
  int pairs = 0;       // of halves: two that a strip stores side by side lie in a word, and are there both or neither
  int by_vectors = 0;  // each strip's rows are read and stored so
  int source_offset = 0, codes_offset = 0, result_offset = 0;  // bytes of shared memory before
  const float *row_taps = nullptr, *column_taps = nullptr;     // of the first channel; null for binomials
  int taps_row = 0;                                            // from channel to channel; 0 where all share them
  Divisor channels;
  const T* x = nullptr;
  T* out = nullptr;

  // Where shared memory begins: the weights of both axes, as much of a BandTable as there is, with filters of each
  // channel those of every plane of the block; then a row of zeros.
  struct Tables {
    float (*rows)[8], (*columns)[8];
    T* zeros;

    AABLUR_HOST_DEVICE Tables(const PlaneBands& of, char* shared, int plane)
        : rows(reinterpret_cast<float (*)[8]>(shared) + (of.taps_row ? plane * of.table_rows() : 0)),
          columns(rows + of.height.rows()),
          zeros(reinterpret_cast<T*>(shared + of.table_bytes())) {}
  };
  AABLUR_HOST_DEVICE int table_rows() const { return height.rows() + width.rows(); }
  AABLUR_HOST_DEVICE int table_bytes() const {
    return (taps_row ? cut.planes : 1) * table_rows() * int(sizeof(float[8]));
  }
  struct Span {
    int begin, end;
    AABLUR_HOST_DEVICE int count() const { return end - begin; }
    AABLUR_HOST_DEVICE bool has(int i) const { return i >= begin && i < end; }
  };
  // Of [begin, end) what an axis of `size` has.
  AABLUR_HOST_DEVICE static Span within(int begin, int end, int size) {
    auto clamped = [&](int v) { return v < 0 ? 0 : v < size ? v : size; };
    return {clamped(begin), clamped(end)};
  }
  void cover(int rows, int origin) {
    strip_columns = Cover<up>(Lead, origin);
    row_groups = rows, column_groups = strip_columns.groups(result_size[1]);
    pairs = result_size[1] % 2 == 0 && strip_columns.start % 2 == 0;
  }
  // By vectors: a strip stores a row of results as one vector of 8 or 16 bytes; where strips begin a vector of the
  // source apart, it also reads one, behind its first word. Only the default form is compiled for it.
  static constexpr int vector = 16 / int(sizeof(T));
  static constexpr bool reads_vectors = own * down % vector == 0;
  static constexpr bool may_go_by_vectors = is_default<Form> && (Y * sizeof(T) == 8 || Y * sizeof(T) == 16);
  // Decides, once x and out are known; the first strip reads `count` columns from `first` on.
  void align(int first, int count) {
    auto are_whole = [](const void* map, int columns, int step) {
      return reinterpret_cast<uintptr_t>(map) % 16 == 0 && columns % step == 0;
    };
    const int behind = int(floor_div(first, halves)) * halves + halves;
    by_vectors = may_go_by_vectors && are_whole(out, result_size[1], Y) &&
                 strip_columns.first(strip_columns.left(0)) % Y == 0 &&
                 (!reads_vectors || (are_whole(x, source_size[1], vector) && behind % vector == 0 && first >= -count));
  }
  // Calls f(whether strips go by vectors).
  template <class F>
  AABLUR_HOST_DEVICE void with_vectors(F&& f) const {
    if constexpr (may_go_by_vectors)
      if (by_vectors) return f(std::true_type{});
    f(std::false_type{});
  }
  // Elements before and behind the source that are read along with `count` columns: whole vectors.
  static constexpr int read_along(int count) { return int(ceil_div(count + 3, 8)) * 8; }
  AABLUR_HOST_DEVICE bool is_whole() const { return cut.band >= row_groups; }
  int64_t blocks() const { return ceil_div(planes, cut.planes) * bands.value(); }

  // Cuts `count` planes for Kernel; returns the shared memory that a block needs, 0 where they do not fit.
  template <class Kernel>
  static int64_t divide(Kernel& kernel, int64_t count) {
    constexpr int64_t most = (int64_t(1) << 31) - 1, most_side = 1 << 15;
    const int side = std::max({kernel.source_size[0], kernel.source_size[1], kernel.result_size[0],
                               kernel.result_size[1], kernel.height.results, kernel.width.results});
    if (count > most || side > most_side || kernel.height.wraps || kernel.width.wraps) return 0;
    kernel.planes = int(count);
    const int64_t strips = ceil_div(kernel.column_groups, own);
    auto shared_bytes = [&](const Cut& of) {
      kernel.cut = of;
      kernel.strips = Strips(strips, of.band, of.segment);
      kernel.bands = Divisor(uint32_t(ceil_div(kernel.row_groups, of.band)));
      return kernel.lay_out();
    };
    const int64_t needed = shared_bytes(Cut::of<Config>(count, kernel.row_groups, strips, shared_bytes));
    return needed <= most_shared_bytes && kernel.blocks() <= most ? needed : 0;
  }

#if defined(__CUDACC__)
  // What a block has.
  struct Block {
    int group, groups, plane, planes;

    __device__ Block(const PlaneBands& of, uint32_t block)
        : group(int(of.bands.split(block)) * of.cut.band),
          groups(of.row_groups - group < of.cut.band ? of.row_groups - group : of.cut.band),
          plane(int(block) * of.cut.planes),
          planes(of.planes - plane < of.cut.planes ? of.planes - plane : of.cut.planes) {}
  };
  // A warp at a time fills the tables of a plane.
  __device__ void fill(char* shared, const Block& block, Thread thread) const {
    const int planes = taps_row ? block.planes : 1;
    AABLUR_NO_UNROLL
    for (int p = thread.index / 32; p < planes; p += Thread::count / 32) {
      uint32_t plane = uint32_t(block.plane + p);
      const int64_t taps = int64_t(channels.split(plane)) * taps_row;
      const Tables tables(*this, shared, p);
      fill_weights<Form>(height, row_taps ? row_taps + taps : nullptr, tables.rows, thread.index % 32, 32);
      fill_weights<Form>(width, column_taps ? column_taps + taps : nullptr, tables.columns, thread.index % 32, 32);
    }
  }
  // Copies a block's rows of its planes in; `over` elements behind them are zero. Those before are the caller's.
  __device__ T* copy_source(char* shared, const Block& block, Span rows, int over, Thread thread) const {
    const T* from = x + int64_t(block.plane) * (source_size[0] * source_size[1]) + rows.begin * source_size[1];
    T* source = staged(shared + source_offset, from);
    const int elements = block.planes * rows.count() * source_size[1];
    copy_in(source, from, elements, thread);
    clear(source + elements, source + elements + over, thread);
    return source;
  }
  __device__ T* result_of(const Block& block, Span rows) const {
    return out + int64_t(block.plane) * (result_size[0] * result_size[1]) + rows.begin * result_size[1];
  }
  // The weights of a strip's groups of columns from `first` on.
  __device__ void weigh_columns(const Tables& tables, int first, float (&across)[G][Form::entries]) const {
    AABLUR_UNROLL
    for (int g = 0; g < G; ++g) {
      const float* weight = tables.columns[width.row_near(first + g)];
      AABLUR_UNROLL
      for (int e = 0; e < Form::entries; ++e) across[g][e] = weight[e];
    }
  }
  // Rows of the source that a strip reads, one after the other: columns from `column` on, 0 outside of the map.
  template <bool ByVectors>
  struct SourceStrip {
    const char* shared;
    Span rows;
    int row, pitch;
    uint32_t at, zeros, keep[N];

    // Row `rows.begin` begins at source; there are `over` zeros before the row of them.
    __device__ SourceStrip(const PlaneBands& of, const Tables& tables, const char* shared, const T* source, Span rows,
                           int over, int row, int column)
        : shared(shared), rows(rows), row(row), pitch(of.source_size[1] * int(sizeof(T))) {
      AABLUR_UNROLL
      for (int j = 0; j < N; ++j) {
        keep[j] = keeping_half<T>(j % halves, unsigned(column + j) < unsigned(of.source_size[1]));
        pin(keep[j]);
      }
      // A strip wholly outside of the map reads what lies beside it, whatever it is.
      column = column < -N ? -N : column < of.source_size[1] ? column : of.source_size[1] - 1;
      at = shared_address(source + (row - rows.begin) * of.source_size[1] + column, shared);
      zeros = shared_address(tables.zeros + over + column, shared);
    }
    __device__ void read(float (&value)[N]) {
      const Neighbours<T, N, ByVectors && reads_vectors> neighbours(shared, rows.has(row) ? at : zeros);
      AABLUR_UNROLL
      for (int j = 0; j < N; ++j) value[j] = kept_half<T>(neighbours.word[j / halves], j % halves, keep[j]);
      skip(1);
    }
    __device__ void skip(int count) { row += count, at += count * pitch; }
  };
  // Sums along the width.
  __device__ static void add_columns(const float (&across)[G][Form::entries], const float (&value)[N],
                                     float (&sum)[Made]) {
    AABLUR_UNROLL
    for (int c = 0; c < Made; ++c) {
      const int g = (First + c) / up, phase = (First + c) % up;
      float total = 0;
      AABLUR_UNROLL
      for (int j = 0; j < reach; ++j)
        add_weighed<Form>(phase, j, across[g][phase * reach + j], value[g * down + j], total);
      sum[c] = total;
    }
  }
  // Row `phase` of a group of results: sums over rows.
  __device__ static void add_rows(const float* weight, const float (&sums)[reach][Made], int phase,
                                  float (&total)[Made]) {
    AABLUR_UNROLL
    for (int c = 0; c < Made; ++c) {
      total[c] = 0;
      AABLUR_UNROLL
      for (int j = 0; j < reach; ++j) add_weighed<Form>(phase, j, weight[phase * reach + j], sums[j][c], total[c]);
    }
  }
  // Hands the rows that the next group reads, too, on to it.
  __device__ static void roll(float (&sums)[reach][Made]) {
    AABLUR_UNROLL
    for (int j = 0; j < kept; ++j) AABLUR_UNROLL
    for (int c = 0; c < Made; ++c) sums[j][c] = sums[reach - kept + j][c];
  }
  // The bits of columns from `first` on that the result has.
  template <int Count>
  __device__ static uint32_t columns_of(int first, int results) {
    uint32_t columns = 0;
    AABLUR_UNROLL
    for (int c = 0; c < Count; ++c) columns |= uint32_t(unsigned(first + c) < unsigned(results)) << c;
    pin(columns);
    return columns;
  }
  // Stores those columns of a strip's row, from an address of shared memory on.
  template <bool ByVectors, int Count>
  __device__ void store_row(uint32_t to, uint32_t columns, const float (&value)[Count]) const {
    if constexpr (ByVectors) {
      uint32_t word[Count / halves];
      AABLUR_UNROLL
      for (int w = 0; w < Count / halves; ++w)
        if constexpr (halves == 1) word[w] = bit_cast<uint32_t>(value[w]);
        else word[w] = rounded_pair<T>(value[2 * w], value[2 * w + 1]);
      store_shared_vector_if(columns, to, word);
    } else if constexpr (sizeof(T) == 4) {
      AABLUR_UNROLL
      for (int c = 0; c < Count; ++c) store_shared_if<4>(columns & 1u << c, to + 4 * c, bit_cast<uint32_t>(value[c]));
    } else {
      if (pairs) store_halves<true>(to, columns, value);
      else store_halves<false>(to, columns, value);
    }
  }
  // Rounded by twos, and stored so where `Pairs`.
  template <bool Pairs, int Count>
  __device__ static void store_halves(uint32_t to, uint32_t columns, const float (&value)[Count]) {
    AABLUR_UNROLL
    for (int c = 0; c < Count; c += 2) {
      const bool is_pair = c + 1 < Count;
      const uint32_t word = rounded_pair<T>(value[c], is_pair ? value[c + 1] : 0);
      if (Pairs && is_pair) {
        store_shared_if<4>(columns & 1u << c, to + 2 * c, word);
      } else {
        store_shared_if<2>(columns & 1u << c, to + 2 * c, word);
        if (is_pair) store_shared_if<2>(columns & 2u << c, to + 2 * c + 2, word >> 16);
      }
    }
  }
#endif
};

template <class T, class Form>
using BlurPlanesBase =
    PlaneBands<T, Form, PlanesConfig<T, Form>, Form::origin, PlanesConfig<T, Form>::columns * Form::up,
               PlanesConfig<T, Form>::columns, Form::origin>;

template <class T, class Form>
struct BandPlanes : BlurPlanesBase<T, Form> {
  using Base = BlurPlanesBase<T, Form>;
  using Base::height, Base::width, Base::cut, Base::G, Base::own, Base::N, Base::Y, Base::up, Base::down, Base::reach,
      Base::kept, Base::halves, Base::source_size, Base::result_size;
  using typename Base::Tables, typename Base::Span, typename Base::Thread;
  static constexpr int over = Base::read_along(N);

  // The rows of the source that groups of rows read, and those of the result that they make.
  AABLUR_HOST_DEVICE Span source_rows(int group, int groups) const {
    if (this->is_whole()) return {0, height.sources};
    return Base::within(group * down + height.first, (group + groups - 1) * down + height.first + reach,
                        height.sources);
  }
  AABLUR_HOST_DEVICE Span made(int group, int groups) const {
    return Base::within(group * up - height.origin, (group + groups) * up - height.origin, height.results);
  }
  bool divide(const Shape&, int64_t count, int64_t& shared_bytes) {
    source_size[0] = height.sources, source_size[1] = width.sources;
    result_size[0] = height.results, result_size[1] = width.results;
    this->cover(height.groups, width.origin);
    shared_bytes = Base::divide(*this, count);
    return shared_bytes > 0;
  }
  void align() { Base::align(this->strip_columns.left(0) * down + width.first, N); }
  // Lays out a block's shared memory for its cut; returns how many bytes it takes.
  int64_t lay_out() {
    const int64_t rows = std::min<int64_t>((cut.band - 1) * down + reach, height.sources),
                  results = std::min<int64_t>(cut.band * up, height.results);
    this->source_offset = int(this->table_bytes() + staged_bytes<T>(width.sources + 2 * over));
    this->result_offset =
        int(this->source_offset +
            staged_bytes<T>(cut.planes * (this->is_whole() ? height.sources : rows) * width.sources + over));
    return this->result_offset + staged_bytes<T>(cut.planes * results * width.results);
  }

#if defined(__CUDACC__)
  __device__ void run(char* shared, uint32_t number) const {
    const Thread thread{int(threadIdx.x)};
    const typename Base::Block block(*this, number);
    const Span rows = source_rows(block.group, block.groups), made = this->made(block.group, block.groups);
    T* source = this->copy_source(shared, block, rows, over, thread);
    clear(shared + this->table_bytes(), source, thread);
    T* to = this->result_of(block, made);
    T* result = staged(shared + this->result_offset, to);
    this->fill(shared, block, thread);
    finish_copies();
    __syncthreads();
    this->with_vectors([&](auto by_vectors) {
      this->strips.each(block.planes, block.groups, thread, [&](int p, int first, int some, int strip) {
        blur<by_vectors>(Tables(*this, shared, p), shared, source + p * (rows.count() * width.sources), rows,
                         result + (p * made.count() - made.begin) * width.results, block.group + first, some,
                         this->strip_columns.left(strip * own));
      });
    });
    __syncthreads();
    copy_out(to, result, block.planes * made.count() * width.results, thread);
  }

  // `some` groups of rows from `group` on, of a strip of columns. Row `rows.begin` begins at source, row 0 at result.
  template <bool ByVectors>
  __device__ void blur(const Tables& tables, const char* shared, const T* source, Span rows, T* result, int group,
                       int some, int left) const {
    float across[G][Form::entries];
    this->weigh_columns(tables, left, across);
    const int x = this->strip_columns.first(left);
    const uint32_t has_result = Base::template columns_of<Y>(x, width.results);
    typename Base::template SourceStrip<ByVectors> strip(*this, tables, shared, source, rows, over,
                                                         group * down + height.first, left * down + width.first);
    uint32_t to = shared_address(result + (group * up - height.origin) * width.results + x, shared),
             pitch = width.results * int(sizeof(T));
    pin(pitch);

    float sums[reach][Y];
    auto read_row = [&](float (&sum)[Y]) {
      float value[N];
      strip.read(value);
      Base::add_columns(across, value, sum);
    };
    AABLUR_UNROLL
    for (int j = 0; j < kept; ++j) read_row(sums[reach - kept + j]);
    AABLUR_NO_UNROLL
    for (const int end = group + some; group < end; ++group) {
      Base::roll(sums);
      AABLUR_UNROLL
      for (int j = kept; j < reach; ++j) read_row(sums[j]);
      if (reach < down) strip.skip(down - reach);
      const float* weight = tables.rows[height.row_of(group)];
      AABLUR_UNROLL
      for (int phase = 0; phase < up; ++phase, to += pitch) {
        float total[Y];
        Base::add_rows(weight, sums, phase, total);
        const bool there = unsigned(group * up + phase - height.origin) < unsigned(height.results);
        this->template store_row<ByVectors>(to, there ? has_result : 0, total);
      }
    }
  }
#endif
};

}  // namespace aablur::gpu
