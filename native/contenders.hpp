// The most valuable ads met so far, an ad once: by its greatest bid, of equal bids the lower crowd's.
//
// An ad is added when its (value, ad) can be among the k best; now and then those that fell behind are dropped and the
// floor rises. Without a k, all at or above a fixed floor are kept.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "topk.hpp"

namespace vitrine {

struct Contender {
  uint32_t ad, crowd;
  float bid, pctr, value;
};

// At most `most` ads of one advertiser; 0: any number. advertisers: [ads].
struct AdvertiserCap {
  const uint32_t* advertisers = nullptr;
  size_t most = 0;
};

class Contenders {
 public:
  // The k best.
  void begin(size_t k) {
    k_ = k;
    limit_ = k + std::max<size_t>(k / 2, 64);
    start(0, -std::numeric_limits<float>::infinity(), 2 * limit_);
  }

  // All at or above (value, ad).
  void begin_above(float value, uint32_t ad) {
    k_ = limit_ = SIZE_MAX;
    start(MostValuable::key_of(value, ad) - 1, floor_of(value), 64);
  }

  // Below this logarithm of a value nothing can enter.
  float floor() const { return floor_; }

  bool wants(float value, uint32_t ad) const { return MostValuable::key_of(value, ad) > bound_; }

  // Whether the ad is held; if so, by the better of its bid and this one.
  bool raise(uint32_t ad, uint32_t crowd, float bid) {
    const uint32_t slot = slots_[find(ad)];
    if (slot == 0) return false;
    Contender& held = held_[slot - 1];
    if (bid > held.bid || (bid == held.bid && crowd < held.crowd)) {
      held.bid = bid;
      held.crowd = crowd;
      held.value = bid * held.pctr;
    }
    return true;
  }

  // An ad that is not held.
  void add(const Contender& ad, const AdvertiserCap& cap) {
    held_.push_back(ad);
    if (held_.size() * 2 > slots_.size()) {
      index(slots_.size() * 2);
    } else {
      slots_[find(ad.ad)] = static_cast<uint32_t>(held_.size());
    }
    if (held_.size() == limit_) compact(cap);
  }

  // Best first.
  const std::vector<Contender>& ranked(const AdvertiserCap& cap) {
    rank(cap);
    return held_;
  }

 private:
  // The logarithm of a value, less what bounds may be wrong by; none where a value's last bits are lost.
  static float floor_of(float value) {
    return value > 1e-37f ? std::log(value) - 1e-4f : -std::numeric_limits<float>::infinity();
  }

  void start(uint64_t bound, float floor, size_t slots) {
    bound_ = bound;
    floor_ = floor;
    held_.clear();
    index(std::max(slots_.size(), std::bit_ceil(slots)));
  }

  // Where an ad's slot is, or would be. Slots hold a place in held_ and one, 0 where there is none.
  size_t find(uint32_t ad) const {
    const size_t mask = slots_.size() - 1;
    size_t at = (ad * uint32_t{2654435769}) >> shift_;
    while (slots_[at] != 0 && held_[slots_[at] - 1].ad != ad) at = (at + 1) & mask;
    return at;
  }

  void index(size_t slots) {
    slots_.assign(slots, 0);
    shift_ = 32 - static_cast<unsigned>(std::countr_zero(slots));
    for (size_t i = 0; i < held_.size(); ++i) slots_[find(held_[i].ad)] = static_cast<uint32_t>(i + 1);
  }

  // Leaves the k best and raises the floor to the last of them.
  void compact(const AdvertiserCap& cap) {
    if (cap.most != 0) {
      rank(cap);
    } else {
      const auto better = [](const Contender& a, const Contender& b) {
        return MostValuable::key_of(a.value, a.ad) > MostValuable::key_of(b.value, b.ad);
      };
      std::nth_element(held_.begin(), held_.begin() + static_cast<ptrdiff_t>(k_ - 1), held_.end(), better);
      held_.resize(k_);
    }
    if (held_.size() == k_) {
      bound_ = MostValuable::key_of(held_[k_ - 1].value, held_[k_ - 1].ad);
      floor_ = floor_of(held_[k_ - 1].value);
    }
    index(slots_.size());
  }

  // Sorts, and takes out what the cap or k leaves out.
  void rank(const AdvertiserCap& cap) {
    std::sort(held_.begin(), held_.end(), [](const Contender& a, const Contender& b) {
      return MostValuable::key_of(a.value, a.ad) > MostValuable::key_of(b.value, b.ad);
    });
    if (cap.most != 0) {
      taken_.clear();
      size_t kept = 0;
      for (const Contender& ad : held_) {
        if (kept == k_) break;
        const uint32_t advertiser = cap.advertisers[ad.ad];
        if (static_cast<size_t>(std::count(taken_.begin(), taken_.end(), advertiser)) >= cap.most) continue;
        taken_.push_back(advertiser);
        held_[kept++] = ad;
      }
      held_.resize(kept);
    }
    if (held_.size() > k_) held_.resize(k_);
  }

  size_t k_ = 0, limit_ = 0;
  uint64_t bound_ = 0;  // keys above it may enter
  float floor_ = 0;
  unsigned shift_ = 0;
  std::vector<Contender> held_;
  std::vector<uint32_t> slots_;
  std::vector<uint32_t> taken_;
};

}  // namespace vitrine
