// Which of two threads' accesses of shared memory come before which: clocks that barriers move on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sass {

class Order {
 public:
  static constexpr int lanes = 32, most_warps = 32;

  void begin_block(int warps);
  uint32_t now() const { return now_; }
  uint32_t block_begun() const { return block_begun_; }
  // Whether what `other` did at that time comes before what thread `by` does now.
  bool is_before(int by, uint32_t when, int other) const {
    if (when < block_synced_ || other == by) return true;
    const Warp& warp = warps_[std::size_t(by / lanes)];
    return when < (by / lanes == other / lanes ? warp.lane[by % lanes][other % lanes] : warp.other[other / lanes]);
  }
  // Likewise, of what any thread of a warp did.
  bool is_before_of_warp(int by, uint32_t when, int warp) const;

  void synchronise_warp(int warp, uint32_t threads);  // threads of a warp, among themselves
  void synchronise_block();
  // A barrier of some warps: those that wait come after all that arrived before; arriving is remembered by its barrier.
  struct Arrival {
    int warp;
    uint32_t when;
    uint32_t other[most_warps];
  };
  Arrival arrive(int warp);
  void synchronise_warps(const std::vector<Arrival>& arrived, const std::vector<int>& waiting);

 private:
  struct Warp {
    uint32_t lane[lanes][lanes] = {};  // [by][other]: what came before that time is ordered
    uint32_t other[most_warps] = {};   // of other warps
  };
  std::vector<Warp> warps_;
  uint32_t now_ = 0, block_begun_ = 0, block_synced_ = 0;
};

}  // namespace sass
