// Exact matching by brute force: every eligible (crowd, ad) pair of a user is read, every ad scored once.
//
// An ad's value to a user is the greatest bid that their shared crowds have on it times its pCTR (docs/native.md). This
// is the oracle of every cleverer path: equal bids go to the lower crowd, equal values to the lower ad, and the bits
// depend on neither the instruction set nor the number of threads, which take users from one counter.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "dispatch.hpp"
#include "threads.hpp"
#include "topk.hpp"

namespace vitrine {

struct MatchInput {
  const float* user_bias;
  const float* user_vecs;  // [users][d]
  const int64_t* user_indptr;
  const uint32_t* user_crowds;  // ascending within a user
  const int64_t* crowd_indptr;
  const uint32_t* posting_ads;
  const float* posting_bids;
  const float* ad_bias;
  const float* ad_vecs;  // [ads][d]
  size_t users;
  size_t ads;
  size_t d;
};

// counts, eligible: [users]; the others [users][k], zero beyond a user's count.
struct MatchOutput {
  int32_t* counts;
  uint32_t* ads;
  float* values;
  uint32_t* crowds;
  float* bids;
  uint64_t* eligible;
};

// What one thread needs to know of every ad. Kept between calls: clearing it would cost more than a small match.
struct MatchScratch {
  struct Slot {
    uint32_t stamp;  // the match that saw this ad last
    uint32_t at;     // where its best bid stands in the arrays below
  };
  std::vector<Slot> slots;  // [ads]
  uint32_t stamp = 0;
  std::vector<uint32_t> ads, crowds;  // [touched]
  std::vector<float> bids, pctrs;     // [touched]
  std::vector<float> user;            // [d], padded with zeros to a multiple of 8

  void begin(size_t ad_count) {
    if (slots.size() < ad_count) slots.resize(ad_count, Slot{0, 0});
    if (++stamp == 0) {  // after 2^32 matches
      std::fill(slots.begin(), slots.end(), Slot{0, 0});
      stamp = 1;
    }
    ads.clear();
    crowds.clear();
    bids.clear();
  }
};

// Scratches at rest; there are never more than matches ran at the same time.
class MatchScratchPool {
 public:
  std::unique_ptr<MatchScratch> take() {
    const std::lock_guard lock(guard_);
    if (idle_.empty()) return std::make_unique<MatchScratch>();
    std::unique_ptr<MatchScratch> scratch = std::move(idle_.back());
    idle_.pop_back();
    return scratch;
  }
  void give(std::unique_ptr<MatchScratch> scratch) {
    const std::lock_guard lock(guard_);
    idle_.push_back(std::move(scratch));
  }

 private:
  std::mutex guard_;
  std::vector<std::unique_ptr<MatchScratch>> idle_;
};

// A posting that names no ad. Found while reading, since reading all postings first would double a small match.
struct BadPosting {
  int64_t at;
  uint32_t ad;
};

inline void match_user(const Kernels& kernels, const MatchInput& in, size_t user, size_t k, MatchScratch& scratch,
                       const MatchOutput& out) {
  constexpr int64_t ahead = 16;  // postings whose slots are asked for early: ads lie anywhere in memory
  scratch.begin(in.ads);
  uint64_t eligible = 0;
  for (int64_t c = in.user_indptr[user]; c < in.user_indptr[user + 1]; ++c) {
    const uint32_t crowd = in.user_crowds[c];
    const int64_t stop = in.crowd_indptr[crowd + size_t{1}];
    for (int64_t p = in.crowd_indptr[crowd]; p < stop; ++p) {
      const uint32_t ad = in.posting_ads[p];
      const float bid = in.posting_bids[p];
      if (ad >= in.ads) throw BadPosting{p, ad};
      if (p + ahead < stop) __builtin_prefetch(scratch.slots.data() + in.posting_ads[p + ahead], 1);
      MatchScratch::Slot& slot = scratch.slots[ad];
      if (slot.stamp != scratch.stamp) {
        slot = {scratch.stamp, static_cast<uint32_t>(scratch.ads.size())};
        scratch.ads.push_back(ad);
        scratch.bids.push_back(bid);
        scratch.crowds.push_back(crowd);
      } else if (bid > scratch.bids[slot.at]) {
        scratch.bids[slot.at] = bid;
        scratch.crowds[slot.at] = crowd;
      }
      ++eligible;
    }
  }

  const size_t touched = scratch.ads.size();
  scratch.user.assign((in.d + 7) / 8 * 8, 0.0f);
  if (in.d != 0) std::memcpy(scratch.user.data(), in.user_vecs + user * in.d, in.d * sizeof(float));
  scratch.pctrs.resize(touched);
  kernels.pctr(in.user_bias[user], scratch.user.data(), scratch.ads.data(), touched, in.ad_bias, in.ad_vecs, in.ads,
               in.d, scratch.pctrs.data());
  MostValuable best(k);
  for (size_t i = 0; i < touched; ++i) best.offer(scratch.bids[i] * scratch.pctrs[i], scratch.ads[i]);

  size_t row = user * k;
  for (const uint64_t key : best.sorted()) {
    const uint32_t ad = MostValuable::ad_of(key);
    const uint32_t at = scratch.slots[ad].at;
    out.ads[row] = ad;
    out.values[row] = scratch.bids[at] * scratch.pctrs[at];
    out.crowds[row] = scratch.crowds[at];
    out.bids[row] = scratch.bids[at];
    ++row;
  }
  out.counts[user] = static_cast<int32_t>(row - user * k);
  out.eligible[user] = eligible;
}

inline void match_topk(const Kernels& kernels, const MatchInput& in, size_t k, size_t threads, const MatchOutput& out) {
  static MatchScratchPool pool;
  std::atomic<size_t> next{0};
  on_threads(std::clamp<size_t>(in.users, 1, threads), [&](size_t) {
    std::unique_ptr<MatchScratch> scratch = pool.take();
    for (size_t user; (user = next.fetch_add(1, std::memory_order_relaxed)) < in.users;) {
      match_user(kernels, in, user, k, *scratch, out);
    }
    pool.give(std::move(scratch));
  });
}

}  // namespace vitrine
