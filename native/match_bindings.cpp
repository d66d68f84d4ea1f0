// vitrine.native.MatchIndex: arguments checked, the GIL released, match_index.hpp called.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "match_index.hpp"

using namespace nanobind::literals;

namespace vitrine {
namespace {

// Users' towers and crowds, checked against an index.
struct UserArguments {
  UserArguments(const MatchIndex& index, nb::object bias_, nb::object vecs_, nb::object indptr_, nb::object crowds_)
      : bias("user_bias", bias_, 1), vecs("user_vecs", vecs_, 2), indptr("user_indptr", indptr_, 1),
        crowds("user_crowds", crowds_, 1) {
    const size_t users = bias.size();
    vecs.expect({users, index.d()}, "one row a user of user_bias, as wide as ad_vecs");
    indptr.expect({users + 1}, "one entry a user of user_bias, and one");
    check_ends("user_indptr", indptr, crowds.size());
    for (size_t user = 0; user < users; ++user) {
      check_part("user_indptr", indptr, user, crowds.size());
      const auto begin = static_cast<size_t>(indptr[user]), stop = static_cast<size_t>(indptr[user + 1]);
      for (size_t at = begin; at < stop; ++at) {
        if (crowds[at] >= index.crowds()) {
          bad_value("user_crowds: entry " + std::to_string(at) + " is " + std::to_string(crowds[at]) +
                    ", but crowd_indptr has " + std::to_string(index.crowds()) + " crowds");
        }
        if (at > begin && crowds[at - 1] >= crowds[at]) {
          bad_value("user_crowds: entries of user row " + std::to_string(user) + " must ascend, but entry " +
                    std::to_string(at) + " does not");
        }
      }
    }
    view = {bias.data(), vecs.data(), indptr.data(), crowds.data(), users};
  }
  Input<float> bias, vecs;
  Input<int64_t> indptr;
  Input<uint32_t> crowds;
  MatchUsers view{};
};

// What keeps ads out of lists, checked against an index and a number of users.
struct RuleArguments {
  RuleArguments(const MatchIndex& index, size_t users, std::optional<nb::object> masks_,
                std::optional<nb::object> exclude_indptr_, std::optional<nb::object> exclude_ads_) {
    if (masks_) {
      masks.emplace("masks", *masks_, 1);
      masks->expect({index.ads()}, "one entry an ad of ad_bias");
      view.masks = masks->data();
    }
    if (exclude_indptr_.has_value() != exclude_ads_.has_value()) {
      bad_value("exclude_indptr: given together with exclude_ads, or not at all");
    }
    if (!exclude_ads_) return;
    indptr.emplace("exclude_indptr", *exclude_indptr_, 1);
    ads.emplace("exclude_ads", *exclude_ads_, 1);
    indptr->expect({users + 1}, "one entry a user of user_bias, and one");
    check_ends("exclude_indptr", *indptr, ads->size());
    for (size_t user = 0; user < users; ++user) {
      check_part("exclude_indptr", *indptr, user, ads->size());
      for (auto at = static_cast<size_t>((*indptr)[user]); at < static_cast<size_t>((*indptr)[user + 1]); ++at) {
        if (at > static_cast<size_t>((*indptr)[user]) && (*ads)[at - 1] > (*ads)[at]) {
          bad_value("exclude_ads: entries of user row " + std::to_string(user) + " must ascend, but entry " +
                    std::to_string(at) + " does not");
        }
      }
    }
    view.exclude_indptr = indptr->data();
    view.exclude_ads = ads->data();
  }
  std::optional<Input<uint8_t>> masks;
  std::optional<Input<int64_t>> indptr;
  std::optional<Input<uint32_t>> ads;
  MatchRules view;
};

void check_ads(const char* name, const Input<uint32_t>& ads, size_t count) {
  for (size_t i = 0; i < ads.size(); ++i) {
    if (ads[i] >= count) {
      bad_value(std::string(name) + ": entry " + std::to_string(i) + " is " + std::to_string(ads[i]) +
                ", but ad_bias has " + std::to_string(count) + " ads");
    }
  }
}

// Postings and towers, checked once and kept alive; matched from any thread.
class PyMatchIndex {
 public:
  PyMatchIndex(nb::object crowd_indptr, nb::object posting_ads, nb::object posting_bids, nb::object ad_bias,
               nb::object ad_vecs, int64_t threads, std::optional<nb::object> ad_indptr,
               std::optional<nb::object> ad_crowds, std::optional<nb::object> ad_bids)
      : crowd_indptr_("crowd_indptr", crowd_indptr, 1), posting_ads_("posting_ads", posting_ads, 1),
        posting_bids_("posting_bids", posting_bids, 1), ad_bias_("ad_bias", ad_bias, 1),
        ad_vecs_("ad_vecs", ad_vecs, 2), threads_(positive("threads", threads)) {
    const size_t ads = ad_bias_.size(), d = ad_vecs_.shape(1), postings = posting_ads_.size();
    if (ads > UINT32_MAX) bad_value("ad_bias: at most 2^32 - 1 ads, got " + std::to_string(ads));
    ad_vecs_.expect({ads, d}, "one row an ad of ad_bias");
    posting_bids_.expect({postings}, "one bid an ad of posting_ads");
    check_ends("crowd_indptr", crowd_indptr_, postings);
    check_ads("posting_ads", posting_ads_, ads);
    for (size_t crowd = 0; crowd + 1 < crowd_indptr_.size(); ++crowd) {
      check_part("crowd_indptr", crowd_indptr_, crowd, postings);
      const auto begin = static_cast<size_t>(crowd_indptr_[crowd]), stop = static_cast<size_t>(crowd_indptr_[crowd + 1]);
      for (size_t at = begin; at < stop; ++at) {
        if (at > begin && posting_ads_[at - 1] >= posting_ads_[at]) {
          bad_value("posting_ads: entries of crowd row " + std::to_string(crowd) + " must ascend, but entry " +
                    std::to_string(at) + " does not");
        }
        if (!(posting_bids_[at] >= 0.0f) || std::isinf(posting_bids_[at])) {
          bad_value("posting_bids: entry " + std::to_string(at) + " is " + std::to_string(posting_bids_[at]) +
                    "; bids must be finite and not negative");
        }
      }
    }
    AdPostings ad_postings;
    if (ad_indptr.has_value() != ad_crowds.has_value() || ad_indptr.has_value() != ad_bids.has_value()) {
      bad_value("ad_indptr: given together with ad_crowds and ad_bids, or not at all");
    }
    if (ad_indptr) {
      ad_indptr_.emplace("ad_indptr", *ad_indptr, 1);
      ad_crowds_.emplace("ad_crowds", *ad_crowds, 1);
      ad_bids_.emplace("ad_bids", *ad_bids, 1);
      ad_indptr_->expect({ads + 1}, "one entry an ad of ad_bias, and one");
      ad_crowds_->expect({postings}, "one a posting of posting_ads");
      ad_bids_->expect({postings}, "one a posting of posting_ads");
      check_ends("ad_indptr", *ad_indptr_, postings);
      for (size_t ad = 0; ad < ads; ++ad) check_part("ad_indptr", *ad_indptr_, ad, postings);
      ad_postings = {ad_indptr_->data(), ad_crowds_->data(), ad_bids_->data()};
    }
    const nb::gil_scoped_release released;
    index_.emplace(PostingSource{crowd_indptr_.data(), posting_ads_.data(), posting_bids_.data(), ad_bias_.data(),
                                 ad_vecs_.data(), crowd_indptr_.size() - 1, ads, d},
                   ad_postings, threads_);
  }

