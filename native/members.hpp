// The owner's memory of its users: crowd -> rows, and of each row the tower, the floors of its lists and when it was active.
//
// Asked when an ad changes: whose list does that touch? A crowd's members stand in one array, and a row knows its place
// in each of its crowds, so that joining and leaving take constant time and a scan meets members alone. A row takes
// 4 (d + 1) bytes for its tower, 12 a placement group, 50 more, and 12 a membership.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <malloc.h>
#include <new>
#include <unordered_map>
#include <utility>
#include <vector>

#include "dispatch.hpp"

namespace vitrine {

inline constexpr uint32_t nobody = UINT32_MAX;

// A growing array of uint32 in 16 bytes.
struct Run {
  uint32_t* data = nullptr;
  uint32_t size = 0, capacity = 0;

  void push(uint32_t value, size_t& bytes) {
    if (size == capacity) reserve(capacity + std::max<uint32_t>(2, capacity / 4), bytes);
    data[size++] = value;
  }
  void reserve(uint32_t wanted, size_t& bytes) {
    bytes -= data ? malloc_usable_size(data) : 0;
    auto* moved = static_cast<uint32_t*>(std::realloc(data, std::max<size_t>(wanted, 1) * sizeof(uint32_t)));
    if (moved == nullptr) throw std::bad_alloc();
    data = moved;
    capacity = static_cast<uint32_t>(malloc_usable_size(data) / sizeof(uint32_t));
    bytes += malloc_usable_size(data);
  }
  void release(size_t& bytes) {
    bytes -= data ? malloc_usable_size(data) : 0;
    std::free(data);
    *this = {};
  }
};

// id -> place of the id in an array of ids that the table does not own. Open addressing; at most three quarters full.
class IdTable {
 public:
  explicit IdTable(const std::vector<uint64_t>& ids) : ids_(ids), slots_(16, nobody) {}

  uint32_t find(uint64_t id) const {
    for (size_t at = home(id);; at = (at + 1) & (slots_.size() - 1)) {
      if (slots_[at] == nobody || ids_[slots_[at]] == id) return slots_[at];
    }
  }
  void insert(uint32_t place) {
    if (4 * (count_ + 1) > 3 * slots_.size()) {
      std::vector<uint32_t> old(2 * slots_.size(), nobody);
      old.swap(slots_);
      for (const uint32_t held : old) {
        if (held != nobody) put(held);
      }
    }
    put(place);
    ++count_;
  }
  // While the id still stands in its place.
  void erase(uint64_t id) {
    const size_t mask = slots_.size() - 1;
    size_t hole = home(id);
    while (ids_[slots_[hole]] != id) hole = (hole + 1) & mask;
    for (size_t at = (hole + 1) & mask; slots_[at] != nobody; at = (at + 1) & mask) {
      const size_t wanted = home(ids_[slots_[at]]);
      if (((at - wanted) & mask) >= ((at - hole) & mask)) {
        slots_[hole] = slots_[at];
        hole = at;
      }
    }
    slots_[hole] = nobody;
    --count_;
  }
  size_t nbytes() const { return slots_.capacity() * sizeof(uint32_t); }

 private:
  size_t home(uint64_t id) const {
    uint64_t x = id * 0x9e3779b97f4a7c15u;
    x ^= x >> 32;
    return (x * 0xd6e8feb86659fd93u >> 24) & (slots_.size() - 1);
  }
  void put(uint32_t place) {
    size_t at = home(ids_[place]);
    while (slots_[at] != nobody) at = (at + 1) & (slots_.size() - 1);
    slots_[at] = place;
  }

  const std::vector<uint64_t>& ids_;
  std::vector<uint32_t> slots_;
  size_t count_ = 0;
};

// One user as put: crowds in any order, each once; a floor below 0 stands for a complete list.
struct MemberInput {
  uint64_t user;
  float bias;
  const float* vec;
  const uint64_t* crowds;
  size_t crowd_count;
  const float* floor_values;
  const uint64_t* floor_ads;
  const uint64_t* excluded;
  size_t excluded_count;
  int64_t active_ms;
};

// An ad as it was or is: its bids on crowds, and bit g of `groups` where it may stand in group g (0: not live).
struct AdInput {
  const uint64_t* crowds;
  const float* bids;
  size_t count;
  const uint64_t* negatives;
  size_t negative_count;
  uint8_t groups;
};

class Members {
 public:
  Members(size_t dim, size_t groups) : dim_(dim), groups_(groups), by_user_(users_), by_crowd_(crowds_) {}
  Members(const Members&) = delete;
  Members& operator=(const Members&) = delete;
  ~Members() {
    for (Run& run : memberships_) run.release(run_bytes_);
    for (Run& run : postings_) run.release(run_bytes_);
  }

