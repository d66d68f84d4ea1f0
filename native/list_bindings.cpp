// vitrine.native.ListReader: tables checked once, records bounds-checked, list_reader.hpp called under the GIL (2 us).
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>

#include <optional>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "list_reader.hpp"

using namespace nanobind::literals;

namespace vitrine {
namespace {

constexpr unsigned kWidest = 57;  // a window of eight bytes holds such an integer at any of its bit positions

void check_positions(const char* name, const Input<int64_t>& table, size_t unknown) {
  if (table.size() == 0) bad_value(std::string(name) + ": expected a last entry for what is unknown, got none");
  for (size_t i = 0; i < table.size(); ++i) {
    if (table[i] < 0 || static_cast<uint64_t>(table[i]) > unknown) {
      bad_value(std::string(name) + ": entry " + std::to_string(i) + " is " + std::to_string(table[i]) +
                "; positions are 0 to " + std::to_string(unknown));
    }
  }
}

unsigned width_of(const char* name, int64_t value) {
  if (value < 0 || value > kWidest) {
    bad_value(std::string(name) + ": expected 0 to " + std::to_string(kWidest) + ", got " + std::to_string(value));
  }
  return static_cast<unsigned>(value);
}

// The first byte of a column that lies whole inside a record.
size_t column_at(const char* name, int64_t at, int64_t count, unsigned width, size_t size) {
  const bool sane = at >= 0 && count >= 0 && static_cast<uint64_t>(at) <= size && static_cast<uint64_t>(count) < 1u << 24;
  if (!sane || static_cast<uint64_t>(at) + (static_cast<uint64_t>(count) * width + 7) / 8 > size) {
    bad_value(std::string(name) + ": " + std::to_string(count) + " integers of " + std::to_string(width) +
              " bits from byte " + std::to_string(at) + " do not lie in " + std::to_string(size) + " bytes");
  }
  return static_cast<size_t>(at);
}

template <class T>
std::span<const T> view(const Input<T>& input) {
  return {input.data(), input.size()};
}

class PyListExtra {
 public:
  PyListExtra(nb::object ads, nb::object groups, nb::object indptr, nb::object crowds, nb::object bids)
      : ads_("ads", ads, 1), groups_("groups", groups, 1), indptr_("indptr", indptr, 1), crowds_("crowds", crowds, 1),
        bids_("bids", bids, 1) {
    groups_.expect({ads_.size()}, "one mask an ad");
    indptr_.expect({ads_.size() + 1}, "one entry an ad, and one");
    bids_.expect({crowds_.size()}, "one bid a crowd");
    check_ends("indptr", indptr_, bids_.size());
    for (size_t i = 0; i < ads_.size(); ++i) check_part("indptr", indptr_, i, bids_.size());
  }

  ListExtra tables() const { return {view(ads_), view(groups_), view(indptr_), view(crowds_), view(bids_)}; }

 private:
  Input<uint64_t> ads_;
  Input<uint8_t> groups_;
  Input<int64_t> indptr_;
  Input<uint64_t> crowds_;
  Input<float> bids_;
};

class ListReader {
 public:
  ListReader(nb::object ad_at, nb::object crowd_at, nb::object ads, nb::object crowds, nb::object ad_indptr,
             nb::object bid_crowds, nb::object bids, nb::bytes tags)
      : ad_at_("ad_at", ad_at, 1), crowd_at_("crowd_at", crowd_at, 1), ads_("ads", ads, 1),
        crowds_("crowds", crowds, 1), ad_indptr_("ad_indptr", ad_indptr, 1),
        bid_crowds_("bid_crowds", bid_crowds, 1), bids_("bids", bids, 1) {
    if (ads_.size() == 0 || crowds_.size() == 0) bad_value("ads, crowds: expected a last entry for what is unknown");
    check_positions("ad_at", ad_at_, ads_.size() - 1);
    check_positions("crowd_at", crowd_at_, crowds_.size() - 1);
    ad_indptr_.expect({ads_.size()}, "one entry a known ad, and one");
    bids_.expect({bid_crowds_.size()}, "one bid a crowd of bid_crowds");
    check_ends("ad_indptr", ad_indptr_, bids_.size());
    for (size_t i = 0; i + 1 < ad_indptr_.size(); ++i) check_part("ad_indptr", ad_indptr_, i, bids_.size());
    if (tags.size() != 4) bad_value("tags: expected four bytes, got " + std::to_string(tags.size()));
    std::copy_n(tags.c_str(), 4, tags_);
  }