  size_t bytes() const { return index_->bytes(); }

  nb::tuple match(nb::object user_bias, nb::object user_vecs, nb::object user_indptr, nb::object user_crowds,
                  int64_t k_, std::optional<nb::object> masks, std::optional<nb::object> exclude_indptr,
                  std::optional<nb::object> exclude_ads, std::optional<nb::object> advertisers_,
                  int64_t advertiser_cap, std::optional<int64_t> threads_,
                  std::optional<std::string> kernel) const {
    const size_t k = positive("k", k_), threads = threads_of(threads_);
    const UserArguments users(*index_, user_bias, user_vecs, user_indptr, user_crowds);
    RuleArguments rules(*index_, users.view.count, masks, exclude_indptr, exclude_ads);
    std::optional<Input<uint32_t>> advertisers;
    if (advertiser_cap < 0) {
      bad_value("advertiser_cap: expected 0 (none) or more, got " + std::to_string(advertiser_cap));
    }
    if (advertiser_cap > 0) {
      if (!advertisers_) bad_value("advertisers: needed where advertiser_cap is set");
      advertisers.emplace("advertisers", *advertisers_, 1);
      advertisers->expect({index_->ads()}, "one entry an ad of ad_bias");
      rules.view.cap = {advertisers->data(), static_cast<size_t>(advertiser_cap)};
    }
    const Kernels& kernels = kernels_of(kernel);
    const size_t count = users.view.count;
    Output<int32_t> counts("k", {count});
    Output<uint32_t> ads("k", {count, k}), crowds("k", {count, k});
    Output<float> values("k", {count, k}), bids("k", {count, k});
    Output<uint64_t> eligible("k", {count}), read("k", {count}), scored("k", {count});
    {
      const nb::gil_scoped_release released;
      index_->match(kernels, users.view, k, rules.view, threads,
                    {counts.data(), ads.data(), values.data(), crowds.data(), bids.data(), eligible.data(),
                     read.data(), scored.data()});
    }
    return nb::make_tuple(counts.take(), ads.take(), values.take(), crowds.take(), bids.take(), eligible.take(),
                          read.take(), scored.take());
  }

