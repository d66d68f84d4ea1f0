// Postings in impact order: blocks of 64 with their upper bounds, and towers in 7 bits beside every posting.
//
// A crowd's postings are sorted by log bid + bias in coarse steps and by norm within a step, so that a block's maxima
// are near its rows' own. Per posting: d bytes of levels, a byte each for log bid and bias below the block's, and
// 4 bytes that say which posting of the crowd it is; the exact numbers stay where they came from. A crowd's rows are
// padded to a multiple of 8, its blocks are consecutive.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "dispatch.hpp"
#include "threads.hpp"

namespace vitrine {

// Where postings and towers come from; the arrays outlive what is made of them.
struct PostingSource {
  const int64_t* crowd_indptr;
  const uint32_t* ads;  // ascending within a crowd
  const float* bids;    // finite, not negative
  const float* ad_bias;
  const float* ad_vecs;  // [ad_count][d]
  size_t crowd_count, ad_count, d;
};

// Zeroed memory in large pages where the system has them: rows lie anywhere in it.
template <class T>
class Pages {
 public:
  explicit Pages(size_t count) : bytes_(count * sizeof(T)) {
    if (bytes_ == 0) return;
    const size_t page = bytes_ < large_page ? 64 : large_page;
    bytes_ = (bytes_ + page - 1) / page * page;
    data_ = static_cast<T*>(std::aligned_alloc(page, bytes_));
    if (data_ == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    madvise(data_, bytes_, MADV_HUGEPAGE);
#endif
    std::memset(static_cast<void*>(data_), 0, bytes_);
  }
  ~Pages() { std::free(data_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  static constexpr size_t large_page = size_t{1} << 21;
  size_t bytes_;
  T* data_ = nullptr;
};

class Postings {
 public:
  static constexpr size_t block_rows = 64;
  static constexpr int middle = 64, most_level = 63;

  struct Crowd {
    uint64_t posting;  // its first in the source
    uint32_t block;    // its first block
    uint32_t eighth;   // its first row / 8
  };
  // What a block's codes leave out: the greatest norms of a remainder and of a row of levels.
  struct Error {
    float rest, levels;
  };

  Postings(const PostingSource& source, size_t threads);

  const PostingSource& source() const { return source_; }
  const Crowd& crowd(size_t c) const { return crowds_.data()[c]; }
  size_t quads() const { return quads_; }
  const float* steps() const { return steps_.data(); }
  const float* tiles() const { return tiles_->data(); }
  const Error& error(size_t block) const { return errors_->data()[block]; }
  const uint8_t* codes(size_t row) const { return codes_->data() + row * quads_ * 4; }
  const uint8_t* marks(size_t row) const { return marks_->data() + row * 2; }
  const uint32_t* places(size_t row) const { return places_->data() + row; }
  float bound(size_t block, size_t field) const {
    return tiles()[block / bound_tile * bound_tile * bound_fields + field * bound_tile + block % bound_tile];
  }
  size_t bytes() const {
    return crowds_.bytes() + tiles_->bytes() + errors_->bytes() + codes_->bytes() + marks_->bytes() + places_->bytes();
  }

 private:
  // One ad in the terms of the codes.
  struct AdSummary {
    float bias, norm, rest, levels;
  };
  // Memory of one building thread.
  struct Work {
    std::vector<uint64_t> order;
    std::vector<float> bids;
  };

  void choose_steps();
  void summarize(size_t begin, size_t end, AdSummary* ads, uint8_t* levels) const;
  void lay_out(size_t c, const AdSummary* ads, const uint8_t* levels, Work& work);
  // The least float that is not below x.
  static float up(double x) {
    const auto nearest = static_cast<float>(x);
    return nearest < x ? std::nextafter(nearest, std::numeric_limits<float>::infinity()) : nearest;
  }

  PostingSource source_;
  size_t quads_;
  std::vector<float> steps_;  // [d], what a level is worth
  Pages<Crowd> crowds_;
  std::unique_ptr<Pages<float>> tiles_;
  std::unique_ptr<Pages<Error>> errors_;
  std::unique_ptr<Pages<uint8_t>> codes_, marks_;
  std::unique_ptr<Pages<uint32_t>> places_;
};

inline Postings::Postings(const PostingSource& source, size_t threads)
    : source_(source), quads_((source.d + 3) / 4), crowds_(source.crowd_count + 1) {
  uint64_t blocks = 0, eighths = 0;
  for (size_t c = 0; c <= source_.crowd_count; ++c) {
    const auto posting = static_cast<uint64_t>(source_.crowd_indptr[c]);
    crowds_.data()[c] = {posting, static_cast<uint32_t>(blocks), static_cast<uint32_t>(eighths)};
    if (c == source_.crowd_count) break;
    const uint64_t size = static_cast<uint64_t>(source_.crowd_indptr[c + 1]) - posting;
    blocks += (size + block_rows - 1) / block_rows;
    eighths += (size + 7) / 8;
  }
  if (eighths > UINT32_MAX) throw std::length_error("posting_ads: more postings than an index holds");
  tiles_ = std::make_unique<Pages<float>>((blocks + bound_tile - 1) / bound_tile * bound_tile * bound_fields);
  errors_ = std::make_unique<Pages<Error>>(blocks);
  codes_ = std::make_unique<Pages<uint8_t>>(eighths * 8 * quads_ * 4);
  marks_ = std::make_unique<Pages<uint8_t>>(eighths * 8 * 2);
  places_ = std::make_unique<Pages<uint32_t>>(eighths * 8);

  choose_steps();
  Pages<AdSummary> ads(source_.ad_count);
  Pages<uint8_t> levels(source_.ad_count * quads_ * 4);
  constexpr size_t ads_a_turn = 4096, crowds_a_turn = 64;
  std::atomic<size_t> next_ads{0}, next_crowds{0};
  on_threads(threads, [&](size_t) {
    for (size_t begin; (begin = next_ads.fetch_add(ads_a_turn)) < source_.ad_count;) {
      summarize(begin, std::min(source_.ad_count, begin + ads_a_turn), ads.data(), levels.data());
    }
  });
  on_threads(threads, [&](size_t) {
    Work work;
    for (size_t begin; (begin = next_crowds.fetch_add(crowds_a_turn)) < source_.crowd_count;) {
      for (size_t c = begin; c < std::min(source_.crowd_count, begin + crowds_a_turn); ++c) {
        lay_out(c, ads.data(), levels.data(), work);
      }
    }
  });
}

// A dimension's levels span its greatest element, or 4.5 times its root mean square where some reach further: those
// ads have a large remainder, and all others finer levels.
inline void Postings::choose_steps() {
  const size_t d = source_.d;
  std::vector<double> squares(d), most(d);
  for (size_t ad = 0; ad < source_.ad_count; ++ad) {
    for (size_t i = 0; i < d; ++i) {
      const double x = source_.ad_vecs[ad * d + i];
      if (!std::isfinite(x)) continue;
      squares[i] += x * x;
      most[i] = std::max(most[i], std::abs(x));
    }
  }
  for (size_t i = 0; i < d; ++i) {
    const double spread = 4.5 * std::sqrt(squares[i] / static_cast<double>(source_.ad_count));
    const auto step = static_cast<float>(std::min(most[i], spread) / most_level);
    steps_.push_back(step > 0 && std::isfinite(step) ? step : 1.0f);
  }
}

inline void Postings::summarize(size_t begin, size_t end, AdSummary* ads, uint8_t* levels) const {
  const size_t d = source_.d;
  for (size_t ad = begin; ad < end; ++ad) {
    double norm = 0, rest = 0, length = 0;
    for (size_t i = 0; i < d; ++i) {
      const double x = source_.ad_vecs[ad * d + i], ratio = x / steps_[i];
      const double level = std::isfinite(ratio) ? std::clamp(std::nearbyint(ratio), -1.0 * most_level, 1.0 * most_level) : 0;
      const double left = x - level * steps_[i];
      norm += x * x;
      rest += left * left;
      length += level * level;
      levels[ad * quads_ * 4 + i] = static_cast<uint8_t>(level + middle);
    }
    for (size_t i = d; i < quads_ * 4; ++i) levels[ad * quads_ * 4 + i] = middle;
    const auto size = [](double square) {  // no number counts as any
      return square >= 0 ? up(std::sqrt(square) * (1 + 1e-7)) : std::numeric_limits<float>::infinity();
    };
    const float bias = source_.ad_bias[ad];  // no number makes no number of the logit, which counts as the least
    ads[ad] = {bias == bias ? bias : -std::numeric_limits<float>::infinity(), size(norm), size(rest), size(length)};
  }
}

inline void Postings::lay_out(size_t c, const AdSummary* ads, const uint8_t* levels, Work& work) {
  const Crowd& own = crowd(c);
  const size_t size = crowds_.data()[c + 1].posting - own.posting;
  const uint32_t* posting_ads = source_.ads + own.posting;
  work.bids.resize(size);
  for (size_t i = 0; i < size; ++i) {
    const float bid = source_.bids[own.posting + i];
    work.bids[i] = bid > 0 ? up(std::log(static_cast<double>(bid))) : -1000.0f;
  }
  work.order.resize(size);
  for (size_t i = 0; i < size; ++i) work.order[i] = i;
  if (size > block_rows) {
    // Steps of impact downwards, 2^16 of them; norms downwards by the first bits of their floats.
    constexpr float steps_a_unit = 8;
    for (size_t i = 0; i < size; ++i) {
      const AdSummary& ad = ads[posting_ads[i]];
      const float impact = std::clamp((work.bids[i] + ad.bias) * steps_a_unit, -32768.0f, 32767.0f);
      const auto step = static_cast<uint64_t>(32767 - static_cast<int64_t>(std::floor(impact)));
      const uint64_t norm = ~(std::bit_cast<uint32_t>(ad.norm) >> 16) & 0xffff;
      work.order[i] |= step << 48 | norm << 32;
    }
    std::sort(work.order.begin(), work.order.end());
  }
  const float none = -std::numeric_limits<float>::infinity();
  for (size_t first = 0, block = own.block; first < size; first += block_rows, ++block) {
    const size_t rows = std::min(block_rows, size - first), padded = (rows + 7) / 8 * 8;
    const size_t row = own.eighth * size_t{8} + first;
    uint32_t* places = places_->data() + row;
    uint8_t *codes = codes_->data() + row * quads_ * 4, *marks = marks_->data() + row * 2;
    float bid = none, bias = none, both = none, norm = 0;
    Error error{0, 0};
    for (size_t i = 0; i < rows; ++i) {
      places[i] = static_cast<uint32_t>(work.order[first + i]);
      const AdSummary& ad = ads[posting_ads[places[i]]];
      bid = std::max(bid, work.bids[places[i]]);
      bias = std::max(bias, ad.bias);
      both = std::max(both, up(static_cast<double>(work.bids[places[i]]) + ad.bias));
      norm = std::max(norm, ad.norm);
      error = {std::max(error.rest, ad.rest), std::max(error.levels, ad.levels)};
      for (size_t quad = 0; quad < quads_; ++quad) {
        std::memcpy(codes + (quad * padded + i) * 4, levels + (posting_ads[places[i]] * quads_ + quad) * 4, 4);
      }
    }
    for (size_t i = 0; i < rows; ++i) {
      const auto below = [](float most, float own_) {
        const float gap = (most - own_) * (1 / mark_step);
        return static_cast<uint8_t>(gap < 255.0f ? gap : 255.0f);
      };
      marks[i] = below(bid, work.bids[places[i]]);
      marks[padded + i] = bias > none ? below(bias, ads[posting_ads[places[i]]].bias) : uint8_t{0};
    }
    float* tile = tiles_->data() + block / bound_tile * bound_tile * bound_fields + block % bound_tile;
    tile[0] = bid;
    tile[bound_tile] = bias + std::abs(bias) * 4e-6f;
    tile[2 * bound_tile] = both + std::abs(both) * 4e-6f;
    tile[3 * bound_tile] = norm;
    errors_->data()[block] = error;
  }
}

}  // namespace vitrine
