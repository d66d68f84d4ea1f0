// Hamming distances of a block of word-major codes to a tile of queries, keeping those below each query's bound.
//
// One vector register holds one word of `Isa::lanes` codes, so that a code's distance is the sum down its own lane
// and no horizontal sum is needed. A sum starts at minus the bound: its sign bit is the comparison. Included by
// native/isa/*.cpp alone, each with an `Isa` of its own.
#pragma once

#include "dispatch.hpp"

namespace vitrine {
namespace {

// The first `left` rows from `row` on, of which some are below their bounds: sums are distance minus bound.
template <class Isa, int Queries, int Groups>
__attribute__((noinline, cold)) void collect(const uint64_t (&sums)[Queries][Groups * Isa::lanes], size_t row,
                                             size_t left, const uint32_t* bounds, uint64_t* hits, size_t hit_stride,
                                             size_t* counts) {
  for (int q = 0; q < Queries; ++q) {
    uint64_t* out = hits + q * hit_stride;
    size_t count = counts[q];
    for (size_t lane = 0; lane < left; ++lane) {
      const uint64_t sum = sums[q][lane];
      out[count] = (sum + bounds[q]) << 32 | (row + lane);
      count += sum >> 63;
    }
    counts[q] = count;
  }
}

// The distances of `Groups` registers of rows from `row` to `Queries` queries, added to `sums`; with Tail, one register
// of which `left` are rows.
template <class Isa, int Queries, int Groups, bool Tail>
__attribute__((always_inline)) inline void add_distances(const ScanBlock& block, size_t row, size_t left,
                                                         const uint64_t* packed,
                                                         typename Isa::Sum (&sums)[Queries][Groups]) {
  const auto add_word = [&](auto& into, size_t word) __attribute__((always_inline)) {
    typename Isa::Code codes[Groups];
    const uint64_t* source = block.codes + word * block.stride + row;
    for (int g = 0; g < Groups; ++g) {
      codes[g] = Tail ? Isa::load_first(source, left) : Isa::load(source + g * Isa::lanes);
    }
    for (int q = 0; q < Queries; ++q) {
      const auto query = Isa::query(packed + (word * Queries + q) * Isa::parts);
      for (int g = 0; g < Groups; ++g) into[q][g] = Isa::count(into[q][g], codes[g], query);
    }
  };
  if constexpr (Isa::run == 0) {
    for (size_t word = 0; word < block.words; ++word) add_word(sums, word);
  } else {
    // Byte counters, widened before they can overflow.
    for (size_t word = 0; word < block.words;) {
      typename Isa::Sum bytes[Queries][Groups] = {};
      const size_t stop = block.words - word < Isa::run ? block.words : word + Isa::run;
      for (; word < stop; ++word) add_word(bytes, word);
      for (int q = 0; q < Queries; ++q) {
        for (int g = 0; g < Groups; ++g) sums[q][g] = Isa::widen(sums[q][g], bytes[q][g]);
      }
    }
  }
}

// `Groups` registers of rows from `row` against `Queries` queries; with Tail, one register of which `left` are rows.
template <class Isa, int Queries, int Groups, bool Tail>
__attribute__((always_inline)) inline void scan_rows(const ScanBlock& block, size_t row, size_t left,
                                                     const uint64_t* packed, const uint32_t* bounds, uint64_t* hits,
                                                     size_t hit_stride, size_t* counts) {
  typename Isa::Sum sums[Queries][Groups];
  for (int q = 0; q < Queries; ++q) {
    for (int g = 0; g < Groups; ++g) sums[q][g] = Isa::minus(bounds[q]);
  }
  add_distances<Isa, Queries, Groups, Tail>(block, row, left, packed, sums);

  typename Isa::Sum any = sums[0][0];
  for (int i = 1; i < Queries * Groups; ++i) any = Isa::either(any, sums[i / Groups][i % Groups]);
  if (__builtin_expect(Isa::negative(any) == 0, 1)) return;
  uint64_t lanes[Queries][Groups * Isa::lanes];  // out of the registers only here
  for (int q = 0; q < Queries; ++q) {
    for (int g = 0; g < Groups; ++g) Isa::store(lanes[q] + g * Isa::lanes, sums[q][g]);
  }
  collect<Isa, Queries, Groups>(lanes, row, Tail ? left : Groups * Isa::lanes, bounds, hits, hit_stride, counts);
}

template <class Isa, int Queries>
void scan_tile(const ScanBlock& block, const uint64_t* packed, const uint32_t* bounds, uint64_t* hits,
               size_t hit_stride, size_t* counts) {
  constexpr int groups = max_tile / Queries;  // eight sums at a time, whatever the tile
  size_t row = block.begin;
  for (; row + groups * Isa::lanes <= block.end; row += groups * Isa::lanes) {
    scan_rows<Isa, Queries, groups, false>(block, row, 0, packed, bounds, hits, hit_stride, counts);
  }
  for (; row < block.end; row += Isa::lanes) {
    const size_t left = block.end - row;
    if (left >= Isa::lanes) {
      scan_rows<Isa, Queries, 1, false>(block, row, 0, packed, bounds, hits, hit_stride, counts);
    } else {
      scan_rows<Isa, Queries, 1, true>(block, row, left, packed, bounds, hits, hit_stride, counts);
    }
  }
}

template <class Isa>
void scan(const ScanBlock& block, const uint64_t* packed, size_t tile, const uint32_t* bounds, uint64_t* hits,
          size_t hit_stride, size_t* counts) {
  switch (tile) {
    case 1: return scan_tile<Isa, 1>(block, packed, bounds, hits, hit_stride, counts);
    case 2: return scan_tile<Isa, 2>(block, packed, bounds, hits, hit_stride, counts);
    case 4: return scan_tile<Isa, 4>(block, packed, bounds, hits, hit_stride, counts);
    default: return scan_tile<Isa, max_tile>(block, packed, bounds, hits, hit_stride, counts);
  }
}

template <class Isa>
void pack(const uint64_t* queries, size_t tile, size_t words, uint64_t* packed) {
  for (size_t word = 0; word < words; ++word) {
    for (size_t q = 0; q < tile; ++q) {
      Isa::pack(queries[q * words + word], packed + (word * tile + q) * Isa::parts);
    }
  }
}

}  // namespace
}  // namespace vitrine
