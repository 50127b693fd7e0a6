#include "order.h"

#include <algorithm>

namespace sass {

void Order::begin_block(int warps) {
  warps_.resize(size_t(warps));  // times of earlier blocks come before block_synced_
  block_begun_ = block_synced_ = ++now_;
}

bool Order::is_before_of_warp(int by, uint32_t when, int warp) const {
  if (when < block_synced_) return true;
  const Warp& own = warps_[size_t(by / lanes)];
  if (by / lanes != warp) return when < own.other[warp];
  const uint32_t* known = own.lane[by % lanes];
  return when < *std::min_element(known, known + lanes);
}

void Order::synchronise_warp(int warp, uint32_t threads) {
  ++now_;
  Warp& of = warps_[size_t(warp)];
  uint32_t known[lanes];  // what any of them knows of the others
  for (int other = 0; other < lanes; ++other) {
    known[other] = threads >> other & 1 ? now_ : 0;
    if (known[other]) continue;
    for (int l = 0; l < lanes; ++l)
      if (threads >> l & 1) known[other] = std::max(known[other], of.lane[l][other]);
  }
  for (int l = 0; l < lanes; ++l)
    if (threads >> l & 1) std::copy_n(known, lanes, of.lane[l]);
}

void Order::synchronise_block() {
  block_synced_ = ++now_;
}

Order::Arrival Order::arrive(int warp) {
  synchronise_warp(warp, ~0u);
  Arrival arrival{warp, now_, {}};
  std::copy_n(warps_[size_t(warp)].other, most_warps, arrival.other);
  return arrival;
}

void Order::synchronise_warps(const std::vector<Arrival>& arrived, const std::vector<int>& waiting) {
  for (int warp : waiting) {
    uint32_t* known = warps_[size_t(warp)].other;
    for (const Arrival& a : arrived) {
      for (int other = 0; other < most_warps; ++other) known[other] = std::max(known[other], a.other[other]);
      known[a.warp] = std::max(known[a.warp], a.when);
    }
  }
}

}  // namespace sass
