// A stored list's ranking as the wire fields of an answer: numbers to ids and bids, what may not be shown left out.
//
// The columns are those of vitrine/matching/record.py: integers of a few bits, the first lowest. An entry is an ad's
// number and above it the place of its crowd among the record's crowds; a value is the fall of its float's bits from
// the value before.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace vitrine {

static_assert(std::endian::native == std::endian::little, "records are read as they lie");

// Integers of `width` bits, at most 57; the caller has checked that the column lies inside `record`.
class BitColumn {
 public:
  BitColumn(std::span<const uint8_t> record, size_t at, unsigned width)
      : record_(record), at_(at), width_(width), mask_((uint64_t{1} << width) - 1) {}

  uint64_t operator[](size_t i) const {
    const size_t bit = i * width_, byte = at_ + (bit >> 3);
    uint64_t window = 0;
    std::memcpy(&window, record_.data() + byte, std::min<size_t>(8, record_.size() - byte));
    return window >> (bit & 7) & mask_;
  }

 private:
  std::span<const uint8_t> record_;
  size_t at_;
  unsigned width_;
  uint64_t mask_;
};

// Number -> position, the last row for every number beyond; position -> id, the last row for what is unknown.
struct ListTables {
  std::span<const int64_t> ad_at, crowd_at;
  std::span<const uint64_t> ads, crowds;
  std::span<const int64_t> ad_indptr;
  std::span<const uint32_t> bid_crowds;
  std::span<const float> bids;

  // The ad's bid on a crowd, by positions; 0 where there is none.
  float bid(size_t ad, size_t crowd) const {
    if (ad + 1 >= ad_indptr.size()) return 0;
    const auto begin = bid_crowds.begin() + ad_indptr[ad], end = bid_crowds.begin() + ad_indptr[ad + 1];
    const auto found = std::lower_bound(begin, end, crowd);
    return found != end && *found == crowd ? bids[found - bid_crowds.begin()] : 0;
  }
};

// Ads that the tables do not define, by ascending id: definitions newer than they are.
struct ListExtra {
  std::span<const uint64_t> ads;
  std::span<const uint8_t> groups;
  std::span<const int64_t> indptr;
  std::span<const uint64_t> crowds;
  std::span<const float> bids;

  // The ad's bid on a crowd, by ids; 0 where there is none, or the ad is not for the group.
  float bid(uint64_t ad, uint64_t crowd, unsigned group) const {
    const auto at = std::lower_bound(ads.begin(), ads.end(), ad);
    if (at == ads.end() || *at != ad) return 0;
    const size_t row = at - ads.begin();
    if (!(groups[row] >> group & 1)) return 0;
    const auto begin = crowds.begin() + indptr[row], end = crowds.begin() + indptr[row + 1];
    const auto found = std::lower_bound(begin, end, crowd);
    return found != end && *found == crowd ? bids[found - crowds.begin()] : 0;
  }
};

// ad_extras, crowd_extras: how many ids of ads and crowds without a number the record holds, one after the other from
// extras_at on; a reference below is one of those, others are numbers above them.
struct ListColumns {
  size_t entries, entries_at, falls_at, crowds_at, crowds, extras_at, ad_extras, crowd_extras;
  unsigned entry_bits, ad_bits, fall_bits, crowd_bits;
  uint32_t first;
};

// A position and an id; the tables' last row for what they do not know.
struct Found {
  size_t at;
  uint64_t id;
};

inline Found find_reference(std::span<const uint8_t> record, uint64_t reference, size_t extras_at, size_t extras,
                            std::span<const int64_t> by_number, std::span<const uint64_t> ids) {
  if (reference >= extras) {
    const size_t at = by_number[std::min<uint64_t>(reference - extras, by_number.size() - 1)];
    return {at, ids[at]};
  }
  uint64_t id;
  std::memcpy(&id, record.data() + extras_at + 8 * reference, sizeof id);
  const auto known = ids.first(ids.size() - 1);
  const auto found = std::lower_bound(known.begin(), known.end(), id);
  return {found != known.end() && *found == id ? static_cast<size_t>(found - known.begin()) : known.size(), id};
}

inline void put_varint(std::vector<uint8_t>& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<uint8_t>(value | 0x80));
  out.push_back(static_cast<uint8_t>(value));
}

inline void put_field(std::vector<uint8_t>& out, uint8_t tag, const void* data, size_t bytes) {
  out.push_back(tag);
  put_varint(out, bytes);
  const auto* from = static_cast<const uint8_t*>(data);
  out.insert(out.end(), from, from + bytes);
}

// The first k entries that may be shown, as packed fields at the end of `out`; how many they are.
//
// closed: by position of the ad: 0 shown, 1 hidden, 2 as `extra` says. excluded: ids of ads, ascending. tags: of the
// ids of ads, values, bids and ids of crowds.
inline size_t read_list(const ListTables& tables, const ListExtra& extra, std::span<const uint8_t> record,
                        const ListColumns& columns, std::span<const uint8_t> closed, unsigned group,
                        std::span<const uint64_t> excluded, size_t k, const uint8_t tags[4],
                        std::vector<uint8_t>& out) {
  const BitColumn entries(record, columns.entries_at, columns.entry_bits);
  const BitColumn falls(record, columns.falls_at, columns.fall_bits);
  const BitColumn crowds(record, columns.crowds_at, columns.crowd_bits);
  const uint64_t ad_mask = (uint64_t{1} << columns.ad_bits) - 1;
  std::vector<uint8_t> ads, won;
  std::vector<float> values, bids;
  uint32_t bits = columns.first;
  for (size_t i = 0; i < columns.entries && values.size() < k; ++i) {
    if (i) bits -= static_cast<uint32_t>(falls[i - 1]);
    const uint64_t entry = entries[i], place = entry >> columns.ad_bits;
    const Found ad = find_reference(record, entry & ad_mask, columns.extras_at, columns.ad_extras, tables.ad_at,
                                    tables.ads);
    if (closed[ad.at] == 1 || place >= columns.crowds) continue;
    if (std::binary_search(excluded.begin(), excluded.end(), ad.id)) continue;
    const Found crowd = find_reference(record, crowds[place], columns.extras_at + 8 * columns.ad_extras,
                                       columns.crowd_extras, tables.crowd_at, tables.crowds);
    const float bid = closed[ad.at] == 2 ? extra.bid(ad.id, crowd.id, group) : tables.bid(ad.at, crowd.at);
    if (bid <= 0) continue;
    put_varint(ads, ad.id);
    put_varint(won, crowd.id);
    values.push_back(std::bit_cast<float>(bits));
    bids.push_back(bid);
  }
  if (!values.empty()) {
    put_field(out, tags[0], ads.data(), ads.size());
    put_field(out, tags[1], values.data(), values.size() * sizeof(float));
    put_field(out, tags[2], bids.data(), bids.size() * sizeof(float));
    put_field(out, tags[3], won.data(), won.size());
  }
  return values.size();
}

}  // namespace vitrine
