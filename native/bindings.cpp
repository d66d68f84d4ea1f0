// The Python module vitrine.native._native: arguments checked, the GIL released, kernels called.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "dispatch.hpp"
#include "hamming.hpp"
#include "match.hpp"
#include "murmur2.hpp"

using namespace nanobind::literals;

namespace vitrine {
namespace {

const Kernels& kernels_of(const std::optional<std::string>& kernel) {
  return kernel ? find(*kernel, "kernel") : chosen();
}

nb::tuple py_hamming_topk(nb::object codes_, nb::object queries_, int64_t k_, int64_t threads_,
                          std::optional<std::string> kernel) {
  const Input<uint64_t> codes("codes", codes_, 2), queries("queries", queries_, 2);
  const size_t words = codes.shape(0), n = codes.shape(1), count = queries.shape(0);
  const size_t k = std::min(positive("k", k_), n), threads = positive("threads", threads_);
  if (words > 1023) bad_value("codes: at most 1,023 words (65,472 bits) a code, got " + std::to_string(words));
  if (n > UINT32_MAX) bad_value("codes: at most 2^32 - 1 rows, got " + std::to_string(n));
  queries.expect({count, words}, "one row a query, as many words as codes has");
  const Kernels& kernels = kernels_of(kernel);
  Output<uint32_t> rows("k", {count, k}), distances("k", {count, k});
  {
    const nb::gil_scoped_release released;
    hamming_topk(kernels, {codes.data(), n, words, queries.data(), count}, k, threads, rows.data(), distances.data());
  }
  return nb::make_tuple(rows.take(), distances.take());
}

// Refuses an indptr whose part i is not an ordered range within `total`.
void check_part(const char* name, const Input<int64_t>& indptr, size_t i, size_t total) {
  const int64_t begin = indptr[i], end = indptr[i + 1];
  if (begin < 0 || end < begin || static_cast<uint64_t>(end) > total) {
    bad_value(std::string(name) + ": entries " + std::to_string(i) + " and " + std::to_string(i + 1) + " are " +
              std::to_string(begin) + " and " + std::to_string(end) + "; they must ascend from 0 to " +
              std::to_string(total));
  }
}

void check_ends(const char* name, const Input<int64_t>& indptr, size_t total) {
  if (indptr.size() == 0) bad_value(std::string(name) + ": expected one entry more than it has parts, got none");
  const int64_t first = indptr[0], last = indptr[indptr.size() - 1];
  if (first != 0 || last != static_cast<int64_t>(total)) {
    bad_value(std::string(name) + ": expected to start at 0 and end at " + std::to_string(total) + ", got " +
              std::to_string(first) + " and " + std::to_string(last));
  }
}

nb::tuple py_match_topk(nb::object user_bias_, nb::object user_vecs_, nb::object user_indptr_, nb::object user_crowds_,
                        nb::object crowd_indptr_, nb::object posting_ads_, nb::object posting_bids_,
                        nb::object ad_bias_, nb::object ad_vecs_, int64_t k_, int64_t threads_,
                        std::optional<std::string> kernel) {
  const Input<float> user_bias("user_bias", user_bias_, 1), user_vecs("user_vecs", user_vecs_, 2);
  const Input<int64_t> user_indptr("user_indptr", user_indptr_, 1);
  const Input<uint32_t> user_crowds("user_crowds", user_crowds_, 1);
  const Input<int64_t> crowd_indptr("crowd_indptr", crowd_indptr_, 1);
  const Input<uint32_t> posting_ads("posting_ads", posting_ads_, 1);
  const Input<float> posting_bids("posting_bids", posting_bids_, 1);
  const Input<float> ad_bias("ad_bias", ad_bias_, 1), ad_vecs("ad_vecs", ad_vecs_, 2);
  const size_t k = positive("k", k_), threads = positive("threads", threads_);
  const size_t users = user_bias.size(), ads = ad_bias.size(), d = ad_vecs.shape(1);
  if (ads > UINT32_MAX) bad_value("ad_bias: at most 2^32 - 1 ads, got " + std::to_string(ads));
  ad_vecs.expect({ads, d}, "one row an ad of ad_bias");
  user_vecs.expect({users, d}, "one row a user of user_bias, as wide as ad_vecs");
  user_indptr.expect({users + 1}, "one entry a user of user_bias, and one");
  posting_bids.expect({posting_ads.size()}, "one bid an ad of posting_ads");
  check_ends("user_indptr", user_indptr, user_crowds.size());
  check_ends("crowd_indptr", crowd_indptr, posting_ads.size());
  // What this call reads is checked; postings themselves as they are read (match.hpp).
  const size_t crowds = crowd_indptr.size() - 1;
  for (size_t user = 0; user < users; ++user) {
    check_part("user_indptr", user_indptr, user, user_crowds.size());
    const auto stop = static_cast<size_t>(user_indptr[user + 1]);
    for (auto at = static_cast<size_t>(user_indptr[user]); at < stop; ++at) {
      const uint32_t crowd = user_crowds[at];
      if (crowd >= crowds) {
        bad_value("user_crowds: entry " + std::to_string(at) + " is " + std::to_string(crowd) +
                  ", but crowd_indptr has " + std::to_string(crowds) + " crowds");
      }
      if (at > static_cast<size_t>(user_indptr[user]) && user_crowds[at - 1] >= crowd) {
        bad_value("user_crowds: entries of user row " + std::to_string(user) + " must ascend, but entry " +
                  std::to_string(at) + " does not");
      }
      check_part("crowd_indptr", crowd_indptr, crowd, posting_ads.size());
    }
  }
  const Kernels& kernels = kernels_of(kernel);
  Output<int32_t> counts("k", {users});
  Output<uint32_t> best("k", {users, k}), best_crowds("k", {users, k});
  Output<float> values("k", {users, k}), bids("k", {users, k});
  Output<uint64_t> eligible("k", {users});
  const MatchInput in{user_bias.data(),   user_vecs.data(),    user_indptr.data(), user_crowds.data(),
                      crowd_indptr.data(), posting_ads.data(), posting_bids.data(), ad_bias.data(),
                      ad_vecs.data(),     users,               ads,                d};
  try {
    const nb::gil_scoped_release released;
    match_topk(kernels, in, k, threads,
               {counts.data(), best.data(), values.data(), best_crowds.data(), bids.data(), eligible.data()});
  } catch (const BadPosting& bad) {
    bad_value("posting_ads: entry " + std::to_string(bad.at) + " is " + std::to_string(bad.ad) + ", but ad_bias has " +
              std::to_string(ads) + " ads");
  }
  return nb::make_tuple(counts.take(), best.take(), values.take(), best_crowds.take(), bids.take(), eligible.take());
}

nb::object py_tower_pctr(float user_bias, nb::object user_vec_, nb::object ads_, nb::object ad_bias_,
                         nb::object ad_vecs_, std::optional<std::string> kernel) {
  const Input<float> user_vec("user_vec", user_vec_, 1), ad_bias("ad_bias", ad_bias_, 1);
  const Input<float> ad_vecs("ad_vecs", ad_vecs_, 2);
  const Input<uint32_t> ads("ads", ads_, 1);
  const size_t d = ad_vecs.shape(1);
  ad_vecs.expect({ad_bias.size(), d}, "one row an ad of ad_bias");
  user_vec.expect({d}, "as wide as ad_vecs");
  for (size_t i = 0; i < ads.size(); ++i) {
    if (ads[i] >= ad_bias.size()) {
      bad_value("ads: entry " + std::to_string(i) + " is " + std::to_string(ads[i]) + ", but ad_bias has " +
                std::to_string(ad_bias.size()) + " ads");
    }
  }
  const Kernels& kernels = kernels_of(kernel);
  Output<float> out("ads", {ads.size()});
  {
    const nb::gil_scoped_release released;
    std::vector<float> padded((d + 7) / 8 * 8, 0.0f);
    std::copy_n(user_vec.data(), d, padded.begin());
    kernels.pctr(user_bias, padded.data(), ads.data(), ads.size(), ad_bias.data(), ad_vecs.data(), ad_bias.size(), d,
                 out.data());
  }
  return out.take();
}

nb::object py_murmur2_decimal(nb::object ids_) {
  const Input<uint64_t> ids("ids", ids_, 1);
  Output<uint32_t> out("ids", {ids.size()});
  {
    const nb::gil_scoped_release released;
    murmur2_decimal(ids.data(), ids.size(), out.data());
  }
  return out.take();
}

}  // namespace
}  // namespace vitrine