  nb::tuple above(nb::object user_bias, nb::object user_vecs, nb::object user_indptr, nb::object user_crowds,
                  nb::object floor_values_, nb::object floor_keys_, std::optional<nb::object> masks,
                  std::optional<nb::object> exclude_indptr, std::optional<nb::object> exclude_ads,
                  std::optional<int64_t> threads_, std::optional<std::string> kernel) const {
    const size_t threads = threads_of(threads_);
    const UserArguments users(*index_, user_bias, user_vecs, user_indptr, user_crowds);
    const size_t count = users.view.count;
    const Input<float> floor_values("floor_values", floor_values_, 1);
    const Input<uint32_t> floor_keys("floor_keys", floor_keys_, 1);
    floor_values.expect({count}, "one a user of user_bias");
    floor_keys.expect({count}, "one a user of user_bias");
    for (size_t user = 0; user < count; ++user) {
      if (std::isnan(floor_values[user])) bad_value("floor_values: entry " + std::to_string(user) + " is not a number");
    }
    const RuleArguments rules(*index_, count, masks, exclude_indptr, exclude_ads);
    const Kernels& kernels = kernels_of(kernel);
    std::vector<std::vector<Contender>> found;
    Output<int64_t> indptr("user_bias", {count + 1});
    {
      const nb::gil_scoped_release released;
      index_->above(kernels, users.view, floor_values.data(), floor_keys.data(), rules.view, threads, found);
      for (size_t user = 0; user < count; ++user) {
        indptr.data()[user + 1] = indptr.data()[user] + static_cast<int64_t>(found[user].size());
      }
    }
    const auto total = static_cast<size_t>(indptr.data()[count]);
    Output<uint32_t> ads("user_bias", {total}), crowds("user_bias", {total});
    Output<float> values("user_bias", {total}), bids("user_bias", {total});
    size_t row = 0;
    for (const std::vector<Contender>& list : found) {
      for (const Contender& pair : list) {
        ads.data()[row] = pair.ad;
        values.data()[row] = pair.value;
        crowds.data()[row] = pair.crowd;
        bids.data()[row++] = pair.bid;
      }
    }
    return nb::make_tuple(indptr.take(), ads.take(), values.take(), crowds.take(), bids.take());
  }

  nb::tuple best(nb::object user_bias, nb::object user_vecs, nb::object pair_users_, nb::object pair_ads_,
                 nb::object user_indptr, nb::object user_crowds, std::optional<int64_t> threads_,
                 std::optional<std::string> kernel) const {
    const size_t threads = threads_of(threads_);
    const UserArguments users(*index_, user_bias, user_vecs, user_indptr, user_crowds);
    const Input<uint32_t> pair_users("pair_users", pair_users_, 1), pair_ads("pair_ads", pair_ads_, 1);
    const size_t count = pair_ads.size();
    pair_users.expect({count}, "one a pair of pair_ads");
    check_ads("pair_ads", pair_ads, index_->ads());
    for (size_t i = 0; i < count; ++i) {
      if (pair_users[i] >= users.view.count) {
        bad_value("pair_users: entry " + std::to_string(i) + " is " + std::to_string(pair_users[i]) +
                  ", but user_bias has " + std::to_string(users.view.count) + " users");
      }
    }
    const Kernels& kernels = kernels_of(kernel);
    Output<float> values("pair_ads", {count}), bids("pair_ads", {count});
    Output<uint32_t> crowds("pair_ads", {count});
    {
      const nb::gil_scoped_release released;
      index_->best(kernels, users.view, pair_users.data(), pair_ads.data(), count, threads, values.data(),
                   crowds.data(), bids.data());
    }
    return nb::make_tuple(values.take(), crowds.take(), bids.take());
  }

 private:
  size_t threads_of(std::optional<int64_t> threads) const { return threads ? positive("threads", *threads) : threads_; }

