#include "memory.h"

#include <algorithm>
#include <cstring>
#include <sstream>

namespace sass {
namespace {

template <class... A>
[[noreturn]] void fault(A... parts) {
  std::ostringstream out;
  (out << ... << parts);
  throw Fault(out.str());
}

}  // namespace

void GlobalMemory::allow(const void* owner, const void* begin, uint64_t bytes, bool writable) {
  const uint64_t at = reinterpret_cast<uint64_t>(begin);
  ranges_.push_back({owner, at, at + bytes, writable});
}

void GlobalMemory::forget(const void* owner) {
  const auto owned = [=](const Range& r) { return r.owner == owner; };
  ranges_.erase(std::remove_if(ranges_.begin(), ranges_.end(), owned), ranges_.end());
}

const Range* GlobalMemory::find(uint64_t begin, uint64_t end) const {
  const Range* found = nullptr;
  for (const Range& r : ranges_)
    if (begin >= r.begin && end <= r.end && (!found || r.writable)) found = &r;
  return found;
}

void GlobalMemory::check(const uint64_t (&address)[32], uint32_t active, int width, bool write) const {
  uint64_t begin = ~uint64_t(0), end = 0;
  for (uint32_t left = active; left; left &= left - 1) {
    const uint64_t at = address[__builtin_ctz(left)];
    if (at % uint64_t(width)) fault("global address ", std::hex, at, " is not aligned to ", std::dec, width, " bytes");
    begin = std::min(begin, at), end = std::max(end, at + uint64_t(width));
  }
  if (!active) return;
  const Range* all = find(begin, end);
  if (all && (all->writable || !write)) return;
  for (uint32_t left = active; left; left &= left - 1) {
    const uint64_t at = address[__builtin_ctz(left)];
    const Range* range = find(at, at + uint64_t(width));
    if (!range) {
      int64_t before = -1, behind = -1;
      for (const Range& r : ranges_) {
        if (at < r.begin && (before < 0 || int64_t(r.begin - at) < before)) before = int64_t(r.begin - at);
        if (at + uint64_t(width) > r.end && at >= r.begin && (behind < 0 || int64_t(at - r.end) < behind))
          behind = int64_t(at - r.end);
      }
      fault("global access of ", width, " bytes outside of the tensors: ", before, " bytes before one, ", behind,
            " behind one (-1: none)");
    }
    if (write && !range->writable) fault("global write to a tensor that is only read");
  }
}

void SharedMemory::begin_block(uint32_t begin, uint32_t end, int warps) {
  begin_ = begin, end_ = end;
  if (bytes_.size() < end) bytes_.resize(end), data_.resize(end);
  for (uint32_t at = begin; at < end; ++at) bytes_[at].in_flight = false;
  order.begin_block(warps);
}

void SharedMemory::check(uint32_t at, int width) const {
  if (at % uint32_t(width)) fault("shared address ", at, " is not aligned to ", width, " bytes");
  if (at < begin_ || at + uint64_t(width) > end_)
    fault("shared access at byte ", int64_t(at) - begin_, " of ", end_ - begin_);
}

bool SharedMemory::reads_are_before(int by, const Byte& byte) const {
  if (byte.read < order.block_begun()) return true;
  if (byte.reader < several_of_warp) return order.is_before(by, byte.read, byte.reader);
  if (byte.reader != several) return order.is_before_of_warp(by, byte.read, byte.reader & ~several_of_warp);
  for (uint32_t left = byte.warps; left; left &= left - 1)
    if (!order.is_before_of_warp(by, byte.read, __builtin_ctz(left))) return false;
  return true;
}

void SharedMemory::read(int by, uint32_t at, int width, void* to) {
  check(at, width);
  const int warp = by / Order::lanes;
  for (uint32_t b = at; b < at + uint32_t(width); ++b) {
    Byte& byte = bytes_[b];
    if (byte.in_flight) fault("race: shared byte ", b - begin_, " is read before its asynchronous copy was waited for");
    if (byte.written < order.block_begun()) fault("shared byte ", b - begin_, " is read and nobody wrote it");
    if (!order.is_before(by, byte.written, byte.writer))
      fault("race: thread ", by, " reads shared byte ", b - begin_, " that thread ", byte.writer,
            " wrote, with no barrier between");
    if (reads_are_before(by, byte)) {  // what comes after this read comes after those
      byte.reader = uint16_t(by), byte.warps = 1u << warp;
    } else {
      byte.warps |= 1u << warp;
      byte.reader = byte.warps == 1u << warp ? uint16_t(several_of_warp | warp) : several;
    }
    byte.read = order.now();
  }
  std::memcpy(to, &data_[at], size_t(width));
}

void SharedMemory::store(int by, uint32_t at, int width, const void* from) {
  for (uint32_t b = at; b < at + uint32_t(width); ++b) {
    Byte& byte = bytes_[b];
    const uint8_t value = static_cast<const uint8_t*>(from)[b - at];
    if (byte.in_flight) fault("race: shared byte ", b - begin_, " is written while an asynchronous copy is under way");
    if (!reads_are_before(by, byte))
      fault("race: thread ", by, " writes shared byte ", b - begin_, " that others read, no barrier between");
    const bool written = byte.written >= order.block_begun();
    if (written && data_[b] != value && !order.is_before(by, byte.written, byte.writer))
      fault("race: thread ", by, " writes shared byte ", b - begin_, " that thread ", byte.writer,
            " wrote, with no barrier between");
    byte.written = order.now(), byte.writer = uint16_t(by);
  }
}

void SharedMemory::write(int by, uint32_t at, int width, const void* from) {
  check(at, width);
  store(by, at, width, from);
  std::memcpy(&data_[at], from, size_t(width));
}

void SharedMemory::begin_copy(int by, uint32_t at, int width, const void* from) {
  check(at, width);
  store(by, at, width, from);
  for (uint32_t b = at; b < at + uint32_t(width); ++b) bytes_[b].in_flight = true;
}

void SharedMemory::land(int by, uint32_t at, int width, const void* from) {
  for (uint32_t b = at; b < at + uint32_t(width); ++b) {
    bytes_[b].in_flight = false;
    bytes_[b].written = order.now(), bytes_[b].writer = uint16_t(by);
  }
  std::memcpy(&data_[at], from, size_t(width));
}

void LocalMemory::begin(uint32_t frame) {
  data_.assign(frame, 0xee);
  written_.assign(frame, false);
}

size_t LocalMemory::offset(uint32_t at, int width) const {
  const int64_t offset = int64_t(at) - (int64_t(top) - int64_t(data_.size()));
  if (at % uint32_t(width)) fault("local address ", at, " is not aligned to ", width, " bytes");
  if (offset < 0 || offset + width > int64_t(data_.size()))
    fault("local access at byte ", offset, " of ", data_.size());
  return size_t(offset);
}

void LocalMemory::read(uint32_t at, int width, void* to) const {
  const size_t from = offset(at, width);
  for (int b = 0; b < width; ++b)
    if (!written_[from + size_t(b)]) fault("local byte ", from + size_t(b), " is read and was never written");
  std::memcpy(to, &data_[from], size_t(width));
}

void LocalMemory::write(uint32_t at, int width, const void* from) {
  const size_t to = offset(at, width);
  std::fill_n(written_.begin() + long(to), width, true);
  std::memcpy(&data_[to], from, size_t(width));
}

}  // namespace sass
