// The Python module vitrine.native._native: arguments checked, the GIL released, kernels called.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "cluster.hpp"
#include "dispatch.hpp"
#include "graph.hpp"
#include "hamming.hpp"
#include "match.hpp"
#include "murmur2.hpp"
#include "rerank.hpp"

using namespace nanobind::literals;

namespace vitrine {
namespace {

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

nb::tuple py_hamming_rows(nb::object codes_, nb::object rows_, nb::object queries_, int64_t k_,
                          std::optional<std::string> kernel) {
  const Input<uint64_t> codes("codes", codes_, 2), queries("queries", queries_, 2);
  const Input<uint32_t> rows("rows", rows_, 1);
  const size_t n = codes.shape(0), words = codes.shape(1), count = queries.shape(0);
  const size_t k = std::min(positive("k", k_), rows.size());
  if (words > 1023) bad_value("codes: at most 1,023 words (65,472 bits) a code, got " + std::to_string(words));
  queries.expect({count, words}, "one row a query, as many words as codes has");
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i] >= n || (i && rows[i - 1] >= rows[i])) {
      bad_value("rows: must ascend and be below " + std::to_string(n) + ", but entry " + std::to_string(i) + " is " +
                std::to_string(rows[i]));
    }
  }
  const Kernels& kernels = kernels_of(kernel);
  Output<uint32_t> found("k", {count, k}), distances("k", {count, k});
  {
    const nb::gil_scoped_release released;
    hamming_rows(kernels, {codes.data(), n, words, queries.data(), count}, rows.data(), rows.size(), k, found.data(),
                 distances.data());
  }
  return nb::make_tuple(found.take(), distances.take());
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

size_t within(const char* name, int64_t value, size_t least, size_t most) {
  if (value < static_cast<int64_t>(least) || value > static_cast<int64_t>(most)) {
    bad_value(std::string(name) + ": expected " + std::to_string(least) + " to " + std::to_string(most) + ", got " +
              std::to_string(value));
  }
  return static_cast<size_t>(value);
}

// Refuses a node that is neither below `nodes` nor, where that is allowed, the mark of an unused slot.
void check_nodes(const char* name, const uint32_t* values, size_t count, size_t nodes, bool unused) {
  for (size_t i = 0; i < count; ++i) {
    if (values[i] >= nodes && !(unused && values[i] == UINT32_MAX)) {
      bad_value(std::string(name) + ": entry " + std::to_string(i) + " is " + std::to_string(values[i]) + ", but there are " +
                std::to_string(nodes) + " nodes");
    }
  }
}

