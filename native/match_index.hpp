// Exact matching of many users by an index of postings (docs/native.md): blocks in the order of their upper bounds until
// no bound can enter, rows by 7-bit towers, and what may still enter exactly. Same bits as match.hpp, the oracle.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "contenders.hpp"
#include "dispatch.hpp"
#include "postings.hpp"
#include "threads.hpp"

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
  AdvertiserCap cap;

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

// The postings turned round, if there are any: the crowds and bids of each ad.
struct AdPostings {
  const int64_t* indptr = nullptr;  // [ads + 1]
  const uint32_t* crowds = nullptr;  // ascending within an ad
  const float* bids = nullptr;
};

// One user's match: where its bounds stand, what waits to be scored, and memory that stays between users.
class Match {
 public:
  Match(const Kernels& kernels, const Postings& postings) : kernels_(kernels), postings_(postings) {
    weights_.resize(postings.quads());
    vec_.resize((postings.source().d + 7) / 8 * 8);
  }

  uint64_t eligible = 0, read = 0, scored = 0;
  Contenders contenders;

  // Takes the user's tower and bounds all blocks of its crowds.
  void begin(const MatchUsers& users, size_t user) {
    eligible = read = scored = 0;
    waiting_.clear();
    take_tower(users.bias[user], users.vecs + user * postings_.source().d);
    const uint32_t* crowds = users.crowds + users.indptr[user];
    const auto count = static_cast<size_t>(users.indptr[user + 1] - users.indptr[user]);
    for (size_t i = 0; i < count; ++i) __builtin_prefetch(&postings_.crowd(crowds[i]));
    segments_.clear();
    size_t lanes = 0;
    for (size_t i = 0; i < count; ++i) {
      const Postings::Crowd &own = postings_.crowd(crowds[i]), &next = postings_.crowd(crowds[i] + size_t{1});
      if (own.block == next.block) continue;
      const float* tiles = postings_.tiles() + own.block / bound_tile * bound_tile * bound_fields;
      __builtin_prefetch(tiles);
      __builtin_prefetch(tiles + 16);
      segments_.push_back({crowds[i], own.block, next.block, next.posting - own.posting, lanes});
      eligible += next.posting - own.posting;
      lanes += ((next.block + bound_tile - 1) / bound_tile - own.block / bound_tile) * bound_tile;
    }
    if (bounds_.size() < lanes) {
      bounds_.resize(lanes);
      picked_.resize(lanes);
    }
    lanes_ = lanes;
    for (const Segment& segment : segments_) {
      kernels_.block_bounds(postings_.tiles(), segment.block, segment.stop, bound_user_, bounds_.data() + segment.lane);
    }
  }

  // Reads blocks best first, those with bounds near the best at a time, until none can hold what `contenders` lacks.
  void run(size_t user, const MatchRules& rules) {
    constexpr float width = 0.25f;
    for (float ceiling = std::numeric_limits<float>::infinity();;) {
      const float peak = kernels_.peak_below(bounds_.data(), lanes_, ceiling);
      if (peak == least_bound || peak < contenders.floor()) break;
      const float floor = std::max(contenders.floor(), peak - width);
      const size_t count = kernels_.select_bounds(bounds_.data(), lanes_, floor, ceiling, picked_.data());
      read_blocks(count, user, rules);
      ceiling = floor;
    }
  }

  // Scores chosen ads exactly.
  const float* score(const uint32_t* ads, size_t count) {
    if (pctrs_.size() < count) pctrs_.resize(count);
    const PostingSource& source = postings_.source();
    kernels_.pctr(bias_, vec_.data(), ads, count, source.ad_bias, source.ad_vecs, source.ad_count, source.d,
                  pctrs_.data());
    scored += count;
    return pctrs_.data();
  }