  size_t dim() const { return dim_; }
  size_t groups() const { return groups_; }
  size_t size() const { return users_.size() - free_.size(); }
  void begin() { ++tick_; }

  void put(const MemberInput& in) {
    uint32_t row = by_user_.find(in.user);
    if (row == nobody) row = add(in.user);
    bias_[row] = in.bias;
    if (dim_) std::memcpy(vecs_.data() + row * dim_, in.vec, dim_ * sizeof(float));
    std::copy_n(in.floor_values, groups_, floor_values_.begin() + static_cast<ptrdiff_t>(row * groups_));
    std::copy_n(in.floor_ads, groups_, floor_ads_.begin() + static_cast<ptrdiff_t>(row * groups_));
    active_s_[row] = static_cast<uint32_t>(std::clamp<int64_t>(in.active_ms / 1000, 0, UINT32_MAX));
    touched_[row] = tick_;
    exclude(row, in.excluded, in.excluded_count);
    wanted_.clear();
    for (size_t i = 0; i < in.crowd_count; ++i) wanted_.push_back(crowd_place(in.crowds[i]));
    std::sort(wanted_.begin(), wanted_.end());
    join(row);
  }

  bool drop(uint64_t user) {
    const uint32_t row = by_user_.find(user);
    if (row == nobody) return false;
    wanted_.clear();
    join(row);
    memberships_[row].release(run_bytes_);
    exclude(row, nullptr, 0);
    by_user_.erase(user);
    touched_[row] = tick_;
    free_.push_back(row);
    return true;
  }

  // Rows of all users, recently active ones first.
  std::vector<uint32_t> recent() const {
    std::vector<uint8_t> gone(users_.size(), 0);
    for (const uint32_t row : free_) gone[row] = 1;
    std::vector<uint32_t> rows;
    for (uint32_t row = 0; row < users_.size(); ++row) {
      if (!gone[row]) rows.push_back(row);
    }
    sort_recent(rows);
    return rows;
  }
  uint64_t user(uint32_t row) const { return users_[row]; }

  size_t nbytes() const {
    return users_.capacity() * 8 + bias_.capacity() * 4 + vecs_.capacity() * 4 + floor_values_.capacity() * 4 +
           floor_ads_.capacity() * 8 + active_s_.capacity() * 4 + touched_.capacity() * 4 + excludes_.capacity() +
           (memberships_.capacity() + postings_.capacity()) * sizeof(Run) + crowds_.capacity() * 8 + run_bytes_ +
           by_user_.nbytes() + by_crowd_.nbytes() + (free_.capacity() + slot_of_.capacity()) * 4 + excluded_bytes_;
  }

 private:
  friend class MemberScan;

  uint32_t add(uint64_t user) {
    uint32_t row;
    if (!free_.empty()) {
      row = free_.back();
      free_.pop_back();
      users_[row] = user;
    } else {
      row = static_cast<uint32_t>(users_.size());
      grow(users_, 1), grow(bias_, 1), grow(vecs_, dim_), grow(floor_values_, groups_), grow(floor_ads_, groups_);
      grow(active_s_, 1), grow(touched_, 1), grow(excludes_, 1), grow(memberships_, 1);
      users_[row] = user;
    }
    by_user_.insert(row);
    return row;
  }
  template <class T>
  static void grow(std::vector<T>& column, size_t by) {
    if (column.size() + by > column.capacity()) column.reserve(column.capacity() + column.capacity() / 4 + 16 * by);
    column.resize(column.size() + by);
  }

  uint32_t crowd_place(uint64_t crowd) {
    uint32_t place = by_crowd_.find(crowd);
    if (place == nobody) {
      place = static_cast<uint32_t>(crowds_.size());
      grow(crowds_, 1), grow(postings_, 1);
      crowds_[place] = crowd;
      by_crowd_.insert(place);
    }
    return place;
  }

