// Hamming distances of a query to chosen rows of row-major codes. Included by native/isa/*.cpp alone.
#pragma once

#include "dispatch.hpp"

namespace vitrine {
namespace {

template <class Isa, size_t Words>
void gather_words(const uint64_t* codes, size_t words, const uint32_t* rows, size_t count, const uint64_t* query,
                  uint32_t* distances) {
  const size_t width = Words ? Words : words;
  constexpr size_t ahead = 16;  // rows are anywhere: only asking for them early hides that
  const auto fetch = [&](size_t i) {
    const auto* code = reinterpret_cast<const char*>(codes + rows[i] * width);
    for (size_t byte = 0; byte < width * 8; byte += 64) __builtin_prefetch(code + byte);
  };
  for (size_t i = 0; i < count && i < ahead; ++i) fetch(i);
  for (size_t i = 0; i < count; ++i) {
    if (i + ahead < count) fetch(i + ahead);
    distances[i] = Isa::template distance<Words>(query, codes + rows[i] * width, words);
  }
}

template <class Isa>
void gather(const uint64_t* codes, size_t words, const uint32_t* rows, size_t count, const uint64_t* query,
            uint32_t* distances) {
  switch (words) {
    case 4: return gather_words<Isa, 4>(codes, words, rows, count, query, distances);
    case 8: return gather_words<Isa, 8>(codes, words, rows, count, query, distances);
    case 16: return gather_words<Isa, 16>(codes, words, rows, count, query, distances);
    default: return gather_words<Isa, 0>(codes, words, rows, count, query, distances);
  }
}

}  // namespace
}  // namespace vitrine