  Input<int64_t> crowd_indptr_;
  Input<uint32_t> posting_ads_;
  Input<float> posting_bids_, ad_bias_, ad_vecs_;
  std::optional<Input<int64_t>> ad_indptr_;
  std::optional<Input<uint32_t>> ad_crowds_;
  std::optional<Input<float>> ad_bids_;
  size_t threads_;
  std::optional<MatchIndex> index_;
};

}  // namespace

void bind_match_index(nb::module_& m) {
  nb::class_<PyMatchIndex>(
      m, "MatchIndex",
      "Postings and the towers of one model, to match many users by; checked once, must not change.\n\n"
      "crowd_indptr: (crowds + 1,) int64 into posting_ads: uint32 ad ordinals, ascending within a crowd, and\n"
      "posting_bids: float32, finite, not negative. ad_bias: (ads,), ad_vecs: (ads, d) float32.\n"
      "threads: of the build, and of calls that name no number. ad_indptr (ads + 1,) int64, ad_crowds uint32, ascending\n"
      "within an ad, and ad_bids float32 are the same postings by ad, where they are at hand: `best` is faster by them.\n"
      "The arrays are kept, not copied.\n\n"
      "Users, in every call: user_bias (users,), user_vecs (users, d) float32; user_indptr (users + 1,) int64 into\n"
      "user_crowds: uint32 crowd ordinals, ascending within a user. Rules, where a call takes them: masks (ads,) uint8,\n"
      "0 where an ad is not to be matched, which may change between calls; exclude_indptr (users + 1,) int64 into\n"
      "exclude_ads uint32, ascending within a user.")
      .def(nb::init<nb::object, nb::object, nb::object, nb::object, nb::object, int64_t,
                    std::optional<nb::object>, std::optional<nb::object>, std::optional<nb::object>>(),
           "crowd_indptr"_a.none(), "posting_ads"_a.none(), "posting_bids"_a.none(), "ad_bias"_a.none(),
           "ad_vecs"_a.none(), nb::kw_only(), "threads"_a = 1, "ad_indptr"_a = nb::none(), "ad_crowds"_a = nb::none(),
           "ad_bids"_a = nb::none())
      .def_prop_ro("nbytes", [](const PyMatchIndex& index) { return index.bytes(); },
                   "Bytes that the index holds beside the arrays it was given.")
      .def("match", &PyMatchIndex::match, "user_bias"_a.none(), "user_vecs"_a.none(), "user_indptr"_a.none(),
           "user_crowds"_a.none(), "k"_a, nb::kw_only(), "masks"_a = nb::none(), "exclude_indptr"_a = nb::none(),
           "exclude_ads"_a = nb::none(), "advertisers"_a = nb::none(), "advertiser_cap"_a = 0,
           "threads"_a = nb::none(), "kernel"_a = nb::none(),
           "Each user's k most valuable ads, the bits of `match_topk`.\n\n"
           "advertisers: (ads,) uint32; with advertiser_cap m > 0 a list has at most m ads of one advertiser, each the\n"
           "most valuable that there are.\n"
           "Returns counts (users,) int32; ads uint32, values float32, crowds uint32 and bids float32, all (users, k),\n"
           "most valuable first and zero beyond a user's count; and (users,) uint64: eligible, the (crowd, ad) pairs that\n"
           "the user's crowds have before any rule; read, those of them whose bounds were computed; scored, the pCTRs\n"
           "computed exactly.")
      .def("above", &PyMatchIndex::above, "user_bias"_a.none(), "user_vecs"_a.none(), "user_indptr"_a.none(),
           "user_crowds"_a.none(), "floor_values"_a.none(), "floor_keys"_a.none(), nb::kw_only(),
           "masks"_a = nb::none(), "exclude_indptr"_a = nb::none(), "exclude_ads"_a = nb::none(),
           "threads"_a = nb::none(), "kernel"_a = nb::none(),
           "All ads of the given crowds that are at or above each user's floor: of a greater value than floor_values\n"
           "(users,) float32, or of that value and an ordinal of at most floor_keys (users,) uint32.\n\n"
           "Returns indptr (users + 1,) int64 into ads uint32, values float32, crowds uint32 and bids float32: an ad\n"
           "once, by its greatest bid in the given crowds, most valuable first.")
      .def("best", &PyMatchIndex::best, "user_bias"_a.none(), "user_vecs"_a.none(), "pair_users"_a.none(),
           "pair_ads"_a.none(), "user_indptr"_a.none(), "user_crowds"_a.none(), nb::kw_only(),
           "threads"_a = nb::none(), "kernel"_a = nb::none(),
           "What chosen ads are worth to users: pair i is user row pair_users[i] and ad pair_ads[i], both uint32.\n\n"
           "Returns values float32, -1 where the two share no crowd, and the crowds uint32 and bids float32 that win.");
}

}  // namespace vitrine
