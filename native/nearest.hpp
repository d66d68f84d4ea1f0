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
// below k where fewer rows are at less than 0xffff. `distances` is padded to a multiple of 32 with 0xffff.
template <class Isa>
size_t select_nearest(const uint16_t* distances, size_t rows, size_t k, uint32_t* best) {
  constexpr size_t lanes = 32, run = 64;
  uint32_t bound = 0xfffe;
  if (k < lanes && rows > lanes) {
    uint16_t minima[lanes];
    for (uint16_t& one : minima) one = 0xffff;
    for (size_t row = 0; row < rows; row += lanes) {
      for (size_t i = 0; i < lanes; ++i) minima[i] = distances[row + i] < minima[i] ? distances[row + i] : minima[i];
    }
    uint32_t low = 0;  // the least bound that k minima are within, 0xfffe where there is none
    while (low < bound) {
      const uint32_t middle = (low + bound) / 2;
      if (static_cast<size_t>(__builtin_popcount(Isa::at_most(minima, static_cast<uint16_t>(middle)))) >= k) {
        bound = middle;
      } else {
        low = middle + 1;
      }
    }
  }
  uint32_t found[run + lanes];
  size_t count = 0, kept = 0;
  const auto settle = [&] {  // the k best so far to `best`
    for (size_t i = 0; i < count; ++i) {
      const uint32_t entry = found[i];
      if (kept == k && entry >= best[kept - 1]) continue;
      size_t at = kept < k ? kept++ : k - 1;
      for (; at > 0 && best[at - 1] > entry; --at) best[at] = best[at - 1];
      best[at] = entry;
    }
    count = 0;
    if (kept == k && best[k - 1] >> 16 < bound) bound = best[k - 1] >> 16;
  };
  for (size_t row = 0; row < rows; row += lanes) {
    for (uint32_t mask = Isa::at_most(distances + row, static_cast<uint16_t>(bound)); mask; mask &= mask - 1) {
      const size_t at = row + static_cast<size_t>(__builtin_ctz(mask));
      found[count++] = static_cast<uint32_t>(distances[at]) << 16 | static_cast<uint32_t>(at);
    }
    if (count > run) settle();
  }
  settle();
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
    counts[q] = select_nearest<Isa>(of_query, block.end, k, best + q * k);
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