NB_MODULE(_native, m) {
  using namespace vitrine;
  m.def(
      "kernel", [] { return std::string(chosen().name); },
      "The instruction set of this process: \"avx512\", \"avx2\" or \"portable\".\n\n"
      "VITRINE_KERNEL forces one; ValueError where this machine does not run it.");
  m.def(
      "supported_kernels",
      [] {
        std::vector<std::string> names;
        for (const Kernels* table : supported()) names.emplace_back(table->name);
        return names;
      },
      "The instruction sets that this machine runs, best first.");
  m.def("hamming_topk", &py_hamming_topk, "codes"_a.none(), "queries"_a.none(), "k"_a, "threads"_a = 1, nb::kw_only(),
        "kernel"_a = nb::none(),
        "Exact k nearest codes by Hamming distance.\n\n"
        "codes: (words, n) uint64, word-major; queries: (q, words) uint64.\n"
        "Returns rows and distances, both (q, min(k, n)) uint32, nearest first; equal distances: the lower row.");
  m.def("match_topk", &py_match_topk, "user_bias"_a.none(), "user_vecs"_a.none(), "user_indptr"_a.none(),
        "user_crowds"_a.none(), "crowd_indptr"_a.none(), "posting_ads"_a.none(), "posting_bids"_a.none(),
        "ad_bias"_a.none(), "ad_vecs"_a.none(), "k"_a, "threads"_a = 1, nb::kw_only(), "kernel"_a = nb::none(),
        "Each user's k most valuable ads over all eligible pairs, by brute force.\n\n"
        "user_bias: (users,), user_vecs: (users, d), ad_bias: (ads,), ad_vecs: (ads, d), all float32: the towers.\n"
        "user_indptr: (users + 1,) int64 into user_crowds: uint32 crowd ordinals, ascending within a user.\n"
        "crowd_indptr: (crowds + 1,) int64 into posting_ads: uint32 ad ordinals, and posting_bids: float32, finite.\n"
        "Returns counts (users,) int32; ads uint32, values float32, crowds uint32 and bids float32, all (users, k),\n"
        "most valuable first and zero beyond a user's count; eligible (users,) uint64, the (crowd, ad) pairs read.\n"
        "An ad's value is its greatest bid in a shared crowd times its pCTR; equal bids: the lower crowd, equal\n"
        "values: the lower ad. The pCTR has the bits of `tower_pctr`.");
  m.def("tower_pctr", &py_tower_pctr, "user_bias"_a, "user_vec"_a.none(), "ads"_a.none(), "ad_bias"_a.none(),
        "ad_vecs"_a.none(), nb::kw_only(), "kernel"_a = nb::none(),
        "Click probability of one user on many ads: sigmoid(user_bias + ad_bias + <user_vec, ad_vec>).\n\n"
        "user_vec: (d,) float32; ads: (n,) uint32 ordinals; ad_bias: (ads,) and ad_vecs: (ads, d) float32.\n"
        "Returns (n,) float32 in (0, 1].");
  m.def("murmur2_decimal", &py_murmur2_decimal, "ids"_a.none(),
        "Kafka's murmur2 of each id's decimal digits: (n,) uint64 -> (n,) uint32.");
}
