// Relative-neighbourhood pruning: of a node's candidates, those that no nearer kept one stands in front of.
//
// Included by native/isa/*.cpp alone.
#pragma once

#include <cstring>

#include "dispatch.hpp"

namespace vitrine {
namespace {

template <class Isa, size_t Words>
size_t prune_words(const uint64_t* codes, size_t words, const uint64_t* candidates, size_t count, size_t limit,
                   uint32_t slack, uint64_t* kept) {
  const size_t width = Words ? Words : words;
  constexpr size_t ahead = 8;
  for (size_t i = 0; i < count && i < ahead; ++i) {
    __builtin_prefetch(codes + static_cast<uint32_t>(candidates[i]) * width);
  }
  size_t size = 0;
  for (size_t i = 0; i < count && size < limit; ++i) {
    if (i + ahead < count) __builtin_prefetch(codes + static_cast<uint32_t>(candidates[i + ahead]) * width);
    const uint64_t* code = codes + static_cast<uint32_t>(candidates[i]) * width;
    const uint64_t far = (candidates[i] >> 32) * 100;
    bool hidden = false;
    for (size_t r = size; r-- > 0 && !hidden;) {  // the last kept are the likeliest to hide it
      const uint64_t* other = codes + static_cast<uint32_t>(kept[r]) * width;
      hidden = static_cast<uint64_t>(Isa::template distance<Words>(other, code, words)) * slack < far;
    }
    if (!hidden) kept[size++] = candidates[i];
  }
  return size;
}

template <class Isa>
size_t prune(const uint64_t* codes, size_t words, const uint64_t* candidates, size_t count, size_t limit,
             uint32_t slack, uint64_t* kept) {
  switch (words) {
    case 4: return prune_words<Isa, 4>(codes, words, candidates, count, limit, slack, kept);
    case 8: return prune_words<Isa, 8>(codes, words, candidates, count, limit, slack, kept);
    case 16: return prune_words<Isa, 16>(codes, words, candidates, count, limit, slack, kept);
    default: return prune_words<Isa, 0>(codes, words, candidates, count, limit, slack, kept);
  }
}

}  // namespace
}  // namespace vitrine