  void take_tower(float bias, const float* vec) {
    const size_t d = postings_.source().d;
    bias_ = bias;
    if (d != 0) std::memcpy(vec_.data(), vec, d * sizeof(float));
    double square = 0, most = 0;
    for (size_t i = 0; i < d; ++i) {
      square += static_cast<double>(vec[i]) * vec[i];
      most = std::max(most, std::abs(static_cast<double>(vec[i]) * postings_.steps()[i]));
    }
    const double norm = std::sqrt(square);
    // What float32 may add to the exact logit's absolute error, a unit of its terms; generously.
    rounding_ = static_cast<float>(1e-6 + 1.2e-7 * static_cast<double>(d / 8 + 1));
    slack_ = rounding_ * (std::abs(bias) + 100.0f);
    bound_user_ = {bias + slack_, static_cast<float>(norm * (1 + 1e-6) * (1 + rounding_))};
    norm_ = static_cast<float>(norm * (1 + 1e-6));
    std::fill(weights_.begin(), weights_.end(), 0);
    const bool finite = std::isfinite(bound_user_.norm) && std::isfinite(most);
    const double scale = finite && most > 0 ? most / 127 : 1.0;
    double rest = 0;
    int32_t offset = 0;
    for (size_t i = 0; i < d && finite; ++i) {
      const double weight = static_cast<double>(vec[i]) * postings_.steps()[i];
      const double level = std::clamp(std::nearbyint(weight / scale), -127.0, 127.0);
      rest += (weight - level * scale) * (weight - level * scale);
      const auto byte = static_cast<int8_t>(level);
      std::memcpy(reinterpret_cast<char*>(weights_.data()) + i, &byte, 1);
      offset += byte * Postings::middle;
    }
    rest_ = finite ? static_cast<float>(std::sqrt(rest) * (1 + 1e-6)) : std::numeric_limits<float>::infinity();
    screen_user_ = {weights_.data(), postings_.quads(), offset, static_cast<float>(scale)};
  }

 private:
  // A crowd's blocks [block, stop), whose bounds begin in the lane of their first tile.
  struct Segment {
    uint32_t crowd, block, stop;
    uint64_t size;
    size_t lane;
  };
  struct Waiting {
    uint64_t row;
    uint32_t crowd;
  };
  static constexpr size_t batch = 64;

  void read_blocks(size_t count, size_t user, const MatchRules& rules) {
    size_t at = 0;
    const auto block_of = [&](size_t lane) {
      while (at + 1 < segments_.size() && segments_[at + 1].lane <= lane) ++at;
      const Segment& segment = segments_[at];
      return segment.block / bound_tile * bound_tile + (lane - segment.lane);
    };
    for (size_t i = 0; i < count; ++i) {
      const size_t lane = picked_[i], block = block_of(lane);
      if (bounds_[lane] < contenders.floor()) continue;
      const Segment& segment = segments_[at];
      const size_t first = (block - segment.block) * Postings::block_rows;
      const size_t rows = std::min<uint64_t>(Postings::block_rows, segment.size - first);
      const size_t row = postings_.crowd(segment.crowd).eighth * size_t{8} + first;
      const Postings::Error& error = postings_.error(block);
      const float bias = postings_.bound(block, 1), reach = norm_ * postings_.bound(block, 3);
      const float wrong = norm_ * error.rest + rest_ * error.levels + slack_ + rounding_ * reach;
      uint64_t passed = kernels_.screen_rows(
          {postings_.codes(row), postings_.marks(row), rows, postings_.bound(block, 0), bias_ + bias + wrong},
          screen_user_, contenders.floor());
      read += rows;
      for (; passed; passed &= passed - 1) {
        const size_t own = row + static_cast<size_t>(std::countr_zero(passed));
        __builtin_prefetch(postings_.places(own));
        waiting_.push_back({own, segment.crowd});
      }
      if (waiting_.size() >= batch) settle(user, rules);
    }
    settle(user, rules);
  }

