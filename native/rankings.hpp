// Rankings brought up to date: entries that were tested anew leave their places, what is at or above the floor enters.
//
// A ranking holds all eligible ads at or above its floor, best first (value descending, ad ascending), at most K; with
// an advertiser cap, of one advertiser the best ones alone. docs/matching.md has why each step keeps it so.
#pragma once

#include <algorithm>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace vitrine {

// Lists are [users][groups]; a user's tests stand for all the user's lists, ads ascending.
struct RankingsInput {
  const int64_t* list_indptr;  // [users * groups + 1]
  const uint64_t* ads;
  const float* values;
  const uint64_t* crowds;
  const float* floor_values;  // [users * groups]
  const uint64_t* floor_ads;
  const uint8_t* complete;
  const int64_t* test_indptr;  // [users + 1]
  const uint64_t* test_ads;
  const float* test_values;  // below 0: not eligible
  const uint64_t* test_crowds;
  const uint8_t* test_groups;          // bit g: eligible in group g
  const uint64_t* advertisers;         // of entries and of tests; read where there is a cap
  const uint64_t* test_advertisers;
  const uint8_t* test_redefined;       // the ad may have been another advertiser's when the list was made
  size_t users, groups, keep, cap;
};

struct RankingsOutput {
  std::vector<int64_t> indptr{0};
  std::vector<uint64_t> ads, crowds, floor_ads;
  std::vector<float> values, floor_values;
  std::vector<uint8_t> complete, changed;
};

class RankingsUpdate {
 public:
  explicit RankingsUpdate(const RankingsInput& in) : in_(in) {}

  RankingsOutput run() {
    for (size_t user = 0; user < in_.users; ++user) {
      for (size_t group = 0; group < in_.groups; ++group) list(user, group);
    }
    return std::move(out_);
  }

 private:
  struct Entry {
    float value;
    uint64_t ad, crowd, advertiser;
  };
  struct Floor {
    float value;
    uint64_t ad;
    bool complete;  // there is none
  };

  static bool before(float value, uint64_t ad, float than, uint64_t other) {
    return value != than ? value > than : ad < other;
  }
  static bool within(float value, uint64_t ad, const Floor& floor) {
    return floor.complete || !before(floor.value, floor.ad, value, ad);
  }
  static void raise(Floor& floor, float value, uint64_t ad) {
    if (floor.complete || before(value, ad, floor.value, floor.ad)) floor = {value, ad, false};
  }

  void list(size_t user, size_t group) {
    const size_t at = user * in_.groups + group;
    const int64_t begin = in_.list_indptr[at], end = in_.list_indptr[at + 1];
    const uint64_t* tests = in_.test_ads + in_.test_indptr[user];
    const size_t count = static_cast<size_t>(in_.test_indptr[user + 1] - in_.test_indptr[user]);
    const Floor held{in_.floor_values[at], in_.floor_ads[at], in_.complete[at] != 0};
    Floor floor = held;
    stay_.clear();
    stays_.assign(count, 0);
    if (in_.cap) count_advertisers(begin, end);
    for (int64_t e = begin; e < end; ++e) {
      const uint64_t ad = in_.ads[e];
      const uint64_t* found = std::lower_bound(tests, tests + count, ad);
      if (found == tests + count || *found != ad) {
        stay_.push_back({in_.values[e], ad, in_.crowds[e], advertiser(in_.advertisers, e)});
        continue;
      }
      const size_t test = static_cast<size_t>(found - tests);
      const int64_t t = in_.test_indptr[user] + static_cast<int64_t>(test);
      const bool eligible = is_eligible(t, group);
      if (in_.cap) raise_for(floor, e, t, eligible);
      if (eligible && in_.test_values[t] == in_.values[e] && in_.test_crowds[t] == in_.crowds[e]) {
        stay_.push_back({in_.values[e], ad, in_.crowds[e], advertiser(in_.test_advertisers, t)});
        stays_[test] = 1;
      }
    }
    enter_.clear();
    for (size_t test = 0; test < count; ++test) {
      const int64_t t = in_.test_indptr[user] + static_cast<int64_t>(test);
      if (stays_[test] || !is_eligible(t, group) || !within(in_.test_values[t], tests[test], floor)) continue;
      enter_.push_back(
          {in_.test_values[t], tests[test], in_.test_crowds[t], advertiser(in_.test_advertisers, t)});
    }
    const auto better = [](const Entry& a, const Entry& b) { return before(a.value, a.ad, b.value, b.ad); };
    std::sort(enter_.begin(), enter_.end(), better);
    put(floor, better);
    const size_t first = static_cast<size_t>(out_.indptr[out_.indptr.size() - 2]);
    const size_t size = out_.ads.size() - first, old = static_cast<size_t>(end - begin);
    const bool same = size == old && std::equal(in_.ads + begin, in_.ads + end, out_.ads.begin() + first) &&
                      std::equal(in_.values + begin, in_.values + end, out_.values.begin() + first) &&
                      std::equal(in_.crowds + begin, in_.crowds + end, out_.crowds.begin() + first) &&
                      out_.complete.back() == held.complete &&
                      (held.complete || (out_.floor_values.back() == held.value && out_.floor_ads.back() == held.ad));
    out_.changed.push_back(!same);
  }

