// An index of postings for one model's towers: exact matching of many users (docs/native.md).
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <vector>

#include "match.hpp"

namespace vitrine {

// What users bring: towers and crowds, ascending within a user.
struct MatchUsers {
  const float* bias;
  const float* vecs;  // [count][d]
  const int64_t* indptr;
  const uint32_t* crowds;
  size_t count;
};

// What keeps an ad out of a list. Null: nothing of the kind.
struct MatchRules {
  const uint8_t* masks = nullptr;           // [ads], 0: not to be matched
  const int64_t* exclude_indptr = nullptr;  // [users + 1]
  const uint32_t* exclude_ads = nullptr;    // ascending within a user
  const uint32_t* advertisers = nullptr;    // [ads], for the cap
  size_t advertiser_cap = 0;                // ads of one advertiser in a list; 0: any number

  bool out(size_t user, uint32_t ad) const {
    if (masks != nullptr && masks[ad] == 0) return true;
    if (exclude_indptr == nullptr) return false;
    return std::binary_search(exclude_ads + exclude_indptr[user], exclude_ads + exclude_indptr[user + 1], ad);
  }
};

// counts and counters: [users]; the others [users][k], zero beyond a user's count.
struct IndexOutput {
  int32_t* counts;
  uint32_t* ads;
  float* values;
  uint32_t* crowds;
  float* bids;
  uint64_t *eligible, *read, *scored;
};

// A pair that stands in a result.
struct Found {
  uint32_t ad;
  float value;
  uint32_t crowd;
  float bid;
};

// Postings and the towers that they are matched by; all arrays outlive the index.
class MatchIndex {
 public:
  MatchIndex(const int64_t* crowd_indptr, const uint32_t* posting_ads, const float* posting_bids, const float* ad_bias,
             const float* ad_vecs, size_t crowds, size_t ads, size_t d)
      : crowd_indptr_(crowd_indptr), posting_ads_(posting_ads), posting_bids_(posting_bids), ad_bias_(ad_bias),
        ad_vecs_(ad_vecs), crowds_(crowds), ads_(ads), d_(d) {}

  size_t ads() const { return ads_; }
  size_t crowds() const { return crowds_; }
  size_t d() const { return d_; }

  void match(const Kernels& kernels, const MatchUsers& users, size_t k, const MatchRules& rules, size_t threads,
             const IndexOutput& out) const {
    each_user(users, threads, [&](size_t user, MatchScratch& scratch, std::vector<uint64_t>& keys,
                                  std::vector<uint32_t>& taken) {
      out.eligible[user] = out.read[user] = read(users, user, scratch);
      score(kernels, users, user, rules, scratch, keys);
      out.scored[user] = scratch.ads.size();
      std::sort(keys.begin(), keys.end(), std::greater<>());
      taken.clear();
      size_t row = user * k;
      for (const uint64_t key : keys) {
        if (row == (user + 1) * k) break;
        const Found found = found_of(key, scratch);
        if (rules.advertiser_cap != 0) {
          const uint32_t advertiser = rules.advertisers[found.ad];
          if (static_cast<size_t>(std::count(taken.begin(), taken.end(), advertiser)) >= rules.advertiser_cap) continue;
          taken.push_back(advertiser);
        }
        out.ads[row] = found.ad;
        out.values[row] = found.value;
        out.crowds[row] = found.crowd;
        out.bids[row] = found.bid;
        ++row;
      }
      out.counts[user] = static_cast<int32_t>(row - user * k);
    });
  }

  // Each user's ads whose (value, ad) is at or above the floor, best first.
  void above(const Kernels& kernels, const MatchUsers& users, const float* floor_values, const uint32_t* floor_ads,
             const MatchRules& rules, size_t threads, std::vector<std::vector<Found>>& out) const {
    out.resize(users.count);
    each_user(users, threads, [&](size_t user, MatchScratch& scratch, std::vector<uint64_t>& keys,
                                  std::vector<uint32_t>&) {
      read(users, user, scratch);
      score(kernels, users, user, rules, scratch, keys);
      std::sort(keys.begin(), keys.end(), std::greater<>());
      const uint64_t floor = MostValuable::key_of(floor_values[user], floor_ads[user]);
      for (const uint64_t key : keys) {
        if (key >= floor) out[user].push_back(found_of(key, scratch));
      }
    });
  }