nb::object py_assign_centres(nb::object codes_, nb::object centres_, int64_t fan_, std::optional<std::string> kernel) {
  const Input<uint64_t> codes("codes", codes_, 2), centres("centres", centres_, 2);
  const size_t words = codes.shape(1), n = codes.shape(0), count = within("centres", centres.shape(0), 1, 65'000);
  centres.expect({count, words}, "as many words as codes has");
  const size_t fan = within("fan", fan_, 1, std::min<size_t>(count, 64));
  const Kernels& kernels = kernels_of(kernel);
  Output<uint32_t> out("codes", {n, fan});
  {
    const nb::gil_scoped_release released;
    std::vector<uint32_t> rows(std::max(n, count));
    std::iota(rows.begin(), rows.end(), 0);
    Block block;
    block.fill(centres.data(), words, rows.data(), count);
    block.nearest(kernels, codes.data(), rows.data(), n, fan, false, [&](size_t i, const uint32_t* best, size_t) {
      for (size_t f = 0; f < fan; ++f) out.data()[i * fan + f] = best[f] & 0xffff;
    });
  }
  return out.take();
}

nb::tuple py_cluster_neighbours(nb::object codes_, nb::object members_, int64_t overlap, int64_t leaf,
                                int64_t neighbours, int64_t kept, uint64_t seed, std::optional<std::string> kernel) {
  const Input<uint64_t> codes("codes", codes_, 2);
  const Input<uint32_t> members("members", members_, 1);
  const ClusterParameters parameters{within("overlap", overlap, 1, 64), within("leaf", leaf, 2, 32'768),
                                     within("neighbours", neighbours, 1, 31), within("kept", kept, 1, 1'024), seed};
  check_nodes("members", members.data(), members.size(), codes.shape(0), false);
  const Kernels& kernels = kernels_of(kernel);
  Output<uint32_t> nodes("members", {members.size(), parameters.kept}), leaves("members", {members.size()});
  Output<uint16_t> distances("members", {members.size(), parameters.kept});
  {
    const nb::gil_scoped_release released;
    Cluster cluster(kernels, codes.data(), codes.shape(1), members.data(), members.size(), parameters);
    cluster.neighbours(members.data(), nodes.data(), distances.data(), leaves.data());
  }
  return nb::make_tuple(nodes.take(), distances.take(), leaves.take());
}

nb::tuple py_merge_lists(nb::object codes_, nb::object nodes_, nb::object distances_, nb::object places_,
                         int64_t begin_, int64_t end_, int64_t degree_, int64_t slack_,
                         std::optional<std::string> kernel) {
  const Input<uint64_t> codes("codes", codes_, 2);
  const Input<uint32_t> lists("nodes", nodes_, 2);
  const Input<uint16_t> list_distances("distances", distances_, 2);
  const Input<int64_t> places("places", places_, 2);
  const size_t n = codes.shape(0), begin = within("begin", begin_, 0, n), end = within("end", end_, begin, n);
  const size_t degree = within("degree", degree_, 1, 1'024), slack = within("slack", slack_, 100, 1'000);
  list_distances.expect({lists.shape(0), lists.shape(1)}, "the shape of nodes");
  places.expect({n, places.shape(1)}, "one row a node of codes");
  const size_t per_node = places.shape(1);
  for (size_t i = begin * per_node; i < end * per_node; ++i) {
    if (places[i] < 0 || static_cast<size_t>(places[i]) >= lists.shape(0)) {
      bad_value("places: entry " + std::to_string(i) + " is " + std::to_string(places[i]) + ", but there are " +
                std::to_string(lists.shape(0)) + " lists");
    }
    const size_t row = static_cast<size_t>(places[i]) * lists.shape(1);
    check_nodes("nodes", lists.data() + row, lists.shape(1), n, true);
  }
  const Kernels& kernels = kernels_of(kernel);
  Output<uint32_t> nodes("degree", {end - begin, degree});
  Output<uint16_t> distances("degree", {end - begin, degree});
  {
    const nb::gil_scoped_release released;
    merge(kernels, {codes.data(), n, codes.shape(1)}, lists.data(), list_distances.data(), lists.shape(1),
          places.data(), per_node, begin, end, degree, static_cast<uint32_t>(slack), nodes.data(), distances.data());
  }
  return nb::make_tuple(nodes.take(), distances.take());
}

nb::tuple py_incoming(nb::object forward_, nb::object distances_, int64_t begin_, int64_t end_) {
  const Input<uint32_t> forward("forward", forward_, 2);
  const Input<uint16_t> distances("distances", distances_, 2);
  const size_t n = forward.shape(0), degree = forward.shape(1);
  const size_t begin = within("begin", begin_, 0, n), end = within("end", end_, begin, n);
  distances.expect({n, degree}, "the shape of forward");
  Output<int64_t> indptr("forward", {end - begin + 1});
  {
    const nb::gil_scoped_release released;
    count_incoming(forward.data(), n, degree, begin, end, indptr.data());
  }
  const auto total = static_cast<size_t>(indptr.data()[end - begin]);
  Output<uint32_t> sources("forward", {total});
  Output<uint16_t> source_distances("forward", {total});
  {
    const nb::gil_scoped_release released;
    fill_incoming(forward.data(), distances.data(), n, degree, begin, end, indptr.data(), sources.data(),
                  source_distances.data());
  }
  return nb::make_tuple(indptr.take(), sources.take(), source_distances.take());
}

nb::object py_cap_edges(nb::object codes_, nb::object forward_, nb::object distances_, nb::object indptr_,
                        nb::object sources_, nb::object source_distances_, int64_t begin_, int64_t end_,
                        int64_t degree_, int64_t spare_, int64_t slack_, std::optional<std::string> kernel) {
  const Input<uint64_t> codes("codes", codes_, 2);
  const Input<uint32_t> forward("forward", forward_, 2), sources("sources", sources_, 1);
  const Input<uint16_t> distances("distances", distances_, 2), source_distances("source_distances", source_distances_, 1);
  const Input<int64_t> indptr("indptr", indptr_, 1);
  const size_t n = codes.shape(0), begin = within("begin", begin_, 0, n), end = within("end", end_, begin, n);
  const size_t degree = within("degree", degree_, 2, 1'024), slack = within("slack", slack_, 100, 1'000);
  const size_t spare = within("spare", spare_, 0, degree - 1), width = forward.shape(1);
  forward.expect({n, width}, "one row a node of codes");
  distances.expect({n, width}, "the shape of forward");
  indptr.expect({end - begin + 1}, "one entry a node from begin to end, and one");
  source_distances.expect({sources.size()}, "one a source");
  check_nodes("forward", forward.data() + begin * width, (end - begin) * width, n, true);
  check_ends("indptr", indptr, sources.size());
  for (size_t i = 0; i < end - begin; ++i) check_part("indptr", indptr, i, sources.size());
  check_nodes("sources", sources.data(), sources.size(), n, false);
  const Kernels& kernels = kernels_of(kernel);
  Output<uint32_t> edges("degree", {end - begin, degree});
  {
    const nb::gil_scoped_release released;
    cap(kernels, {codes.data(), n, codes.shape(1)}, forward.data(), distances.data(), width, indptr.data(),
        sources.data(), source_distances.data(), begin, end, degree, spare, static_cast<uint32_t>(slack), edges.data());
  }
  return edges.take();
}

// A graph's arrays, checked once and kept alive; searched from any thread.
class Graph {
 public:
  Graph(nb::object codes, nb::object edges, nb::object entries)
      : codes_("codes", codes, 2), edges_("edges", edges, 2), entries_("entries", entries, 1) {
    const size_t n = codes_.shape(0), words = codes_.shape(1);
    edges_.expect({n, edges_.shape(1)}, "one row a node of codes");
    if (entries_.size() == 0 || entries_.size() > 32'768) bad_value("entries: expected 1 to 32,768 of them");
    check_nodes("edges", edges_.data(), edges_.size(), n, true);
    check_nodes("entries", entries_.data(), entries_.size(), n, false);
    entry_codes_.fill(codes_.data(), words, entries_.data(), entries_.size());
    view_ = {codes_.data(),  edges_.data(),       n,                words,
             edges_.shape(1), entries_.data(), entry_codes_.data(), entries_.size(), entry_codes_.stride()};
  }

  nb::tuple walk(nb::object queries_, int64_t ef_, int64_t turns_, int64_t threads_, std::optional<nb::object> allowed_,
                 int64_t most_, std::optional<std::string> kernel) const {
    const Input<uint64_t> queries("queries", queries_, 2);
    std::optional<Input<bool>> allowed;
    if (allowed_) {
      allowed.emplace("allowed", *allowed_, 1);
      allowed->expect({view_.nodes}, "one entry a node");
    }
    const size_t count = queries.shape(0);
    queries.expect({count, view_.words}, "one row a query, as many words as codes has");
    const size_t ef = std::min(within("ef", ef_, 1, 1'000'000), view_.nodes), turns = within("turns", turns_, 1, max_turns);
    const size_t threads = std::min(positive("threads", threads_), std::max<size_t>(count, 1));
    const size_t most = std::clamp(within("most", most_, 0, 1'000'000), ef, view_.nodes);
    const auto* allowed_nodes = allowed ? reinterpret_cast<const uint8_t*>(allowed->data()) : nullptr;
    const Kernels& kernels = kernels_of(kernel);
    Output<uint32_t> nodes("ef", {count, ef}), distances("ef", {count, ef}), counts("ef", {count}), scored("ef", {count});
    {
      const nb::gil_scoped_release released;
      on_threads(threads, [&](size_t worker) {
        const size_t begin = count * worker / threads, end = count * (worker + 1) / threads;
        vitrine::walk(kernels, view_,
                      {queries.data() + begin * view_.words, end - begin, ef, turns, nullptr, allowed_nodes, most},
                      {nodes.data() + begin * ef, distances.data() + begin * ef, counts.data() + begin,
                       scored.data() + begin});
      });
    }
    return nb::make_tuple(nodes.take(), distances.take(), counts.take(), scored.take());
  }

  nb::object missing_edges(int64_t ef_, std::optional<std::string> kernel) const {
    const size_t ef = std::min(within("ef", ef_, 1, 1'000'000), view_.nodes);
    const Kernels& kernels = kernels_of(kernel);
    std::vector<std::pair<uint32_t, uint32_t>> added;
    {
      const nb::gil_scoped_release released;
      added = vitrine::missing_edges(kernels, view_, ef);
    }
    Output<uint32_t> edges("edges", {added.size(), 2});
    for (size_t i = 0; i < added.size(); ++i) {
      edges.data()[2 * i] = added[i].first;
      edges.data()[2 * i + 1] = added[i].second;
    }
    return edges.take();
  }

 private:
  Input<uint64_t> codes_;
  Input<uint32_t> edges_, entries_;
  Block entry_codes_;
  GraphView view_{};
};

// The flips of a turn, for vectors of `dim` dimensions.
size_t checked_width(const char* name, const Input<float>& flips, size_t dim) {
  const size_t width = (dim + coarse_group - 1) / coarse_group * coarse_group;
  if (dim == 0 || width > size_t{1} << 16) {
    bad_value(std::string(name) + ": expected 1 to 65,536 dimensions, got " + std::to_string(dim));
  }
  flips.expect({2, width}, "two rounds, as wide as the vectors up to a multiple of 64");
  return width;
}

nb::object py_hash_encode(nb::object vectors_, nb::object mean_, nb::object rotation_, nb::object flips_,
                          std::optional<std::string> kernel) {
  const Input<float> vectors("vectors", vectors_, 2), mean("mean", mean_, 1), rotation("rotation", rotation_, 2);
  const Input<int32_t> flips("flips", flips_, 3);
  const size_t n = vectors.shape(0), dim = mean.size(), stride = rotation.shape(1), width = flips.shape(1);
  const size_t blocks = flips.shape(2), size = width * blocks;
  vectors.expect({n, dim}, "as wide as mean");
  rotation.expect({dim, stride}, "as high as mean");
  flips.expect({hash_rounds, width, blocks}, "three rounds");
  if (stride % 32) bad_value("rotation: expected a multiple of 32 columns, got " + std::to_string(stride));
  if (!std::has_single_bit(width) || width < 64 || width > 1024 || stride > width || blocks == 0) {
    bad_value("flips: expected a width that is a power of two from 64 to 1,024, at least rotation's columns");
  }
  const Kernels& kernels = kernels_of(kernel);
  Output<uint64_t> codes("vectors", {size / 64, n});
  {
    const nb::gil_scoped_release released;
    const int grid = 29 - (3 * std::countr_zero(width) + 1) / 2;  // 3 * 2^grid * width^1.5 is below 2^31
    const HashView hash{rotation.data(), flips.data(), dim, stride, width, blocks, std::ldexp(1.0, grid)};
    std::vector<double> centred(dim), sums(stride);
    std::vector<uint32_t> turned(size);
    std::vector<uint64_t> code(size / 64);
    for (size_t i = 0; i < n; ++i) {
      for (size_t j = 0; j < dim; ++j) centred[j] = on_grid(vectors[i * dim + j]) - on_grid(mean[j]);
      kernels.hash_code(hash, centred.data(), sums.data(), turned.data(), code.data());
      for (size_t word = 0; word < code.size(); ++word) codes.data()[word * n + i] = code[word];
    }
  }
  return codes.take();
}

nb::tuple py_coarse_encode(nb::object vectors_, nb::object flips_, int64_t bits_) {
  const Input<float> vectors("vectors", vectors_, 2), flips("flips", flips_, 2);
  const size_t n = vectors.shape(0), dim = vectors.shape(1), width = checked_width("vectors", flips, dim);
  if (bits_ != 4 && bits_ != 8) bad_value("bits: expected 4 or 8, got " + std::to_string(bits_));
  const auto bits = static_cast<size_t>(bits_);
  Output<uint8_t> codes("vectors", {n, width * bits / 8});
  Output<float> factors("vectors", {n});
  {
    const nb::gil_scoped_release released;
    Turn turn(dim, width, flips.data());
    for (size_t i = 0; i < n; ++i) {
      turn(vectors.data() + i * dim);
      quantize(turn, bits, codes.data() + i * (width * bits / 8), factors.data() + i);
    }
  }
  return nb::make_tuple(codes.take(), factors.take());
}

// Candidates whose rows are below n up to each query's first unused place.
Candidates checked_candidates(const Input<float>& queries, const Input<uint32_t>& rows, size_t n) {
  const size_t count = queries.shape(0), pool = rows.shape(1);
  rows.expect({count, pool}, "one row a query");
  const Candidates in{queries.data(), count, queries.shape(1), rows.data(), pool};
  for (size_t q = 0; q < count; ++q) {
    for (size_t i = 0, used = in.used(q); i < used; ++i) {
      if (rows[q * pool + i] >= n) {
        bad_value("rows: entry " + std::to_string(i) + " of query " + std::to_string(q) + " is " +
                  std::to_string(rows[q * pool + i]) + ", but there are " + std::to_string(n));
      }
    }
  }
  return in;
}

template <class Make>
nb::tuple best_of(const Candidates& in, size_t k, size_t threads, const Make& make) {
  Output<uint32_t> rows("k", {in.count, k});
  Output<float> scores("k", {in.count, k});
  {
    const nb::gil_scoped_release released;
    best_candidates(in, k, threads, make, rows.data(), scores.data());
  }
  return nb::make_tuple(rows.take(), scores.take());
}

// Re-rank codes and candidates, checked.
struct CoarseArguments {
  CoarseArguments(nb::object codes_, nb::object factors_, nb::object flips_, nb::object queries_, nb::object rows_)
      : codes("codes", codes_, 2), factors("factors", factors_, 1), flips("flips", flips_, 2),
        queries("queries", queries_, 2), rows("rows", rows_, 2) {
    const size_t n = factors.size(), width = checked_width("queries", flips, queries.shape(1));
    view = {codes.data(), factors.data(), width, codes.shape(1) == width ? size_t{8} : size_t{4}};
    codes.expect({n, width * view.bits / 8}, "one row a factor, of 4 or 8 bits a dimension");
    in = checked_candidates(queries, rows, n);
  }
  Input<uint8_t> codes;
  Input<float> factors, flips, queries;
  Input<uint32_t> rows;
  CoarseView view{};
  Candidates in{};
};

nb::object py_coarse_scores(nb::object codes, nb::object factors, nb::object flips, nb::object queries,
                            nb::object rows, int64_t threads_, std::optional<std::string> kernel) {
  const CoarseArguments given(codes, factors, flips, queries, rows);
  const size_t threads = positive("threads", threads_), pool = given.in.pool;
  const Kernels& kernels = kernels_of(kernel);
  Output<float> scores("rows", {given.in.count, pool});
  {
    const nb::gil_scoped_release released;
    for_each_query(
        given.in, threads, [&] { return CoarseScorer(kernels, given.view, given.flips.data(), given.in); },
        [&](CoarseScorer& scorer, size_t q, size_t used) { scorer(q, used, scores.data() + q * pool); });
  }
  return scores.take();
}

nb::tuple py_coarse_topk(nb::object codes, nb::object factors, nb::object flips, nb::object queries, nb::object rows,
                         int64_t k, int64_t threads, std::optional<std::string> kernel) {
  const CoarseArguments given(codes, factors, flips, queries, rows);
  const Kernels& kernels = kernels_of(kernel);
  return best_of(given.in, positive("k", k), positive("threads", threads),
                 [&] { return CoarseScorer(kernels, given.view, given.flips.data(), given.in); });
}

nb::tuple py_vector_topk(nb::object vectors_, nb::object queries_, nb::object rows_, int64_t k, int64_t threads,
                         std::optional<std::string> kernel) {
  const Input<float> vectors("vectors", vectors_, 2), queries("queries", queries_, 2);
  const Input<uint32_t> rows("rows", rows_, 2);
  const size_t n = vectors.shape(0);
  queries.expect({queries.shape(0), vectors.shape(1)}, "as wide as vectors");
  const Candidates in = checked_candidates(queries, rows, n);
  const Kernels& kernels = kernels_of(kernel);
  return best_of(in, positive("k", k), positive("threads", threads),
                 [&] { return VectorScorer(kernels, vectors.data(), n, in); });
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

namespace vitrine {
void bind_list_reader(nb::module_& m);  // list_bindings.cpp
void bind_match_index(nb::module_& m);  // match_bindings.cpp
void bind_members(nb::module_& m);  // members_bindings.cpp
}

NB_MODULE(_native, m) {
  using namespace vitrine;
  bind_list_reader(m);
  bind_match_index(m);
  bind_members(m);
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
  m.def("hamming_rows", &py_hamming_rows, "codes"_a.none(), "rows"_a.none(), "queries"_a.none(), "k"_a, nb::kw_only(),
        "kernel"_a = nb::none(),
        "The k nearest of chosen rows to each query, by Hamming distance, exactly.\n\n"
        "codes: (n, words) uint64, row-major; rows: (m,) uint32, ascending; queries: (q, words) uint64.\n"
        "Returns rows and distances, both (q, min(k, m)) uint32, nearest first; equal distances: the lower row.");
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
  m.def("assign_centres", &py_assign_centres, "codes"_a.none(), "centres"_a.none(), "fan"_a, nb::kw_only(),
        "kernel"_a = nb::none(),
        "The `fan` nearest centres of each code, nearest first; equal distances: the lower centre.\n\n"
        "codes: (n, words) uint64 and centres: (c, words) uint64, row-major. Returns (n, fan) uint32.");
  m.def("cluster_neighbours", &py_cluster_neighbours, "codes"_a.none(), "members"_a.none(), "overlap"_a, "leaf"_a,
        "neighbours"_a, "kept"_a, "seed"_a, nb::kw_only(), "kernel"_a = nb::none(),
        "Near neighbours of each member of a cluster among its members, by overlapping leaves.\n\n"
        "codes: (n, words) uint64, row-major; members: (m,) uint32 rows of it. Each member is in at most `overlap`\n"
        "leaves of at most `leaf` members and finds its `neighbours` nearest in each.\n"
        "Returns nodes (m, kept) uint32 and distances (m, kept) uint16, by (distance, node), 2^32 - 1 and 65535 where\n"
        "there are fewer; and leaves (m,) uint32, each member's first leaf.");
  m.def("merge_lists", &py_merge_lists, "codes"_a.none(), "nodes"_a.none(), "distances"_a.none(), "places"_a.none(),
        "begin"_a, "end"_a, "degree"_a, "slack"_a, nb::kw_only(), "kernel"_a = nb::none(),
        "Each node's lists merged, and pruned by relative neighbourhood to at most `degree`, for nodes begin to end.\n\n"
        "nodes (lists, length) uint32 and distances uint16 as `cluster_neighbours` returns them; places: (n, p) int64,\n"
        "each node's rows of them. slack: 100 drops q where a kept r has d(r, q) < d(p, q), more keeps more.\n"
        "Returns nodes and distances, both (end - begin, degree).");
  m.def("incoming", &py_incoming, "forward"_a.none(), "distances"_a.none(), "begin"_a, "end"_a,
        "The edges of (n, degree) uint32 that lead to nodes begin to end, turned round: indptr (end - begin + 1,) int64,\n"
        "sources uint32, ascending within a node, and distances uint16.");
  m.def("cap_edges", &py_cap_edges, "codes"_a.none(), "forward"_a.none(), "distances"_a.none(), "indptr"_a.none(),
        "sources"_a.none(), "source_distances"_a.none(), "begin"_a, "end"_a, "degree"_a, "spare"_a, "slack"_a,
        nb::kw_only(), "kernel"_a = nb::none(),
        "Forward and incoming edges of nodes begin to end together, nearest first, pruned where there are more than\n"
        "degree - spare. Returns (end - begin, degree) uint32, 2^32 - 1 where unused.");
  nb::class_<Graph>(m, "Graph",
                    "A nearest-neighbour graph over codes; its arrays are checked once and must not change.\n\n"
                    "codes: (n, words) uint64, row-major; edges: (n, degree) uint32, 2^32 - 1 from the first unused slot\n"
                    "on; entries: (e,) uint32, the nodes that walks may begin at.")
      .def(nb::init<nb::object, nb::object, nb::object>(), "codes"_a.none(), "edges"_a.none(), "entries"_a.none())
      .def("walk", &Graph::walk, "queries"_a.none(), "ef"_a, "turns"_a = 1, "threads"_a = 1, nb::kw_only(),
           "allowed"_a = nb::none(), "most"_a = 0, "kernel"_a = nb::none(),
           "The nodes nearest to each query that a best-first search with a list of `ef` finds.\n\n"
           "queries: (q, words) uint64; turns: walks interleaved on a thread. allowed: (nodes,) bool; other nodes are\n"
           "walked through but not returned, and the list grows until it has `ef` allowed ones, to `most` nodes.\n"
           "Returns nodes and distances (q, ef) uint32, nearest first, ties by node; counts (q,) of them; and scored (q,),\n"
           "the distances computed.")
      .def("missing_edges", &Graph::missing_edges, "ef"_a, nb::kw_only(), "kernel"_a = nb::none(),
           "Edges (m, 2) uint32, source and target, without which the entries do not lead to every node; each source\n"
           "is one of the `ef` nearest to its target that has an unused slot, where there is one.");
  m.def("hash_encode", &py_hash_encode, "vectors"_a.none(), "mean"_a.none(), "rotation"_a.none(), "flips"_a.none(),
        nb::kw_only(), "kernel"_a = nb::none(),
        "Codes of unit vectors by stacked rotations of their principal directions (vitrine.ann.hashing).\n\n"
        "vectors: (n, dim), mean: (dim,), rotation: (dim, kept), all float32 and multiples of 2^-24, kept a multiple of\n"
        "32; flips: (3, width, blocks) int32, 0 or -1 where the sign turns, width a power of two from kept on.\n"
        "Returns (width * blocks / 64, n) uint64, word-major.");
  m.def("coarse_encode", &py_coarse_encode, "vectors"_a.none(), "flips"_a.none(), "bits"_a,
        "Re-rank codes of vectors (vitrine.ann.coarse).\n\n"
        "vectors: (n, dim) float32, none of them zero; flips: (2, width) float32, 1 or -1, width being dim up to a\n"
        "multiple of 64; bits: 4 or 8. Returns codes (n, width * bits / 8) uint8 and factors (n,) float32.");
  m.def("coarse_scores", &py_coarse_scores, "codes"_a.none(), "factors"_a.none(), "flips"_a.none(), "queries"_a.none(),
        "rows"_a.none(), "threads"_a = 1, nb::kw_only(), "kernel"_a = nb::none(),
        "Estimated inner products of queries (q, dim) float32 with the rows (q, p) uint32 of what `coarse_encode`\n"
        "returned. A query's rows end at 2^32 - 1. Returns (q, p) float32, 0 beyond that.");
  m.def("coarse_topk", &py_coarse_topk, "codes"_a.none(), "factors"_a.none(), "flips"_a.none(), "queries"_a.none(),
        "rows"_a.none(), "k"_a, "threads"_a = 1, nb::kw_only(), "kernel"_a = nb::none(),
        "The k of each query's rows with the best `coarse_scores`: rows uint32 and scores float32, both (q, k), best\n"
        "first, equal scores by row; 2^32 - 1 and 0 where there are fewer.");
  m.def("vector_topk", &py_vector_topk, "vectors"_a.none(), "queries"_a.none(), "rows"_a.none(), "k"_a,
        "threads"_a = 1, nb::kw_only(), "kernel"_a = nb::none(),
        "The k of each query's rows with the greatest inner product of real vectors (n, dim) float32, as `coarse_topk`.\n"
        "A product's elements are summed in the order of `tower_pctr`.");
  m.def("murmur2_decimal", &py_murmur2_decimal, "ids"_a.none(),
        "Kafka's murmur2 of each id's decimal digits: (n,) uint64 -> (n,) uint32.");
}