  // The two merged, at most `cap` of an advertiser, cut at the floor and at K.
  template <class Better>
  void put(Floor floor, const Better& better) {
    const size_t first = out_.ads.size();
    if (in_.cap) listed_.clear();
    auto s = stay_.begin();
    auto e = enter_.begin();
    while (s != stay_.end() || e != enter_.end()) {
      const Entry& entry = e == enter_.end() || (s != stay_.end() && better(*s, *e)) ? *s++ : *e++;
      if (!within(entry.value, entry.ad, floor)) break;
      if (in_.cap && listed_[entry.advertiser]++ >= in_.cap) continue;
      if (out_.ads.size() - first == in_.keep) {
        floor = {out_.values.back(), out_.ads.back(), false};
        break;
      }
      out_.ads.push_back(entry.ad);
      out_.values.push_back(entry.value);
      out_.crowds.push_back(entry.crowd);
    }
    out_.indptr.push_back(static_cast<int64_t>(out_.ads.size()));
    out_.complete.push_back(floor.complete);
    out_.floor_values.push_back(floor.complete ? 0.0f : floor.value);
    out_.floor_ads.push_back(floor.complete ? 0 : floor.ad);
  }

  bool is_eligible(int64_t t, size_t group) const {
    return in_.test_values[t] >= 0.0f && (in_.test_groups[t] >> group & 1);
  }
  uint64_t advertiser(const uint64_t* of, int64_t i) const { return in_.cap ? of[i] : 0; }

  void count_advertisers(int64_t begin, int64_t end) {
    listed_.clear();
    lowest_.clear();
    for (int64_t e = begin; e < end; ++e) {
      ++listed_[in_.advertisers[e]];
      lowest_[in_.advertisers[e]] = e;
    }
  }
  // Ads hidden behind a full advertiser lie below its last entry: where one of its entries leaves or falls, they may
  // be due. Of an ad that may have been someone else's, all that is known is that they lie below the ad itself.
  void raise_for(Floor& floor, int64_t e, int64_t t, bool eligible) {
    if (in_.test_redefined[t]) {
      raise(floor, in_.values[e], in_.ads[e]);
    } else if (listed_[in_.advertisers[e]] >= in_.cap && (!eligible || in_.test_values[t] < in_.values[e])) {
      const int64_t last = lowest_[in_.advertisers[e]];
      raise(floor, in_.values[last], in_.ads[last]);
    }
  }

  const RankingsInput& in_;
  RankingsOutput out_;
  std::vector<Entry> stay_, enter_;
  std::vector<uint8_t> stays_;
  std::unordered_map<uint64_t, size_t> listed_;
  std::unordered_map<uint64_t, int64_t> lowest_;
};

}  // namespace vitrine