  // Scores what waits: three rounds over all of it, each asking for the memory of the next.
  void settle(size_t user, const MatchRules& rules) {
    const PostingSource& source = postings_.source();
    const size_t count = waiting_.size();
    if (places_.size() < count) {
      places_.resize(count);
      pairs_.resize(count);
      ads_.resize(count);
    }
    for (size_t i = 0; i < count; ++i) {
      const Postings::Crowd& own = postings_.crowd(waiting_[i].crowd);
      places_[i] = own.posting + *postings_.places(waiting_[i].row);
      __builtin_prefetch(source.ads + places_[i]);
      __builtin_prefetch(source.bids + places_[i]);
    }
    for (size_t i = 0; i < count; ++i) {
      const uint32_t ad = source.ads[places_[i]];
      ads_[i] = ad;
      __builtin_prefetch(source.ad_bias + ad);
      for (size_t at = 0; at < source.d; at += 16) __builtin_prefetch(source.ad_vecs + ad * source.d + at);
      if (rules.masks != nullptr) __builtin_prefetch(rules.masks + ad);
    }
    size_t fresh = 0;
    for (size_t i = 0; i < count; ++i) {
      const uint32_t ad = ads_[i], crowd = waiting_[i].crowd;
      const float bid = source.bids[places_[i]];
      if (contenders.raise(ad, crowd, bid)) continue;
      pairs_[fresh] = {ad, crowd, bid};
      ads_[fresh++] = ad;
    }
    const float* pctrs = score(ads_.data(), fresh);
    for (size_t i = 0; i < fresh; ++i) {
      const Pair& pair = pairs_[i];
      const float value = pair.bid * pctrs[i];
      if (contenders.raise(pair.ad, pair.crowd, pair.bid) || !contenders.wants(value, pair.ad)) continue;
      if (!rules.out(user, pair.ad)) contenders.add({pair.ad, pair.crowd, pair.bid, pctrs[i], value}, rules.cap);
    }
    waiting_.clear();
  }

  struct Pair {
    uint32_t ad, crowd;
    float bid;
  };

  const Kernels& kernels_;
  const Postings& postings_;
  float bias_ = 0, norm_ = 0, slack_ = 0, rounding_ = 0, rest_ = 0;
  std::vector<float> vec_;  // padded with zeros to a multiple of 8
  std::vector<int32_t> weights_;
  BoundUser bound_user_{};
  ScreenUser screen_user_{};
  size_t lanes_ = 0;
  std::vector<Segment> segments_;
  std::vector<float> bounds_;
  std::vector<uint32_t> picked_;
  std::vector<Waiting> waiting_;
  std::vector<uint64_t> places_;
  std::vector<Pair> pairs_;
  std::vector<uint32_t> ads_;
  std::vector<float> pctrs_;
};

// Postings and the towers that they are matched by.
class MatchIndex {
 public:
  MatchIndex(const PostingSource& source, const AdPostings& ad_postings, size_t threads)
      : postings_(source, threads), ad_postings_(ad_postings) {}

  size_t ads() const { return postings_.source().ad_count; }
  size_t crowds() const { return postings_.source().crowd_count; }
  size_t d() const { return postings_.source().d; }
  size_t bytes() const { return postings_.bytes(); }

  void match(const Kernels& kernels, const MatchUsers& users, size_t k, const MatchRules& rules, size_t threads,
             const IndexOutput& out) const {
    each_user(kernels, users.count, threads, [&](size_t user, Match& match) {
      match.contenders.begin(k);
      match.begin(users, user);
      match.run(user, rules);
      size_t row = user * k;
      for (const Contender& ad : match.contenders.ranked(rules.cap)) {
        out.ads[row] = ad.ad;
        out.values[row] = ad.value;
        out.crowds[row] = ad.crowd;
        out.bids[row] = ad.bid;
        ++row;
      }
      out.counts[user] = static_cast<int32_t>(row - user * k);
      out.eligible[user] = match.eligible;
      out.read[user] = match.read;
      out.scored[user] = match.scored;
    });
  }

  // Each user's ads whose (value, ad) is at or above the floor, best first.
  void above(const Kernels& kernels, const MatchUsers& users, const float* floor_values, const uint32_t* floor_ads,
             const MatchRules& rules, size_t threads, std::vector<std::vector<Contender>>& out) const {
    out.resize(users.count);
    each_user(kernels, users.count, threads, [&](size_t user, Match& match) {
      match.contenders.begin_above(floor_values[user], floor_ads[user]);
      match.begin(users, user);
      match.run(user, rules);
      const auto& found = match.contenders.ranked({});
      out[user].assign(found.begin(), found.end());
    });
  }

