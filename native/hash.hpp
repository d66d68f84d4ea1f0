// Codes of stacked rotations: an exact projection to few directions, then sign flips and Hadamard transforms of integers.
//
// A projection sums products of multiples of 2^-24 in float64, where no partial sum is rounded, in any order; it is
// rounded once, to integers so small that three transforms do not overflow. Included by native/isa/*.cpp alone.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dispatch.hpp"

namespace vitrine {
namespace {

// Adds `centred` times rows of 32 columns ([dim][stride]) to their sums.
inline void project32(const double* centred, const float* rotation, size_t dim, size_t stride, double* sums) {
  double sum[32] = {};
  for (size_t i = 0; i < dim; ++i) {
    const float* row = rotation + i * stride;
    const double x = centred[i];
    for (size_t j = 0; j < 32; ++j) sum[j] += x * double{row[j]};
  }
  for (size_t j = 0; j < 32; ++j) sums[j] = sum[j];
}

void hash_code(const HashView& hash, const double* centred, double* sums, uint32_t* turned, uint64_t* code) {
  for (size_t j = 0; j < hash.stride; j += 32) project32(centred, hash.rotation + j, hash.dim, hash.stride, sums + j);
  const size_t size = hash.width * hash.blocks;
  for (size_t j = 0; j < hash.width; ++j) {
    const double scaled = j < hash.stride ? sums[j] * hash.scale : 0.0;
    const auto integer = static_cast<uint32_t>(static_cast<int32_t>((scaled + 0x1.8p52) - 0x1.8p52));
    for (size_t block = 0; block < hash.blocks; ++block) turned[j * hash.blocks + block] = integer;
  }
  for (size_t round = 0; round < hash_rounds; ++round) {
    const int32_t* flips = hash.flips + round * size;  // 0, or -1 where the sign turns
    for (size_t i = 0; i < size; ++i) {
      const auto flip = static_cast<uint32_t>(flips[i]);
      turned[i] = (turned[i] ^ flip) - flip;
    }
    // Blocks lie side by side, so that every step adds runs of at least `blocks` integers.
    for (size_t step = hash.blocks; step < size; step *= 2) {
      for (size_t start = 0; start < size; start += 2 * step) {
        uint32_t *first = turned + start, *second = first + step;
        for (size_t i = 0; i < step; ++i) {
          const uint32_t a = first[i], b = second[i];
          first[i] = a + b;
          second[i] = a - b;
        }
      }
    }
  }
  for (size_t word = 0; word < size / 64; ++word) {
    uint64_t bits = 0;
    for (size_t i = 0; i < 64; ++i) bits |= static_cast<uint64_t>(~turned[word * 64 + i] >> 31) << i;
    code[word] = bits;
  }
}

}  // namespace
}  // namespace vitrine
