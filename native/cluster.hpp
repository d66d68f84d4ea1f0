// Neighbours inside one cluster: overlapping leaves, each member's nearest in every leaf it is in, merged.
//
// A cluster's codes are copied together once and stay in a near cache while its leaves are cut and searched. A leaf is
// cut by sampled centres, about `max_centres` a level at most, so that no member is ever compared with all leaves;
// where the centres are those of leaves, a member goes to the nearest `overlap` of them. Neighbours of a member are
// looked for among all members of its leaves, guests too: at equal cost that finds more than looking among home
// members alone (docs/ann.md, "Build").
#pragma once

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "dispatch.hpp"

namespace vitrine {

struct ClusterParameters {
  size_t overlap;     // leaves of a member
  size_t leaf;        // members of a leaf at most
  size_t neighbours;  // found of a member in one leaf
  size_t kept;        // of a member in the end
  uint64_t seed;
};

// Random numbers that any machine draws alike (SplitMix64).
class Draws {
 public:
  explicit Draws(uint64_t seed) : state_(seed) {}
  uint64_t below(uint64_t bound) {  // bound < 2^32
    state_ += 0x9e3779b97f4a7c15u;
    uint64_t x = state_;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return ((x ^ (x >> 31)) >> 32) * bound >> 32;
  }