  // Makes the row a member of `wanted_` (ascending) alone. A membership is (crowd's place, place among its members).
  void join(uint32_t row) {
    Run& held = memberships_[row];
    joined_.clear();
    size_t h = 0;
    const auto leave = [&] {
      remove(held.data[2 * h], held.data[2 * h + 1]);
      ++h;
    };
    for (size_t w = 0; w < wanted_.size(); ++w) {
      const uint32_t crowd = wanted_[w];
      if (w && wanted_[w - 1] == crowd) continue;
      while (2 * h < held.size && held.data[2 * h] < crowd) leave();
      if (2 * h < held.size && held.data[2 * h] == crowd) {
        joined_.insert(joined_.end(), {crowd, held.data[2 * h + 1]});
        ++h;
      } else {
        joined_.insert(joined_.end(), {crowd, postings_[crowd].size});
        postings_[crowd].push(row, run_bytes_);
      }
    }
    while (2 * h < held.size) leave();
    if (joined_.size() > held.capacity || 2 * joined_.size() < held.capacity) {
      held.reserve(static_cast<uint32_t>(joined_.size()), run_bytes_);
    }
    held.size = static_cast<uint32_t>(joined_.size());
    std::copy(joined_.begin(), joined_.end(), held.data);
  }
  // The last member takes the place that is free now.
  void remove(uint32_t crowd, uint32_t place) {
    Run& members = postings_[crowd];
    const uint32_t last = members.data[--members.size];
    if (place == members.size) return;
    members.data[place] = last;
    Run& of = memberships_[last];
    size_t low = 0, high = of.size / 2;
    while (low < high) {
      const size_t middle = (low + high) / 2;
      if (of.data[2 * middle] < crowd) low = middle + 1; else high = middle;
    }
    of.data[2 * low + 1] = place;
  }

  void exclude(uint32_t row, const uint64_t* ads, size_t count) {
    if (excludes_[row]) {
      excluded_bytes_ -= excluded_entry + excluded_[row].capacity() * 8;
      excluded_.erase(row);
    }
    excludes_[row] = count != 0;
    if (count) {
      excluded_[row].assign(ads, ads + count);
      excluded_bytes_ += excluded_entry + excluded_[row].capacity() * 8;
    }
  }
  bool is_excluded(uint32_t row, uint64_t ad) const {
    if (!excludes_[row]) return false;
    const std::vector<uint64_t>& ads = excluded_.find(row)->second;
    return std::find(ads.begin(), ads.end(), ad) != ads.end();
  }

  void sort_recent(std::vector<uint32_t>& rows) const {
    std::vector<uint64_t> keys(rows.size());
    for (size_t i = 0; i < rows.size(); ++i) keys[i] = static_cast<uint64_t>(~active_s_[rows[i]]) << 32 | rows[i];
    std::sort(keys.begin(), keys.end());
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<uint32_t>(keys[i]);
  }

  static constexpr size_t excluded_entry = 64;  // of the table of exclusions, about

  size_t dim_, groups_;
  uint32_t tick_ = 0;
  std::vector<uint64_t> users_, crowds_;
  IdTable by_user_, by_crowd_;
  std::vector<float> bias_, vecs_, floor_values_;
  std::vector<uint64_t> floor_ads_;
  std::vector<uint32_t> active_s_, touched_, free_, wanted_, joined_;
  mutable std::vector<uint32_t> slot_of_;  // of scans, by row: `nobody` between them
  std::vector<uint8_t> excludes_;
  std::vector<Run> memberships_, postings_;
  std::unordered_map<uint32_t, std::vector<uint64_t>> excluded_;
  size_t run_bytes_ = 0, excluded_bytes_ = 0;
};

// The members that an ad's change may touch, recently active ones first, tested in chunks: whose list holds the ad
// before and not after, or otherwise. Rows that are put or dropped meanwhile are passed over.
class MemberScan {
 public:
  // blind: lists that hold the ad before or after are named, whatever is excluded.
  MemberScan(const Members& members, const AdInput& old, const AdInput& now, uint64_t ad, float bias, const float* vec,
             bool blind)
      : members_(members), tick_(members.tick_), ad_(ad), bias_(bias), blind_(blind), vec_((members.dim_ + 7) / 8 * 8) {
    if (members.dim_) std::memcpy(vec_.data(), vec, members.dim_ * sizeof(float));
    groups_[0] = old.groups, groups_[1] = now.groups;
    std::vector<uint32_t>& slot_of = members.slot_of_;
    slot_of.resize(members.users_.capacity(), nobody);
    collect(old, 0, slot_of);
    collect(now, 1, slot_of);
    for (const Member& member : members_found_) slot_of[member.row] = nobody;
    sort();
  }

  size_t left() const { return members_found_.size() - next_; }
  size_t checked() const { return next_; }