  // The best shared bid of (user, ad) pairs and its value; -1 where no crowd is shared.
  void best(const Kernels& kernels, const MatchUsers& users, const uint32_t* pair_users, const uint32_t* pair_ads,
            size_t count, size_t, float* values, uint32_t* crowds, float* bids) const {
    std::vector<float> vec((d_ + 7) / 8 * 8, 0.0f);
    for (size_t i = 0; i < count; ++i) {
      const size_t user = pair_users[i];
      const uint32_t ad = pair_ads[i];
      values[i] = -1.0f;
      bool shared = false;
      for (int64_t c = users.indptr[user]; c < users.indptr[user + 1]; ++c) {
        const uint32_t crowd = users.crowds[c];
        const uint32_t* stop = posting_ads_ + crowd_indptr_[crowd + size_t{1}];
        const uint32_t* at = std::lower_bound(posting_ads_ + crowd_indptr_[crowd], stop, ad);
        if (at == stop || *at != ad) continue;
        const float bid = posting_bids_[at - posting_ads_];
        if (!shared || bid > bids[i]) {
          bids[i] = bid;
          crowds[i] = crowd;
          shared = true;
        }
      }
      if (!shared) continue;
      if (d_ != 0) std::memcpy(vec.data(), users.vecs + user * d_, d_ * sizeof(float));
      float pctr;
      kernels.pctr(users.bias[user], vec.data(), &ad, 1, ad_bias_, ad_vecs_, ads_, d_, &pctr);
      values[i] = bids[i] * pctr;
    }
  }

 private:
  uint64_t read(const MatchUsers& users, size_t user, MatchScratch& scratch) const {
    scratch.begin(ads_);
    uint64_t read = 0;
    for (int64_t c = users.indptr[user]; c < users.indptr[user + 1]; ++c) {
      const uint32_t crowd = users.crowds[c];
      for (int64_t p = crowd_indptr_[crowd]; p < crowd_indptr_[crowd + size_t{1}]; ++p, ++read) {
        const uint32_t ad = posting_ads_[p];
        MatchScratch::Slot& slot = scratch.slots[ad];
        if (slot.stamp != scratch.stamp) {
          slot = {scratch.stamp, static_cast<uint32_t>(scratch.ads.size())};
          scratch.ads.push_back(ad);
          scratch.bids.push_back(posting_bids_[p]);
          scratch.crowds.push_back(crowd);
        } else if (posting_bids_[p] > scratch.bids[slot.at]) {
          scratch.bids[slot.at] = posting_bids_[p];
          scratch.crowds[slot.at] = crowd;
        }
      }
    }
    return read;
  }

  void score(const Kernels& kernels, const MatchUsers& users, size_t user, const MatchRules& rules,
             MatchScratch& scratch, std::vector<uint64_t>& keys) const {
    scratch.user.assign((d_ + 7) / 8 * 8, 0.0f);
    if (d_ != 0) std::memcpy(scratch.user.data(), users.vecs + user * d_, d_ * sizeof(float));
    scratch.pctrs.resize(scratch.ads.size());
    kernels.pctr(users.bias[user], scratch.user.data(), scratch.ads.data(), scratch.ads.size(), ad_bias_, ad_vecs_,
                 ads_, d_, scratch.pctrs.data());
    keys.clear();
    for (size_t i = 0; i < scratch.ads.size(); ++i) {
      if (!rules.out(user, scratch.ads[i])) {
        keys.push_back(MostValuable::key_of(scratch.bids[i] * scratch.pctrs[i], scratch.ads[i]));
      }
    }
  }

  static Found found_of(uint64_t key, const MatchScratch& scratch) {
    const uint32_t ad = MostValuable::ad_of(key), at = scratch.slots[ad].at;
    return {ad, scratch.bids[at] * scratch.pctrs[at], scratch.crowds[at], scratch.bids[at]};
  }

  template <class Work>
  void each_user(const MatchUsers& users, size_t threads, const Work& work) const {
    std::atomic<size_t> next{0};
    on_threads(std::clamp<size_t>(users.count, 1, threads), [&](size_t) {
      MatchScratch scratch;
      std::vector<uint64_t> keys;
      std::vector<uint32_t> taken;
      for (size_t user; (user = next.fetch_add(1, std::memory_order_relaxed)) < users.count;) {
        work(user, scratch, keys, taken);
      }
    });
  }

  const int64_t* crowd_indptr_;
  const uint32_t* posting_ads_;
  const float* posting_bids_;
  const float* ad_bias_;
  const float* ad_vecs_;
  size_t crowds_, ads_, d_;
};

}  // namespace vitrine
