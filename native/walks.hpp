// The memory of walks, and walks over it: plain code, since the kernels may not allocate.
#pragma once

#include <algorithm>
#include <vector>

#include "dispatch.hpp"

namespace vitrine {

inline void clear_seen(SeenTable& seen, size_t slots) {
  auto& table = *static_cast<std::vector<uint32_t>*>(seen.owner);
  size_t size = 256;
  while (size < slots) size *= 2;
  if (table.size() < size) table.resize(size);
  std::fill_n(table.begin(), size, UINT32_MAX);
  seen.slots = table.data();
  seen.mask = size - 1;
  seen.count = 0;
}

inline void grow_seen(SeenTable& seen) {
  std::vector<uint32_t> nodes;
  nodes.reserve(seen.count);
  for (size_t i = 0; i <= seen.mask; ++i) {
    if (seen.slots[i] != UINT32_MAX) nodes.push_back(seen.slots[i]);
  }
  clear_seen(seen, 2 * (seen.mask + 1));
  for (const uint32_t node : nodes) {
    size_t at = seen_slot(node) & seen.mask;
    while (seen.slots[at] != UINT32_MAX) at = (at + 1) & seen.mask;
    seen.slots[at] = node;
  }
  seen.count = nodes.size();
}

// `in` without spaces: `turns` of them are made here, for all of its queries.
inline void walk(const Kernels& kernels, const GraphView& graph, WalkInput in, const WalkOutput& out) {
  struct Memory {
    std::vector<uint64_t> list, packed, entries;
    std::vector<uint32_t> pending, table;
    std::vector<uint16_t> distances;
  };
  if (!in.allowed) in.most = in.ef;
  in.turns = std::clamp<size_t>(in.turns, 1, std::clamp<size_t>(in.count, 1, max_turns));
  std::vector<Memory> memory(in.turns);
  std::vector<WalkSpace> spaces;
  for (Memory& own : memory) {
    own.list.resize(in.most + 1);
    own.packed.resize(graph.words * kernels.packed_parts);
    own.pending.resize(graph.degree);
    own.entries.resize(graph.degree);
    own.distances.resize(graph.entry_stride);
    spaces.push_back({own.list.data(), own.entries.data(), own.pending.data(), own.distances.data(), own.packed.data(),
                      {nullptr, 0, 0, &own.table}, clear_seen, grow_seen});
  }
  in.spaces = spaces.data();
  kernels.walk(graph, in, out);
}

}  // namespace vitrine
