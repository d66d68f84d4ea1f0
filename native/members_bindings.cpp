// Bindings of members.hpp and rankings.hpp: what keeps lists as they should be while users and ads change.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "dispatch.hpp"
#include "members.hpp"
#include "rankings.hpp"

using namespace nanobind::literals;

namespace vitrine {
namespace {

template <class T>
nb::object array_of(std::vector<T>&& values) {
  auto* held = new std::vector<T>(std::move(values));
  nb::capsule owner(held, [](void* vector) noexcept { delete static_cast<std::vector<T>*>(vector); });
  return nb::cast(nb::ndarray<nb::numpy, T>(held->data(), {held->size()}, owner), nb::rv_policy::reference);
}

// Refuses what is no CSR index of `parts` parts into `total` entries.
void check_indptr(const char* name, const Input<int64_t>& indptr, size_t parts, size_t total) {
  indptr.expect({parts + 1}, "one entry a part, and one");
  bool ordered = indptr[0] == 0 && indptr[parts] == static_cast<int64_t>(total);
  for (size_t i = 0; i < parts; ++i) ordered = ordered && indptr[i] <= indptr[i + 1];
  if (!ordered) bad_value(std::string(name) + ": must ascend from 0 to " + std::to_string(total));
}

nb::tuple py_update_rankings(nb::object list_indptr_, nb::object ads_, nb::object values_, nb::object crowds_,
                             nb::object floor_values_, nb::object floor_ads_, nb::object complete_,
                             nb::object test_indptr_, nb::object test_ads_, nb::object test_values_,
                             nb::object test_crowds_, nb::object test_groups_, int64_t keep, int64_t cap,
                             std::optional<nb::object> advertisers_, std::optional<nb::object> test_advertisers_,
                             std::optional<nb::object> test_redefined_) {
  const Input<int64_t> list_indptr("list_indptr", list_indptr_, 1), test_indptr("test_indptr", test_indptr_, 1);
  const Input<uint64_t> ads("ads", ads_, 1), crowds("crowds", crowds_, 1), floor_ads("floor_ads", floor_ads_, 1);
  const Input<float> values("values", values_, 1), floor_values("floor_values", floor_values_, 1);
  const Input<bool> complete("complete", complete_, 1);
  const Input<uint64_t> test_ads("test_ads", test_ads_, 1), test_crowds("test_crowds", test_crowds_, 1);
  const Input<float> test_values("test_values", test_values_, 1);
  const Input<uint8_t> test_groups("test_groups", test_groups_, 1);
  const size_t lists = floor_values.size(), n = ads.size(), tests = test_ads.size();
  if (test_indptr.size() < 2) bad_value("test_indptr: expected at least one user");
  const size_t users = test_indptr.size() - 1, groups = lists / users;
  if (groups * users != lists || groups < 1 || groups > 8) {
    bad_value("floor_values: expected 1 to 8 a user of " + std::to_string(users) + ", got " + std::to_string(lists));
  }
  check_indptr("list_indptr", list_indptr, lists, n);
  check_indptr("test_indptr", test_indptr, users, tests);
  values.expect({n}, "one an entry of ads");
  crowds.expect({n}, "one an entry of ads");
  floor_ads.expect({lists}, "one a list");
  complete.expect({lists}, "one a list");
  test_values.expect({tests}, "one an entry of test_ads");
  test_crowds.expect({tests}, "one an entry of test_ads");
  test_groups.expect({tests}, "one an entry of test_ads");
  for (size_t user = 0; user < users; ++user) {
    for (int64_t t = test_indptr[user] + 1; t < test_indptr[user + 1]; ++t) {
      if (test_ads[t - 1] >= test_ads[t]) bad_value("test_ads: must ascend within user row " + std::to_string(user));
    }
  }
  std::optional<Input<uint64_t>> advertisers, test_advertisers;
  std::optional<Input<bool>> test_redefined;
  if (cap < 0) bad_value("cap: expected 0 or more, got " + std::to_string(cap));
  if (cap) {
    if (!advertisers_ || !test_advertisers_ || !test_redefined_) {
      bad_value("cap: takes advertisers, test_advertisers and test_redefined");
    }
    advertisers.emplace("advertisers", *advertisers_, 1).expect({n}, "one an entry of ads");
    test_advertisers.emplace("test_advertisers", *test_advertisers_, 1).expect({tests}, "one an entry of test_ads");
    test_redefined.emplace("test_redefined", *test_redefined_, 1).expect({tests}, "one an entry of test_ads");
  }
  const RankingsInput in{list_indptr.data(), ads.data(), values.data(), crowds.data(), floor_values.data(),
                         floor_ads.data(), reinterpret_cast<const uint8_t*>(complete.data()), test_indptr.data(),
                         test_ads.data(), test_values.data(), test_crowds.data(), test_groups.data(),
                         cap ? advertisers->data() : nullptr, cap ? test_advertisers->data() : nullptr,
                         cap ? reinterpret_cast<const uint8_t*>(test_redefined->data()) : nullptr, users, groups,
                         positive("keep", keep), static_cast<size_t>(cap)};
  RankingsOutput out;
  {
    const nb::gil_scoped_release released;
    out = RankingsUpdate(in).run();
  }
  return nb::make_tuple(array_of(std::move(out.indptr)), array_of(std::move(out.ads)), array_of(std::move(out.values)),
                        array_of(std::move(out.crowds)), array_of(std::move(out.floor_values)),
                        array_of(std::move(out.floor_ads)), array_of(std::move(out.complete)),
                        array_of(std::move(out.changed)));
}

// An ad's columns, kept alive for the time of a call.
struct AdArrays {
  Input<uint64_t> crowds, negatives;
  Input<float> bids;
  uint8_t groups;

