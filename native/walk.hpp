// Best-first search of a nearest-neighbour graph over codes.
//
// A walk keeps the `ef` nearest nodes seen so far, ordered by (distance, node), and expands the nearest that is not yet
// expanded until none is left. Nodes that are not allowed (deleted, or filtered out) are walked through like any other
// but not counted, so that the list grows until it has `ef` allowed ones, or is full.
//
// A step ends by asking for the memory that the next one begins with: a row of edges, or the codes of neighbours.
// Several walks take turns on one thread, so that each one's misses pass while the others compute. The order is total
// and no step depends on timing, so a query's answer is the same alone, in a batch and on every instruction set.
// Included by native/isa/*.cpp alone.
#pragma once

#include <cstring>
#include <new>

#include "dispatch.hpp"
#include "nearest.hpp"

namespace vitrine {
namespace {

template <class Isa, size_t Words>
class Walk {
 public:
  Walk(const GraphView& graph, const WalkInput& in, WalkSpace& space)
      : graph_(graph), ef_(in.ef), most_(in.most), alone_(in.turns == 1), allowed_(in.allowed), space_(space), list_(space.list) {}

  // Starts at the entries nearest to `query`; `number` is the caller's name for it.
  void begin(const uint64_t* query, size_t number) {
    query_ = query;
    number_ = number;
    scored_ = 0;
    length_ = next_ = waiting_ = permitted_ = 0;
    std::memset(space_.seen, 0xff, space_.seen_slots * sizeof *space_.seen);
    for (size_t word = 0; word < graph_.words; ++word) Isa::pack(query[word], space_.packed + word * Isa::parts);
    const ScanBlock block{graph_.entry_codes, graph_.entry_stride, graph_.words, 0, graph_.entry_count};
    constexpr size_t starts = 8;
    uint32_t best[starts];
    const uint32_t skip = UINT32_MAX;
    size_t found = 0;
    nearest_tile<Isa, 1>(block, space_.packed, &skip, ef_ < starts ? ef_ : starts, space_.distances, best, &found);
    for (size_t i = 0; i < found; ++i) {
      const uint32_t node = graph_.entries[best[i] & 0xffff];
      if (fresh(node)) offer(static_cast<uint64_t>(best[i] >> 16) << 33 | static_cast<uint64_t>(node) << 1);
    }
    choose();
  }

  // Half of an expansion; false once there is nothing left to expand.
  bool step() {
    if (waiting_) {
      score();
    } else {
      expand();
    }
    return waiting_ || choose();
  }

  size_t number() const { return number_; }
  size_t scored() const { return scored_; }

  // The allowed nodes of the list; their number.
  size_t results(uint32_t* nodes, uint32_t* distances) const {
    size_t count = 0;
    for (size_t i = 0; i < length_; ++i) {
      if (!allowed(list_[i])) continue;
      nodes[count] = static_cast<uint32_t>(list_[i] >> 1);
      distances[count++] = static_cast<uint32_t>(list_[i] >> 33);
    }
    return count;
  }

 private:
  // Chooses the nearest node that is not expanded and asks for its row; false where there is none.
  bool choose() {
    while (next_ < length_ && (list_[next_] & 1)) ++next_;
    if (next_ >= length_) return false;
    list_[next_] |= 1;
    chosen_ = static_cast<uint32_t>(list_[next_] >> 1);
    fetch_row(chosen_);
    return true;
  }

  void fetch_row(size_t node) const {
    const auto* row = reinterpret_cast<const char*>(graph_.edges + node * graph_.degree);
    for (size_t byte = 0; byte < graph_.degree * 4; byte += 64) __builtin_prefetch(row + byte);
  }

  // The chosen node's neighbours that were not seen before; asks for their codes.
  void expand() {
    const uint32_t* row = graph_.edges + chosen_ * graph_.degree;
    for (size_t i = 0; i < graph_.degree && row[i] != UINT32_MAX; ++i) {
      space_.pending[waiting_] = row[i];
      waiting_ += fresh(row[i]);
    }
    for (size_t i = 0; i < waiting_; ++i) {
      const auto* code = reinterpret_cast<const char*>(graph_.codes + space_.pending[i] * words());
      for (size_t byte = 0; byte < words() * 8; byte += 64) __builtin_prefetch(code + byte);
    }
  }

