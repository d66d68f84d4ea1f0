// From lists of neighbours to a graph: merge and prune, turn edges round, cap, repair. Plain code over the kernels.
//
// Every function works on a range of nodes and writes that range's rows alone, so that ranges may run anywhere; what
// it writes depends on its inputs alone. Lists are rows of nodes and distances, UINT32_MAX and 0xffff where unused.
#pragma once

#include <algorithm>
#include <cstring>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cluster.hpp"
#include "dispatch.hpp"
#include "walks.hpp"

namespace vitrine {

struct CodesView {
  const uint64_t* codes;  // [nodes][words]
  size_t nodes, words;
};

// Sorted candidates (distance << 32 | node), each once, pruned into a row.
class Pruner {
 public:
  Pruner(const Kernels& kernels, const CodesView& codes, size_t limit, uint32_t slack)
      : kernels_(kernels), codes_(codes), limit_(limit), slack_(slack), kept_(limit) {}

  std::vector<uint64_t> candidates;

  void into(uint32_t* nodes, uint16_t* distances) {
    std::sort(candidates.begin(), candidates.end());
    candidates.erase(std::unique(candidates.begin(), candidates.end()), candidates.end());
    const size_t size = kernels_.prune(codes_.codes, codes_.words, candidates.data(), candidates.size(), limit_, slack_,
                                       kept_.data());
    write(kept_.data(), size, nodes, distances);
  }

  void write(const uint64_t* entries, size_t size, uint32_t* nodes, uint16_t* distances) const {
    for (size_t i = 0; i < limit_; ++i) {
      nodes[i] = i < size ? static_cast<uint32_t>(entries[i]) : UINT32_MAX;
      if (distances) distances[i] = i < size ? static_cast<uint16_t>(entries[i] >> 32) : uint16_t{0xffff};
    }
  }