  // The best shared bid of (user, ad) pairs and its value; -1 where no crowd is shared.
  void best(const Kernels& kernels, const MatchUsers& users, const uint32_t* pair_users, const uint32_t* pair_ads,
            size_t count, size_t threads, float* values, uint32_t* crowds, float* bids) const {
    constexpr size_t turn = 64;
    each_user(kernels, (count + turn - 1) / turn, threads, [&](size_t part, Match& match) {
      const size_t stop = std::min(count, (part + 1) * turn);
      for (size_t i = part * turn; i < stop;) {
        const size_t user = pair_users[i], first = i;
        for (; i < stop && pair_users[i] == user; ++i) {
          values[i] = -1.0f;
          if (i + 4 < stop && ad_postings_.indptr != nullptr) {
            const int64_t soon = ad_postings_.indptr[pair_ads[i + 4]];
            __builtin_prefetch(ad_postings_.crowds + soon);
          }
          const uint32_t* own = users.crowds + users.indptr[user];
          const auto own_count = static_cast<size_t>(users.indptr[user + 1] - users.indptr[user]);
          if (shared_bid(own, own_count, pair_ads[i], crowds[i], bids[i])) values[i] = 1.0f;
        }
        match.take_tower(users.bias[user], users.vecs + user * d());
        const float* pctrs = match.score(pair_ads + first, i - first);
        for (size_t j = first; j < i; ++j) {
          if (values[j] > 0) values[j] = bids[j] * pctrs[j - first];
        }
      }
    });
  }

 private:
  // The greatest bid of an ad on the crowds, of equal ones the lower crowd's; false where there is none.
  bool shared_bid(const uint32_t* own, size_t own_count, uint32_t ad, uint32_t& crowd, float& bid) const {
    bool shared = false;
    const auto offer = [&](uint32_t its_crowd, float its_bid) {
      if (shared && !(its_bid > bid)) return;
      shared = true;
      crowd = its_crowd;
      bid = its_bid;
    };
    if (ad_postings_.indptr != nullptr) {
      const uint32_t* const stop = own + own_count;
      for (int64_t p = ad_postings_.indptr[ad]; p < ad_postings_.indptr[ad + size_t{1}]; ++p) {
        const uint32_t its_crowd = ad_postings_.crowds[p];
        own = std::lower_bound(own, stop, its_crowd);
        if (own == stop) break;
        if (*own == its_crowd) offer(its_crowd, ad_postings_.bids[p]);
      }
      return shared;
    }
    const PostingSource& source = postings_.source();
    for (size_t c = 0; c < own_count; ++c) {
      const uint32_t* stop = source.ads + source.crowd_indptr[own[c] + size_t{1}];
      const uint32_t* at = std::lower_bound(source.ads + source.crowd_indptr[own[c]], stop, ad);
      if (at != stop && *at == ad) offer(own[c], source.bids[at - source.ads]);
    }
    return shared;
  }

  template <class Work>
  void each_user(const Kernels& kernels, size_t count, size_t threads, const Work& work) const {
    std::atomic<size_t> next{0};
    on_threads(std::clamp<size_t>(count, 1, threads), [&](size_t) {
      std::unique_ptr<Match> match = take(kernels);
      for (size_t user; (user = next.fetch_add(1, std::memory_order_relaxed)) < count;) work(user, *match);
      give(kernels, std::move(match));
    });
  }

  // Memory at rest; there is never more than matches ran at the same time.
  std::unique_ptr<Match> take(const Kernels& kernels) const {
    const std::lock_guard lock(guard_);
    for (auto at = idle_.begin(); at != idle_.end(); ++at) {
      if (at->first != &kernels) continue;
      std::unique_ptr<Match> match = std::move(at->second);
      idle_.erase(at);
      return match;
    }
    return std::make_unique<Match>(kernels, postings_);
  }
  void give(const Kernels& kernels, std::unique_ptr<Match> match) const {
    const std::lock_guard lock(guard_);
    idle_.emplace_back(&kernels, std::move(match));
  }

  Postings postings_;
  AdPostings ad_postings_;
  mutable std::mutex guard_;
  mutable std::vector<std::pair<const Kernels*, std::unique_ptr<Match>>> idle_;
};

}  // namespace vitrine