 private:
  uint64_t state_;
};

// `size` of [0, count), ascending: a sample without repetition (Floyd).
inline std::vector<uint32_t> sample(Draws& draws, size_t count, size_t size) {
  std::vector<uint32_t> chosen;
  chosen.reserve(size);
  std::vector<bool> taken(count);
  for (size_t last = count - size; last < count; ++last) {
    size_t at = draws.below(last + 1);
    if (taken[at]) at = last;
    taken[at] = true;
    chosen.push_back(static_cast<uint32_t>(at));
  }
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

// Rows of row-major codes as a word-major block for `Kernels::nearest`.
class Block {
 public:
  void fill(const uint64_t* codes, size_t words, const uint32_t* rows, size_t count) {
    words_ = words;
    count_ = count;
    stride_ = (count + block_rows - 1) / block_rows * block_rows;
    if (data_.size() < words * stride_) data_.resize(words * stride_);
    for (size_t i = 0; i < count; ++i) {
      const uint64_t* code = codes + static_cast<size_t>(rows[i]) * words;
      for (size_t word = 0; word < words; ++word) data_[word * stride_ + i] = code[word];
    }
    for (size_t word = 0; word < words; ++word) {
      std::fill(data_.begin() + static_cast<ptrdiff_t>(word * stride_ + count),
                data_.begin() + static_cast<ptrdiff_t>((word + 1) * stride_), 0);
    }
  }

  // The k nearest of the block to each of `count` codes, given to take(i, best, number) in order; code i does not
  // find row i where `self`.
  template <class Take>
  void nearest(const Kernels& kernels, const uint64_t* codes, const uint32_t* rows, size_t count, size_t k, bool self,
               const Take& take) {
    scratch_.resize(nearest_tile_size * stride_);
    best_.resize(nearest_tile_size * k);
    queries_.resize(nearest_tile_size * words_);
    packed_.resize(nearest_tile_size * words_ * kernels.packed_parts);
    const ScanBlock block{data_.data(), stride_, words_, 0, count_};
    for (size_t i = 0, tile; i < count; i += tile) {
      tile = count - i >= 4 ? 4 : count - i >= 2 ? 2 : 1;
      uint32_t skip[nearest_tile_size];
      size_t found[nearest_tile_size];
      for (size_t q = 0; q < tile; ++q) {
        std::memcpy(queries_.data() + q * words_, codes + static_cast<size_t>(rows[i + q]) * words_, words_ * 8);
        skip[q] = self ? static_cast<uint32_t>(i + q) : UINT32_MAX;
      }
      kernels.pack(queries_.data(), tile, words_, packed_.data());
      kernels.nearest(block, packed_.data(), tile, skip, k, scratch_.data(), best_.data(), found);
      for (size_t q = 0; q < tile; ++q) take(i + q, best_.data() + q * k, found[q]);
    }
  }

  const uint64_t* data() const { return data_.data(); }
  size_t stride() const { return stride_; }

 private:
  size_t words_ = 0, count_ = 0, stride_ = 0;
  std::vector<uint64_t> data_, queries_, packed_;
  std::vector<uint16_t> scratch_;
  std::vector<uint32_t> best_;
};

class Cluster {
 public:
  static constexpr size_t max_centres = 1000;

  // codes: [.][words]; members: rows of it, `count` of them.
  Cluster(const Kernels& kernels, const uint64_t* codes, size_t words, const uint32_t* members, size_t count,
          const ClusterParameters& parameters)
      : kernels_(kernels), words_(words), count_(count), parameters_(parameters), codes_(count * words),
        found_(count * parameters.overlap * parameters.neighbours), filled_(count), leaf_(count, UINT32_MAX) {
    for (size_t i = 0; i < count; ++i) {
      std::memcpy(codes_.data() + i * words, codes + static_cast<size_t>(members[i]) * words, words * 8);
    }
  }

  // nodes, distances: [count][kept], by (distance, node), UINT32_MAX and 0xffff where there are fewer; leaves: [count],
  // the first leaf of each member, numbered in the order of their cutting.
  void neighbours(const uint32_t* members, uint32_t* nodes, uint16_t* distances, uint32_t* leaves) {
    std::vector<uint32_t> all(count_);
    std::iota(all.begin(), all.end(), 0);
    split(all, parameters_.overlap, parameters_.seed);
    std::vector<uint64_t> list;
    const size_t slots = parameters_.overlap * parameters_.neighbours, kept = parameters_.kept;
    for (size_t i = 0; i < count_; ++i) {
      const auto first = found_.begin() + static_cast<ptrdiff_t>(i * slots);
      list.assign(first, first + filled_[i]);
      std::sort(list.begin(), list.end());
      list.erase(std::unique(list.begin(), list.end()), list.end());
      for (size_t j = 0; j < kept; ++j) {
        nodes[i * kept + j] = j < list.size() ? members[static_cast<uint32_t>(list[j])] : UINT32_MAX;
        distances[i * kept + j] = j < list.size() ? static_cast<uint16_t>(list[j] >> 32) : uint16_t{0xffff};
      }
      leaves[i] = leaf_[i];
    }
  }

 private:
  // Cuts `members` into leaves; each member goes into `overlap` of them, of which the ones made here are the last.
  void split(const std::vector<uint32_t>& members, size_t overlap, uint64_t seed) {
    const size_t size = members.size();
    if (size <= parameters_.leaf) return search(members);
    // Centres for leaves half full on average: few are then too large and cut again.
    const size_t wanted = (2 * size * overlap + parameters_.leaf - 1) / parameters_.leaf;
    const size_t centres = std::clamp<size_t>(wanted, 2, std::min(size, max_centres));
    const size_t fan = wanted <= max_centres ? std::min(overlap, centres) : 1;
    Draws draws(seed);
    std::vector<uint32_t> rows = sample(draws, size, centres);
    for (uint32_t& row : rows) row = members[row];
    block_.fill(codes_.data(), words_, rows.data(), centres);
    std::vector<uint16_t> choices(size * fan);
    std::vector<uint32_t> sizes(centres);
    block_.nearest(kernels_, codes_.data(), members.data(), size, fan, false,
                   [&](size_t i, const uint32_t* best, size_t) {
                     for (size_t f = 0; f < fan; ++f) {
                       const auto centre = static_cast<uint16_t>(best[f] & 0xffff);
                       choices[i * fan + f] = centre;
                       ++sizes[centre];
                     }
                   });
    std::vector<std::vector<uint32_t>> parts(centres);
    for (size_t c = 0; c < centres; ++c) parts[c].reserve(sizes[c]);
    for (size_t i = 0; i < size; ++i) {
      for (size_t f = 0; f < fan; ++f) parts[choices[i * fan + f]].push_back(members[i]);
    }
    for (size_t c = 0; c < centres; ++c) {
      std::vector<uint32_t>& part = parts[c];
      if (part.size() == size) {  // no centre parts them: cut by order
        for (size_t at = 0; at < size; at += parameters_.leaf) {
          const auto first = part.begin() + static_cast<ptrdiff_t>(at);
          search({first, first + static_cast<ptrdiff_t>(std::min(parameters_.leaf, size - at))});
        }
      } else if (!part.empty()) {
        split(part, overlap / fan, draws.below(UINT32_MAX) << 32 | draws.below(UINT32_MAX));
      }
      part = {};
    }
  }

  void search(const std::vector<uint32_t>& members) {
    const size_t slots = parameters_.overlap * parameters_.neighbours;
    for (const uint32_t member : members) {
      if (leaf_[member] == UINT32_MAX) leaf_[member] = leaves_;
    }
    ++leaves_;
    if (members.size() < 2) return;
    block_.fill(codes_.data(), words_, members.data(), members.size());
    block_.nearest(kernels_, codes_.data(), members.data(), members.size(), parameters_.neighbours, true,
                   [&](size_t i, const uint32_t* best, size_t number) {
                     const uint32_t member = members[i];
                     uint64_t* list = found_.data() + member * slots;
                     for (size_t j = 0; j < number; ++j) {
                       list[filled_[member]++] = static_cast<uint64_t>(best[j] >> 16) << 32 | members[best[j] & 0xffff];
                     }
                   });
  }

  const Kernels& kernels_;
  size_t words_, count_;
  ClusterParameters parameters_;
  std::vector<uint64_t> codes_;
  std::vector<uint64_t> found_;  // [count][overlap * neighbours], distance << 32 | member
  std::vector<uint16_t> filled_;
  std::vector<uint32_t> leaf_;
  uint32_t leaves_ = 0;
  Block block_;
};

}  // namespace vitrine
