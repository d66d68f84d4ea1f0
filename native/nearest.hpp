// The k nearest rows of a small block, such as a leaf of the build: distances first, as u16, then a selection.
//
// Selecting by sorted insertion costs more than the distances do. Here the k-th smallest of 32 lanes' minima bounds the
// k-th distance from above; few rows are within it, and only those are looked at one by one. Included by
// native/isa/*.cpp alone.
#pragma once

#include "dispatch.hpp"
#include "scan.hpp"

namespace vitrine {
namespace {

// The k smallest of `rows` distances by (distance, row), ascending, as distance << 16 | row into best; their number,
// below k where fewer rows are at less than 0xffff. `distances` is padded to a multiple of 32 with 0xffff; none but
// 0xffff is more than `largest`.
template <class Isa>
size_t select_nearest(const uint16_t* distances, size_t rows, size_t k, uint32_t largest, uint32_t* best) {
  constexpr size_t lanes = 32, run = 256;
  uint32_t bound = largest;
  if (k < lanes && rows > lanes) {
    uint16_t minima[lanes];
    for (uint16_t& one : minima) one = 0xffff;
    for (size_t row = 0; row < rows; row += lanes) {
      for (size_t i = 0; i < lanes; ++i) minima[i] = distances[row + i] < minima[i] ? distances[row + i] : minima[i];
    }
    const uint32_t kth = Isa::kth(minima, k);
    if (kth < bound) bound = kth;
  }
  uint32_t found[run + lanes + Isa::ranked];
  size_t count = 0, kept = 0;
  for (size_t row = 0; row < rows; row += run) {
    const size_t size = rows - row < run ? (rows - row + lanes - 1) / lanes * lanes : run;
    count = Isa::within(distances + row, size, static_cast<uint16_t>(bound), static_cast<uint32_t>(row), found, count);
    if (row + run >= rows && kept == 0 && count <= Isa::ranked) {
      Isa::rank(found, count, k, best);
      return count < k ? count : k;
    }
    if (row + run < rows && count <= Isa::ranked) continue;
    for (size_t i = 0; i < count; ++i) {
      const uint32_t entry = found[i];
      if (kept == k && entry >= best[kept - 1]) continue;
      size_t at = kept < k ? kept++ : k - 1;
      for (; at > 0 && best[at - 1] > entry; --at) best[at] = best[at - 1];
      best[at] = entry;
    }
    count = 0;
    if (kept == k && best[k - 1] >> 16 < bound) bound = best[k - 1] >> 16;
  }
  return kept;
}

template <class Isa, int Queries>
void nearest_tile(const ScanBlock& block, const uint64_t* packed, const uint32_t* skip, size_t k, uint16_t* distances,
                  uint32_t* best, size_t* counts) {
  constexpr int groups = max_tile / Queries;
  constexpr size_t step = groups * Isa::lanes;
  for (size_t row = 0; row < block.end; row += step) {
    typename Isa::Sum sums[Queries][groups] = {};
    add_distances<Isa, Queries, groups, false>(block, row, 0, packed, sums);
    for (int q = 0; q < Queries; ++q) {
      for (int g = 0; g < groups; ++g) Isa::narrow(distances + q * block.stride + row + g * Isa::lanes, sums[q][g]);
    }
  }
  for (int q = 0; q < Queries; ++q) {
    uint16_t* of_query = distances + q * block.stride;
    for (size_t row = block.end; row < block.stride; ++row) of_query[row] = 0xffff;
    if (skip[q] < block.end) of_query[skip[q]] = 0xffff;
    counts[q] = select_nearest<Isa>(of_query, block.end, k, static_cast<uint32_t>(block.words * 64), best + q * k);
  }
}

template <class Isa>
void nearest(const ScanBlock& block, const uint64_t* packed, size_t tile, const uint32_t* skip, size_t k,
             uint16_t* distances, uint32_t* best, size_t* counts) {
  switch (tile) {
    case 1: return nearest_tile<Isa, 1>(block, packed, skip, k, distances, best, counts);
    case 2: return nearest_tile<Isa, 2>(block, packed, skip, k, distances, best, counts);
    default: return nearest_tile<Isa, 4>(block, packed, skip, k, distances, best, counts);
  }
}

}  // namespace
}  // namespace vitrine
