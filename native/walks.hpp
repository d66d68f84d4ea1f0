// The memory of walks, and walks over it: plain code, since the kernels may not allocate.
#pragma once

#include <algorithm>
#include <bit>
#include <vector>

#include "dispatch.hpp"

namespace vitrine {

// Slots for the nodes that a walk has seen: few of them share one, and all stay in the nearest caches.
inline size_t seen_slots(const WalkInput& in, size_t nodes) {
  const size_t slots = in.allowed ? std::clamp(8 * in.most, 32 * in.ef, 256 * in.ef) : 32 * in.ef;
  return std::bit_ceil(std::clamp<size_t>(slots, 256, std::max<size_t>(256, 4 * nodes)));
}

// `in` without spaces: `turns` of them are made here, for all of its queries.
inline void walk(const Kernels& kernels, const GraphView& graph, WalkInput in, const WalkOutput& out) {
  struct Memory {
    std::vector<uint64_t> list, packed, entries;
    std::vector<uint32_t> pending, seen;
    std::vector<uint16_t> distances;
  };
  if (!in.allowed) in.most = in.ef;
  in.turns = std::clamp<size_t>(in.turns, 1, std::clamp<size_t>(in.count, 1, max_turns));
  // Kept by the thread: a query alone would spend a tenth of its time on getting it.
  static thread_local std::vector<Memory> memory;
  static thread_local std::vector<WalkSpace> spaces;
  if (memory.size() < in.turns) memory.resize(in.turns);
  spaces.clear();
  for (size_t turn = 0; turn < in.turns; ++turn) {
    Memory& own = memory[turn];
    own.list.resize(in.most + 1);
    own.packed.resize(graph.words * kernels.packed_parts);
    own.pending.resize(graph.degree);
    own.entries.resize(graph.degree);
    own.distances.resize(graph.entry_stride);
    own.seen.resize(seen_slots(in, graph.nodes));
    spaces.push_back({own.list.data(), own.entries.data(), own.pending.data(), own.distances.data(), own.packed.data(),
                      own.seen.data(), own.seen.size()});
  }
  in.spaces = spaces.data();
  kernels.walk(graph, in, out);
  if (in.most > (1u << 16)) memory = {};  // what one long walk took is not kept
}

}  // namespace vitrine