  AdArrays(const std::string& name, const nb::tuple& ad)
      : crowds("crowds", ad[0], 1), negatives("negatives", ad[2], 1), bids("bids", ad[1], 1), groups(nb::cast<uint8_t>(ad[3])) {
    if (crowds.size() != bids.size()) bad_value(name + ": expected one bid a crowd");
    for (size_t i = 0; i < bids.size(); ++i) {
      if (!(bids[i] > 0.0f)) bad_value(name + ": bids must be above 0");
    }
  }
  AdInput input() const {
    return {crowds.data(), bids.data(), crowds.size(), negatives.data(), negatives.size(), groups};
  }
};

void py_put(Members& members, nb::object users_, nb::object bias_, nb::object vecs_, nb::object crowd_indptr_,
            nb::object crowds_, nb::object floor_values_, nb::object floor_ads_, nb::object excluded_indptr_,
            nb::object excluded_, nb::object active_ms_) {
  const Input<uint64_t> users("users", users_, 1), crowds("crowds", crowds_, 1), excluded("excluded", excluded_, 1);
  const Input<uint64_t> floor_ads("floor_ads", floor_ads_, 2);
  const Input<float> bias("bias", bias_, 1), vecs("vecs", vecs_, 2), floor_values("floor_values", floor_values_, 2);
  const Input<int64_t> crowd_indptr("crowd_indptr", crowd_indptr_, 1);
  const Input<int64_t> excluded_indptr("excluded_indptr", excluded_indptr_, 1), active_ms("active_ms", active_ms_, 1);
  const size_t n = users.size(), d = members.dim(), groups = members.groups();
  bias.expect({n}, "one a user");
  vecs.expect({n, d}, "one row a user, of the towers' dimensions");
  floor_values.expect({n, groups}, "one row a user, one column a placement group");
  floor_ads.expect({n, groups}, "one row a user, one column a placement group");
  active_ms.expect({n}, "one a user");
  check_indptr("crowd_indptr", crowd_indptr, n, crowds.size());
  check_indptr("excluded_indptr", excluded_indptr, n, excluded.size());
  members.begin();
  for (size_t i = 0; i < n; ++i) {
    members.put({users[i], bias[i], vecs.data() + i * d, crowds.data() + crowd_indptr[i],
                 static_cast<size_t>(crowd_indptr[i + 1] - crowd_indptr[i]), floor_values.data() + i * groups,
                 floor_ads.data() + i * groups, excluded.data() + excluded_indptr[i],
                 static_cast<size_t>(excluded_indptr[i + 1] - excluded_indptr[i]), active_ms[i]});
  }
}

size_t py_drop(Members& members, nb::object users_) {
  const Input<uint64_t> users("users", users_, 1);
  size_t dropped = 0;
  members.begin();
  for (size_t i = 0; i < users.size(); ++i) dropped += members.drop(users[i]);
  return dropped;
}

MemberScan* py_scan(const Members& members, uint64_t ad, nb::tuple old_, nb::tuple now_, float bias, nb::object vec_,
                    bool blind) {
  const Input<float> vec("vec", vec_, 1);
  vec.expect({members.dim()}, "the towers' dimensions");
  const AdArrays old("old", old_), now("now", now_);
  return new MemberScan(members, old.input(), now.input(), ad, bias, vec.data(), blind);
}

nb::object py_recent(const Members& members) {
  const std::vector<uint32_t> rows = members.recent();
  std::vector<uint64_t> users;
  users.reserve(rows.size());
  for (const uint32_t row : rows) users.push_back(members.user(row));
  return array_of(std::move(users));
}

}  // namespace

void bind_members(nb::module_& m) {
  m.def("update_rankings", &py_update_rankings, "list_indptr"_a.none(), "ads"_a.none(), "values"_a.none(),
        "crowds"_a.none(), "floor_values"_a.none(), "floor_ads"_a.none(), "complete"_a.none(), "test_indptr"_a.none(),
        "test_ads"_a.none(), "test_values"_a.none(), "test_crowds"_a.none(), "test_groups"_a.none(), "keep"_a,
        "cap"_a = 0, "advertisers"_a = nb::none(), "test_advertisers"_a = nb::none(),
        "test_redefined"_a = nb::none(),
        "Rankings with some ads tested anew: these leave their places, and enter where they are at or above the floor.\n\n"
        "A user has as many lists as there are placement groups, in CSR list_indptr (users * groups + 1,): ads (n,)\n"
        "uint64, values (n,) float32, crowds (n,) uint64, best first; floor_values, floor_ads and complete (bool), one a\n"
        "list. Tests of a user, CSR test_indptr (users + 1,): test_ads uint64 ascending, test_values float32 (below 0:\n"
        "not eligible), test_crowds uint64, test_groups uint8 (bit g: eligible in group g). At most `keep` entries stay,\n"
        "the last of them the floor where more there were. With a cap, of one of the `advertisers` at most so many;\n"
        "where an entry of a full one leaves or falls, the floor rises to the advertiser's last entry, and to an entry\n"
        "whose ad was redefined. Returns (indptr, ads, values, crowds, floor_values, floor_ads, complete, changed).");
  nb::class_<Members>(m, "Members",
                      "Users of one model's towers: crowds, towers, floors of lists (vitrine/matching/members.py).\n\n"
                      "dim: of the towers; groups: placement groups.")
      .def(nb::new_([](int64_t dim, int64_t groups) {
             if (dim < 0 || dim > 4096) bad_value("dim: expected 0 to 4,096, got " + std::to_string(dim));
             if (groups < 1 || groups > 8) bad_value("groups: expected 1 to 8, got " + std::to_string(groups));
             return new Members(static_cast<size_t>(dim), static_cast<size_t>(groups));
           }),
           "dim"_a, "groups"_a)
      .def("put", &py_put, "users"_a.none(), "bias"_a.none(), "vecs"_a.none(), "crowd_indptr"_a.none(),
           "crowds"_a.none(), "floor_values"_a.none(), "floor_ads"_a.none(), "excluded_indptr"_a.none(),
           "excluded"_a.none(), "active_ms"_a.none(),
           "Takes users (n,) uint64 as they are: bias (n,), vecs (n, dim) float32; crowds in CSR, in any order;\n"
           "floor_values float32 and floor_ads uint64 (n, groups), a value below 0 for a complete list; excluded ads in\n"
           "CSR; active_ms (n,) int64.")
      .def("drop", &py_drop, "users"_a.none(), "Forgets users (n,) uint64; how many of them were held.")
      .def("scan", &py_scan, "ad"_a, "old"_a, "now"_a, "bias"_a, "vec"_a.none(), "blind"_a = false,
           nb::keep_alive<0, 1>(), nb::rv_policy::take_ownership,
           "The members that a change of an ad may touch. old, now: (crowds uint64, bids float32, negatives uint64,\n"
           "groups: bit g where it may stand in group g); bias and vec: the ad's tower.")
      .def("recent", &py_recent, "All users, recently active ones first.")
      .def("__len__", &Members::size)
      .def_prop_ro("nbytes", &Members::nbytes, "Bytes held.");
  nb::class_<MemberScan>(m, "MemberScan", "Members left to test, recently active ones first.")
      .def(
          "next",
          [](MemberScan& scan, int64_t count, std::optional<std::string> kernel) {
            return array_of(scan.next(kernel ? find(*kernel, "kernel") : chosen(), positive("count", count)));
          },
          "count"_a, nb::kw_only(), "kernel"_a = nb::none(),
          "Tests the next `count` members; the users (n,) uint64 of them whose lists change. Those put or dropped since\n"
          "the scan began are passed over.")
      .def_prop_ro("left", &MemberScan::left, "Members not yet tested.")
      .def_prop_ro("checked", &MemberScan::checked, "Members tested.");
}

}  // namespace vitrine
