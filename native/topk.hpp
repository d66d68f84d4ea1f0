// The k best of a stream, collected at a cost per *kept* entry: what can't be among the k any more is never stored.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace vitrine {

// The k nearest by a small integer distance; entries are distance << 32 | row and arrive by ascending row, so that the
// first of equal distances stays. A histogram of what was kept gives the k-th distance exactly, without sorting.
class Nearest {
 public:
  Nearest(size_t k, uint32_t max_distance) : k_(k), bound_(max_distance + 1), histogram_(max_distance + 2) {}

  // Only distances below this one can still enter.
  uint32_t bound() const { return bound_; }

  void offer(uint64_t entry) {
    const uint32_t distance = static_cast<uint32_t>(entry >> 32);
    if (distance >= bound_) return;
    if (kept_.size() >= 2 * k_ + 256) compact();
    kept_.push_back(entry);
    ++histogram_[distance];
    ++within_;
    while (within_ - histogram_[bound_] >= k_) within_ -= histogram_[bound_--];
  }

  // At most k entries, best first.
  std::vector<uint64_t> take() {
    std::sort(kept_.begin(), kept_.end());
    if (kept_.size() > k_) kept_.resize(k_);
    return std::move(kept_);
  }

 private:
  // Leaves the k best: all below the bound, and the first at it.
  void compact() {
    size_t at_bound = k_ - (within_ - histogram_[bound_]);
    histogram_[bound_] = static_cast<uint32_t>(at_bound);
    within_ = k_;
    size_t kept = 0;
    for (const uint64_t entry : kept_) {
      const uint32_t distance = static_cast<uint32_t>(entry >> 32);
      if (distance < bound_ || (distance == bound_ && at_bound != 0)) {
        at_bound -= distance == bound_;
        kept_[kept++] = entry;
      }
    }
    kept_.resize(kept);
  }

  size_t k_;
  uint32_t bound_;                   // the k-th distance so far, or one above any
  size_t within_ = 0;                // kept entries at a distance <= bound
  std::vector<uint32_t> histogram_;  // kept entries by distance
  std::vector<uint64_t> kept_;
};

// The k most valuable ads; equal values: the lower ordinal.
class MostValuable {
 public:
  explicit MostValuable(size_t k) : k_(k) {}

  void offer(float value, uint32_t ad) {
    const uint64_t key = key_of(value, ad);
    if (key <= bound_) return;
    kept_.push_back(key);
    if (kept_.size() < 2 * k_ + 64) return;
    std::nth_element(kept_.begin(), kept_.begin() + static_cast<ptrdiff_t>(k_ - 1), kept_.end(), std::greater<>());
    kept_.resize(k_);
    bound_ = kept_[k_ - 1];
  }

  // At most k keys, best first.
  const std::vector<uint64_t>& sorted() {
    std::sort(kept_.begin(), kept_.end(), std::greater<>());
    if (kept_.size() > k_) kept_.resize(k_);
    return kept_;
  }

  static uint32_t ad_of(uint64_t key) { return ~static_cast<uint32_t>(key); }
  // Orders as (value descending, ad ascending) do when compared downwards.
  static uint64_t key_of(float value, uint32_t ad) {
    const uint32_t bits = std::bit_cast<uint32_t>(value + 0.0f);  // -0 is 0
    return static_cast<uint64_t>(bits >> 31 ? ~bits : bits | 0x80000000u) << 32 | static_cast<uint32_t>(~ad);
  }

 private:
  size_t k_;
  uint64_t bound_ = 0;  // the k-th key of the last selection; keys are above 0
  std::vector<uint64_t> kept_;
};

}  // namespace vitrine