  std::vector<uint64_t> next(const Kernels& kernels, size_t count) {
    const size_t stop = next_ + std::min(count, left());
    rows_.clear(), tested_.clear();
    for (size_t i = next_; i < stop; ++i) {
      if (i + 32 < stop) __builtin_prefetch(members_.touched_.data() + members_found_[i + 32].row);
      if (members_.touched_[members_found_[i].row] > tick_) continue;
      rows_.push_back(members_found_[i].row);
      tested_.push_back(i);
    }
    next_ = stop;
    pctrs_.resize(rows_.size());
    kernels.pctr(bias_, vec_.data(), rows_.data(), rows_.size(), members_.bias_.data(), members_.vecs_.data(),
                 members_.users_.size(), members_.dim_, pctrs_.data());
    std::vector<uint64_t> named;
    for (size_t i = 0; i < rows_.size(); ++i) {
      if (i + 16 < rows_.size()) prefetch(rows_[i + 16]);
      if (touches(members_found_[tested_[i]], pctrs_[i])) named.push_back(members_.users_[rows_[i]]);
    }
    return named;
  }

 private:
  struct Member {
    uint32_t row;
    float bids[2];        // old, new; 0: not eligible
    uint32_t crowds[2];   // the places of the crowds that win
  };

  // Crowds by (bid descending, crowd ascending): the first that has a row is the one that wins.
  void collect(const AdInput& ad, int side, std::vector<uint32_t>& slot_of) {
    if (!ad.groups) return;
    std::vector<size_t> order(ad.count);
    for (size_t i = 0; i < ad.count; ++i) order[i] = i;
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      return ad.bids[a] != ad.bids[b] ? ad.bids[a] > ad.bids[b] : ad.crowds[a] < ad.crowds[b];
    });
    for (const size_t i : order) {
      each_member(ad.crowds[i], [&](uint32_t row, uint32_t crowd) {
        uint32_t& slot = slot_of[row];
        if (slot == nobody) {
          slot = static_cast<uint32_t>(members_found_.size());
          members_found_.push_back({row, {0.0f, 0.0f}, {nobody, nobody}});
        }
        Member& member = members_found_[slot];
        if (member.crowds[side] == nobody) member.bids[side] = ad.bids[i], member.crowds[side] = crowd;
      }, slot_of);
    }
    for (size_t i = 0; i < ad.negative_count; ++i) {
      each_member(ad.negatives[i], [&](uint32_t row, uint32_t) {
        if (slot_of[row] != nobody) members_found_[slot_of[row]].bids[side] = 0.0f;
      }, slot_of);
    }
  }
  template <class Each>
  void each_member(uint64_t crowd_id, const Each& each, const std::vector<uint32_t>& slot_of) {
    const uint32_t crowd = members_.by_crowd_.find(crowd_id);
    if (crowd == nobody) return;
    const Run& posting = members_.postings_[crowd];
    for (uint32_t i = 0; i < posting.size; ++i) {
      if (i + 16 < posting.size) __builtin_prefetch(slot_of.data() + posting.data[i + 16], 1);
      each(posting.data[i], crowd);
    }
  }

  void sort() {
    std::vector<uint64_t> keys(members_found_.size());
    for (size_t i = 0; i < keys.size(); ++i) {
      keys[i] = static_cast<uint64_t>(~members_.active_s_[members_found_[i].row]) << 32 | i;
    }
    std::sort(keys.begin(), keys.end());
    std::vector<Member> sorted(keys.size());
    for (size_t i = 0; i < keys.size(); ++i) sorted[i] = members_found_[static_cast<uint32_t>(keys[i])];
    members_found_.swap(sorted);
  }

  void prefetch(uint32_t row) const {
    __builtin_prefetch(members_.floor_values_.data() + row * members_.groups_);
    __builtin_prefetch(members_.floor_ads_.data() + row * members_.groups_);
    __builtin_prefetch(members_.excludes_.data() + row);
  }

  bool touches(const Member& member, float pctr) const {
    if (!blind_ && members_.is_excluded(member.row, ad_)) return false;
    const float values[2] = {member.bids[0] * pctr, member.bids[1] * pctr};
    for (size_t group = 0; group < members_.groups_; ++group) {
      const size_t at = member.row * members_.groups_ + group;
      const float floor = members_.floor_values_[at];
      bool in[2];
      for (int side = 0; side < 2; ++side) {
        in[side] = member.bids[side] > 0.0f && (groups_[side] >> group & 1) &&
                   (values[side] > floor || (values[side] == floor && ad_ <= members_.floor_ads_[at]));
      }
      if (in[0] != in[1]) return true;
      if (in[0] && (blind_ || values[0] != values[1] || member.crowds[0] != member.crowds[1])) return true;
    }
    return false;
  }

  const Members& members_;
  uint32_t tick_;
  uint64_t ad_;
  float bias_;
  bool blind_;
  uint8_t groups_[2];
  std::vector<float> vec_, pctrs_;
  std::vector<Member> members_found_;
  std::vector<uint32_t> rows_;
  std::vector<size_t> tested_;
  size_t next_ = 0;
};

}  // namespace vitrine