  nb::bytes read(nb::bytes record, nb::object closed_, const PyListExtra& extra, nb::object excluded_, int64_t group,
                 int64_t k_, int64_t entries, int64_t first, int64_t entries_at, int64_t entry_bits, int64_t ad_bits,
                 int64_t falls_at, int64_t fall_bits, int64_t crowds_at, int64_t crowds, int64_t crowd_bits,
                 int64_t extras_at, int64_t ad_extras, int64_t crowd_extras) {
    const Input<uint8_t> closed("closed", closed_, 1);
    closed.expect({ads_.size()}, "one entry a row of ads");
    const Input<uint64_t> excluded("excluded", excluded_, 1);
    if (group < 0 || group > 7) bad_value("group: expected 0 to 7, got " + std::to_string(group));
    const size_t k = positive("k", k_), size = record.size();
    ListColumns columns{};
    columns.entry_bits = width_of("entry_bits", entry_bits);
    columns.ad_bits = width_of("ad_bits", ad_bits);
    columns.fall_bits = width_of("fall_bits", fall_bits);
    columns.crowd_bits = width_of("crowd_bits", crowd_bits);
    columns.entries_at = column_at("entries", entries_at, entries, columns.entry_bits, size);
    columns.falls_at = column_at("falls", falls_at, std::max<int64_t>(entries, 1) - 1, columns.fall_bits, size);
    columns.crowds_at = column_at("crowds", crowds_at, crowds, columns.crowd_bits, size);
    if (ad_extras < 0 || crowd_extras < 0 || ad_extras > 65535 || crowd_extras > 65535) {
      bad_value("ad_extras, crowd_extras: expected 0 to 65,535");
    }
    columns.extras_at = column_at("extras", extras_at, 8 * (ad_extras + crowd_extras), 8, size);
    columns.ad_extras = static_cast<size_t>(ad_extras);
    columns.crowd_extras = static_cast<size_t>(crowd_extras);
    columns.entries = static_cast<size_t>(entries);
    columns.crowds = static_cast<size_t>(crowds);
    columns.first = static_cast<uint32_t>(first);
    const ListTables tables{view(ad_at_),     view(crowd_at_),   view(ads_), view(crowds_),
                            view(ad_indptr_), view(bid_crowds_), view(bids_)};
    std::vector<uint8_t> fields;
    read_list(tables, extra.tables(), {reinterpret_cast<const uint8_t*>(record.c_str()), size}, columns, view(closed),
              static_cast<unsigned>(group), view(excluded), k, tags_, fields);
    return nb::bytes(fields.data(), fields.size());
  }

 private:
  Input<int64_t> ad_at_, crowd_at_;
  Input<uint64_t> ads_, crowds_;
  Input<int64_t> ad_indptr_;
  Input<uint32_t> bid_crowds_;
  Input<float> bids_;
  uint8_t tags_[4];
};

}  // namespace

void bind_list_reader(nb::module_& m) {
  nb::class_<PyListExtra>(m, "ListExtra",
                          "Ads that a ListReader's tables do not define.\n\n"
                          "ads: (n,) uint64 ids, ascending; groups: (n,) uint8, placement groups by bit; indptr: (n + 1,)\n"
                          "int64 into crowds: uint64 ids, ascending within an ad, and bids: float32.")
      .def(nb::init<nb::object, nb::object, nb::object, nb::object, nb::object>(), "ads"_a.none(), "groups"_a.none(),
           "indptr"_a.none(), "crowds"_a.none(), "bids"_a.none());
  nb::class_<ListReader>(
      m, "ListReader",
      "Reads rankings of stored lists into the wire fields of an answer; its arrays are checked once and must not\n"
      "change.\n\n"
      "ad_at, crowd_at: (*,) int64, number -> position, the last entry for every number beyond; a position is 0 to A, C.\n"
      "ads: (A + 1,) and crowds: (C + 1,) uint64 ids by position, the last row for what is unknown.\n"
      "ad_indptr: (A + 1,) int64 into bid_crowds: uint32, positions ascending within an ad, and bids: float32.\n"
      "tags: four bytes, the protobuf keys of the packed fields ad ids, values, bids and crowd ids.")
      .def(nb::init<nb::object, nb::object, nb::object, nb::object, nb::object, nb::object, nb::object, nb::bytes>(),
           "ad_at"_a.none(), "crowd_at"_a.none(), "ads"_a.none(), "crowds"_a.none(), "ad_indptr"_a.none(),
           "bid_crowds"_a.none(), "bids"_a.none(), "tags"_a)
      .def("read", &ListReader::read, "record"_a, "closed"_a.none(), "extra"_a, "excluded"_a.none(), "group"_a, "k"_a,
           "entries"_a, "first"_a, "entries_at"_a, "entry_bits"_a, "ad_bits"_a, "falls_at"_a, "fall_bits"_a,
           "crowds_at"_a, "crowds"_a, "crowd_bits"_a, "extras_at"_a, "ad_extras"_a, "crowd_extras"_a,
           "The first k entries of a ranking that may be shown, as the four fields.\n\n"
           "closed: (A + 1,) uint8, by position of the ad: 0 shown, 1 hidden, 2 as `extra` says, which is asked for the\n"
           "placement group. excluded: uint64 ids of ads, ascending, that are left out. The others say where the columns\n"
           "lie in the record (`vitrine.matching.record.columns_of`).");
}

}  // namespace vitrine
