// Products of one query with chosen rows: re-rank codes in integers, real vectors in float32 of a fixed order.
//
// Rows lie anywhere in memory, so that those ahead are asked for early. Integer sums are exact in any order; a
// float32 product is that of tower.hpp. Included by native/isa/*.cpp alone, after tower.hpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dispatch.hpp"

namespace vitrine {
namespace {

constexpr size_t rows_ahead = 8;

inline void ask_for(const void* row, size_t bytes) {
  for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(row) + at);
}

template <class Isa, size_t Bits>
void products_of(const CoarseView& coarse, const int16_t* query, const uint32_t* rows, size_t count,
                 int32_t* products) {
  const size_t groups = coarse.width / coarse_group, bytes = coarse.width * Bits / 8;
  for (size_t i = 0; i < rows_ahead && i < count; ++i) ask_for(coarse.codes + rows[i] * bytes, bytes);
  for (size_t i = 0; i < count; ++i) {
    if (i + rows_ahead < count) {
      ask_for(coarse.codes + rows[i + rows_ahead] * bytes, bytes);
      __builtin_prefetch(coarse.factors + rows[i + rows_ahead]);
    }
    const uint8_t* row = coarse.codes + rows[i] * bytes;
    auto sum = Isa::none();
    for (size_t group = 0; group < groups; ++group) {
      if constexpr (Bits == 8) {
        sum = Isa::add_bytes(sum, query + group * coarse_group, row + group * coarse_group);
      } else {
        sum = Isa::add_nibbles(sum, query + group * coarse_group, row + group * coarse_group / 2);
      }
    }
    products[i] = Isa::total(sum);
  }
}

// A nibble is a level 0 to 15 that stands for 2 * level - 15.
template <class Isa>
void coarse_products(const CoarseView& coarse, const int16_t* query, const uint32_t* rows, size_t count,
                     int32_t* products) {
  if (coarse.bits == 8) return products_of<Isa, 8>(coarse, query, rows, count, products);
  products_of<Isa, 4>(coarse, query, rows, count, products);
  int32_t sum = 0;
  for (size_t i = 0; i < coarse.width; ++i) sum += query[i];
  for (size_t i = 0; i < count; ++i) products[i] = 2 * products[i] - 15 * sum;
}

void vector_products(const float* vectors, size_t n, size_t dim, const float* query, const uint32_t* rows,
                     size_t count, float* products) {
  const size_t padded = (dim + 7) / 8 * 8;
  for (size_t i = 0; i < rows_ahead && i < count; ++i) ask_for(vectors + rows[i] * dim, dim * sizeof(float));
  for (size_t i = 0; i < count; i += 8) {
    const size_t group = count - i < 8 ? count - i : 8;
    for (size_t j = i + rows_ahead; j < i + rows_ahead + 8 && j < count; ++j) {
      ask_for(vectors + rows[j] * dim, dim * sizeof(float));
    }
    const float* at[8];
    bool overread = true;
    for (size_t j = 0; j < 8; ++j) {
      const size_t row = rows[i + (j < group ? j : 0)];
      at[j] = vectors + row * dim;
      overread = overread && row * dim + padded <= n * dim;
    }
    const F8 sums = dot8(query, at, dim, overread);
    std::memcpy(products + i, &sums, group * sizeof(float));
  }
}

}  // namespace
}  // namespace vitrine