 private:
  const Kernels& kernels_;
  CodesView codes_;
  size_t limit_;
  uint32_t slack_;
  std::vector<uint64_t> kept_;
};

// The neighbours of nodes [begin, end): those of each node's lists, pruned to `degree`.
//
// list_nodes, list_distances: [lists][length]; places: [nodes][per_node], rows of them. out: [end - begin][degree].
inline void merge(const Kernels& kernels, const CodesView& codes, const uint32_t* list_nodes,
                  const uint16_t* list_distances, size_t length, const int64_t* places, size_t per_node, size_t begin,
                  size_t end, size_t degree, uint32_t slack, uint32_t* nodes, uint16_t* distances) {
  Pruner pruner(kernels, codes, degree, slack);
  constexpr size_t ahead = 4;
  for (size_t node = begin; node < end; ++node) {
    if (node + ahead < end) {
      for (size_t i = 0; i < per_node; ++i) {
        const size_t row = static_cast<size_t>(places[(node + ahead) * per_node + i]);
        for (size_t byte = 0; byte < length * 4; byte += 64) {
          __builtin_prefetch(reinterpret_cast<const char*>(list_nodes + row * length) + byte);
        }
        __builtin_prefetch(list_distances + row * length);
      }
    }
    pruner.candidates.clear();
    for (size_t i = 0; i < per_node; ++i) {
      const size_t row = static_cast<size_t>(places[node * per_node + i]) * length;
      for (size_t j = 0; j < length && list_nodes[row + j] != UINT32_MAX; ++j) {
        pruner.candidates.push_back(static_cast<uint64_t>(list_distances[row + j]) << 32 | list_nodes[row + j]);
      }
    }
    pruner.into(nodes + (node - begin) * degree, distances + (node - begin) * degree);
  }
}

// For each of nodes [begin, end) the nodes that name it, ascending: indptr [end - begin + 1] (zeroed), then sources.
inline void count_incoming(const uint32_t* forward, size_t nodes, size_t degree, size_t begin, size_t end,
                           int64_t* indptr) {
  for (size_t i = 0; i < nodes * degree; ++i) {
    if (forward[i] - begin < end - begin) ++indptr[forward[i] - begin + 1];
  }
  for (size_t i = 0; i < end - begin; ++i) indptr[i + 1] += indptr[i];
}

inline void fill_incoming(const uint32_t* forward, const uint16_t* distances, size_t nodes, size_t degree, size_t begin,
                          size_t end, const int64_t* indptr, uint32_t* sources, uint16_t* source_distances) {
  std::vector<int64_t> at(indptr, indptr + (end - begin));
  for (size_t node = 0; node < nodes; ++node) {
    for (size_t i = node * degree; i < (node + 1) * degree && forward[i] != UINT32_MAX; ++i) {
      if (forward[i] - begin >= end - begin) continue;
      const int64_t slot = at[forward[i] - begin]++;
      sources[slot] = static_cast<uint32_t>(node);
      source_distances[slot] = distances[i];
    }
  }
}

// The edges of nodes [begin, end): forward and incoming ones, nearest first, pruned where they are more than `degree`.
//
// forward, distances: [nodes][forward_degree]; indptr, sources: of these nodes alone; out: edges [end - begin][degree].
inline void cap(const Kernels& kernels, const CodesView& codes, const uint32_t* forward, const uint16_t* distances,
                size_t forward_degree, const int64_t* indptr, const uint32_t* sources, const uint16_t* source_distances,
                size_t begin, size_t end, size_t degree, size_t spare, uint32_t slack, uint32_t* edges) {
  Pruner pruner(kernels, codes, degree - spare, slack);
  std::vector<uint64_t>& candidates = pruner.candidates;
  for (size_t node = begin; node < end; ++node) {
    candidates.clear();
    for (size_t i = node * forward_degree; i < (node + 1) * forward_degree && forward[i] != UINT32_MAX; ++i) {
      candidates.push_back(static_cast<uint64_t>(distances[i]) << 32 | forward[i]);
    }
    for (int64_t i = indptr[node - begin]; i < indptr[node - begin + 1]; ++i) {
      candidates.push_back(static_cast<uint64_t>(source_distances[i]) << 32 | sources[i]);
    }
    uint32_t* row = edges + (node - begin) * degree;
    std::fill_n(row, degree, UINT32_MAX);
    std::sort(candidates.begin(), candidates.end());
    candidates.erase(std::unique(candidates.begin(), candidates.end()), candidates.end());
    if (candidates.size() <= degree - spare) {
      pruner.write(candidates.data(), candidates.size(), row, nullptr);
    } else {
      pruner.into(row, nullptr);
    }
  }
}

// Marks what `from` leads to in `reached`; returns how many became so.
inline size_t flood(const uint32_t* edges, size_t degree, uint32_t from, std::vector<bool>& reached) {
  if (reached[from]) return 0;
  std::vector<uint32_t> open{from};
  reached[from] = true;
  size_t count = 1;
  while (!open.empty()) {
    const uint32_t* row = edges + static_cast<size_t>(open.back()) * degree;
    open.pop_back();
    for (size_t i = 0; i < degree && row[i] != UINT32_MAX; ++i) {
      if (reached[row[i]]) continue;
      reached[row[i]] = true;
      open.push_back(row[i]);
      ++count;
    }
  }
  return count;
}

// The edges (source, target) without which the entries do not lead to every node: each one that they miss gets one from
// the nearest node that a walk finds for it and that has an unused slot left.
inline std::vector<std::pair<uint32_t, uint32_t>> missing_edges(const Kernels& kernels, const GraphView& graph,
                                                               size_t ef) {
  std::vector<bool> reached(graph.nodes);
  for (size_t i = 0; i < graph.entry_count; ++i) flood(graph.edges, graph.degree, graph.entries[i], reached);
  std::vector<std::pair<uint32_t, uint32_t>> added;
  std::unordered_map<uint32_t, size_t> taken;  // slots that `added` fills
  std::vector<uint32_t> nodes(ef), distances(ef);
  const auto link = [&](uint32_t source, uint32_t target) {
    const uint32_t* row = graph.edges + static_cast<size_t>(source) * graph.degree;
    const auto used = static_cast<size_t>(std::find(row, row + graph.degree, UINT32_MAX) - row);
    if (used + taken[source] >= graph.degree) return false;
    ++taken[source];
    added.emplace_back(source, target);
    return true;
  };
  uint32_t any = 0;  // below it no reached node has a slot left
  for (uint32_t node = 0; node < graph.nodes; ++node) {
    if (reached[node]) continue;
    uint32_t count = 0;
    walk(kernels, graph, {graph.codes + node * graph.words, 1, ef, 1, nullptr, nullptr, ef},
         {nodes.data(), distances.data(), &count, nullptr});
    bool linked = false;
    for (size_t i = 0; i < count && !linked; ++i) linked = link(nodes[i], node);
    while (!linked && any < graph.nodes) {
      linked = reached[any] && link(any, node);
      if (!linked) ++any;
    }
    flood(graph.edges, graph.degree, node, reached);
  }
  return added;
}

}  // namespace vitrine