  // Distances of the nodes that `expand` found: all of them first, since a branch on one would wait for its code.
  void score() {
    uint64_t* entries = space_.entries;
    for (size_t i = 0; i < waiting_; ++i) {
      const uint32_t node = space_.pending[i];
      const uint32_t distance = Isa::template distance<Words>(query_, graph_.codes + node * words(), graph_.words);
      entries[i] = static_cast<uint64_t>(distance) << 33 | static_cast<uint64_t>(node) << 1;
    }
    for (size_t i = 0; i < waiting_; ++i) offer(entries[i]);
    scored_ += waiting_;
    waiting_ = 0;
  }

  size_t words() const { return Words ? Words : graph_.words; }
  bool allowed(uint64_t entry) const { return !allowed_ || allowed_[static_cast<uint32_t>(entry >> 1)]; }

  // Entries are distance << 33 | node << 1 | expanded, so that their order is (distance, node).
  void offer(uint64_t entry) {
    const bool full = permitted_ == ef_ || length_ == most_;
    if (full && entry >= list_[length_ - 1]) return;
    const uint64_t* low = list_;
    for (size_t left = length_; left > 0;) {  // the first above the entry, without a branch
      const size_t half = left / 2;
      const bool above = low[half] > entry;
      low = above ? low : low + half + 1;
      left = above ? half : left - half - 1;
    }
    const auto at = static_cast<size_t>(low - list_);
    // A node that the table forgot comes a second time.
    if ((at > 0 && list_[at - 1] == entry) || (at < length_ && list_[at] == (entry | 1))) return;
    if (full && (length_ == most_ || allowed(entry))) permitted_ -= allowed(list_[--length_]);
    permitted_ += allowed(entry);
    std::memmove(list_ + at + 1, list_ + at, (length_ - at) * sizeof entry);
    ++length_;
    list_[at] = entry;
    if (at < next_) next_ = at;
    if (alone_ && at < next_ + 2) fetch_row(static_cast<uint32_t>(entry >> 1));  // it may be the next
    if (allowed_ && permitted_ == ef_) {  // what is farther than the last allowed one can lead to no result
      while (!allowed(list_[length_ - 1])) --length_;
    }
  }

  // Whether `node` was not seen before, as far as its slot remembers; notes it there. A slot holds one node, the last:
  // to look is one load and no branch, and what was forgotten is scored again and found to be in the list already.
  bool fresh(uint32_t node) {
    uint32_t& slot = space_.seen[(node * 0x9e3779b1u >> 7) & (space_.seen_slots - 1)];
    const bool fresh = slot != node;
    slot = node;
    return fresh;
  }

  const GraphView& graph_;
  size_t ef_, most_;
  bool alone_;  // no other walk computes while this one waits
  const uint8_t* allowed_;
  WalkSpace& space_;
  uint64_t* list_;
  const uint64_t* query_ = nullptr;
  size_t number_ = 0, length_ = 0, permitted_ = 0, next_ = 0, waiting_ = 0, scored_ = 0;
  size_t chosen_ = 0;
};

template <class Isa, size_t Words>
void walk_words(const GraphView& graph, const WalkInput& in, const WalkOutput& out) {
  constexpr size_t most = max_turns;
  alignas(Walk<Isa, Words>) unsigned char memory[most * sizeof(Walk<Isa, Words>)];
  auto* walks = reinterpret_cast<Walk<Isa, Words>*>(memory);
  Walk<Isa, Words>* active[most];
  size_t started = 0, running = 0;
  const auto start = [&](Walk<Isa, Words>& walk) {
    walk.begin(in.queries + started * graph.words, started);
    ++started;
  };
  for (; running < in.turns && started < in.count; ++running) {
    active[running] = new (walks + running) Walk<Isa, Words>(graph, in, in.spaces[running]);
    start(*active[running]);
  }
  while (running) {
    for (size_t i = 0; i < running;) {
      Walk<Isa, Words>& walk = *active[i];
      if (walk.step()) {
        ++i;
        continue;
      }
      const size_t first = walk.number() * in.ef;
      out.counts[walk.number()] = static_cast<uint32_t>(walk.results(out.nodes + first, out.distances + first));
      if (out.scored) out.scored[walk.number()] = static_cast<uint32_t>(walk.scored());
      if (started < in.count) {
        start(walk);
        ++i;
      } else {
        active[i] = active[--running];
      }
    }
  }
}

template <class Isa>
void walk(const GraphView& graph, const WalkInput& in, const WalkOutput& out) {
  switch (graph.words) {
    case 4: return walk_words<Isa, 4>(graph, in, out);
    case 8: return walk_words<Isa, 8>(graph, in, out);
    case 16: return walk_words<Isa, 16>(graph, in, out);
    default: return walk_words<Isa, 0>(graph, in, out);
  }
}

}  // namespace
}  // namespace vitrine
