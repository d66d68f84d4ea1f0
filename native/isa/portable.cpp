// Kernels for any machine: two codes a step in the compiler's 16-byte vectors (SSE2 on x86-64, NEON on arm64).
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../tower.hpp"

namespace vitrine {
namespace {

struct Isa {
  typedef uint64_t Sum __attribute__((vector_size(16)));
  using Code = Sum;
  using Query = Sum;
  static constexpr size_t lanes = 2, parts = 1, run = 31;

  static Sum minus(uint32_t bound) {
    const uint64_t x = -static_cast<uint64_t>(bound);
    return Sum{x, x};
  }
  static Code load(const uint64_t* source) {
    Code x;
    std::memcpy(&x, source, sizeof x);
    return x;
  }
  static Code load_first(const uint64_t* source, size_t) { return Code{source[0], 0}; }
  static void pack(uint64_t word, uint64_t* packed) { *packed = word; }
  static Query query(const uint64_t* packed) { return Query{*packed, *packed}; }
  // The bits of each byte, added to byte counters.
  static Sum count(Sum bytes, Code code, Query query) {
    Sum x = code ^ query;
    x = x - ((x >> 1) & 0x5555555555555555u);
    x = (x & 0x3333333333333333u) + ((x >> 2) & 0x3333333333333333u);
    return bytes + ((x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu);
  }
  static Sum widen(Sum sum, Sum bytes) {
    Sum x = (bytes & 0x00ff00ff00ff00ffu) + ((bytes >> 8) & 0x00ff00ff00ff00ffu);
    x = (x & 0x0000ffff0000ffffu) + ((x >> 16) & 0x0000ffff0000ffffu);
    return sum + ((x & 0xffffffffu) + (x >> 32));
  }
  static Sum either(Sum a, Sum b) { return a | b; }
  static unsigned negative(Sum sum) {
    return static_cast<unsigned>(sum[0] >> 63) | static_cast<unsigned>(sum[1] >> 63) << 1;
  }
  static void store(uint64_t* out, Sum sum) { std::memcpy(out, &sum, sizeof sum); }

  static void narrow(uint16_t* out, Sum sum) {
    out[0] = static_cast<uint16_t>(sum[0]);
    out[1] = static_cast<uint16_t>(sum[1]);
  }
  static uint32_t at_most(const uint16_t* distances, uint16_t bound) {
    uint32_t mask = 0;
    for (uint32_t i = 0; i < 32; ++i) mask |= static_cast<uint32_t>(distances[i] <= bound) << i;
    return mask;
  }
  // A bound that at least k of 32 are within, k at most 32: the k-th smallest of them.
  static uint16_t kth(const uint16_t* minima, size_t k) {
    uint32_t low = 0;
    for (uint32_t step = 0x8000; step; step /= 2) {
      const uint32_t mask = at_most(minima, static_cast<uint16_t>(low + step - 1));
      low += static_cast<size_t>(__builtin_popcount(mask)) < k ? step : 0;
    }
    return static_cast<uint16_t>(low);
  }
  // Rows of `size` distances that are at most `bound`, as distance << 16 | row, appended to found[0..count); their number.
  static size_t within(const uint16_t* distances, size_t size, uint16_t bound, uint32_t first, uint32_t* found,
                       size_t count) {
    for (size_t row = 0; row < size; row += 32) {
      for (uint32_t mask = at_most(distances + row, bound); mask; mask &= mask - 1) {
        const size_t at = row + static_cast<size_t>(__builtin_ctz(mask));
        found[count++] = static_cast<uint32_t>(distances[at]) << 16 | (first + static_cast<uint32_t>(at));
      }
    }
    return count;
  }
  static constexpr size_t ranked = 0;
  static void rank(const uint32_t*, size_t, size_t, uint32_t*) {}
  template <size_t Words>
  static uint32_t distance(const uint64_t* a, const uint64_t* b, size_t words) {
    const size_t stop = Words ? Words : words;
    uint64_t sum = 0;
    for (size_t word = 0; word < stop; ++word) sum += static_cast<uint64_t>(__builtin_popcountll(a[word] ^ b[word]));
    return static_cast<uint32_t>(sum);
  }

  using Products = int32_t;
  static Products none() { return 0; }
  static Products add_bytes(Products sum, const int16_t* query, const uint8_t* codes) {
    for (size_t i = 0; i < 64; ++i) {
      const int16_t level = static_cast<int8_t>(codes[i]);
      sum += int32_t{query[i]} * int32_t{level};
    }
    return sum;
  }
  static Products add_nibbles(Products sum, const int16_t* query, const uint8_t* codes) {
    int16_t levels[64];
    for (size_t i = 0; i < 32; ++i) levels[i] = codes[i] & 15;
    for (size_t i = 0; i < 32; ++i) levels[32 + i] = codes[i] >> 4;
    for (size_t i = 0; i < 64; ++i) sum += int32_t{query[i]} * int32_t{levels[i]};
    return sum;
  }
  static int32_t total(Products sum) { return sum; }

  // Products of four 7-bit levels with four weights, summed, for eight rows.
  static I8 product8(const uint8_t* codes, size_t stride, const int32_t* weights, size_t quads) {
    int32_t sums[8] = {};
    for (size_t quad = 0; quad < quads; ++quad, codes += stride) {
      int8_t weight[4];
      std::memcpy(weight, weights + quad, sizeof weight);
      for (size_t row = 0; row < 8; ++row) {
        for (size_t i = 0; i < 4; ++i) sums[row] += int32_t{codes[row * 4 + i]} * int32_t{weight[i]};
      }
    }
    I8 sum;
    std::memcpy(&sum, sums, sizeof sum);
    return sum;
  }
  static F8 bytes8(const uint8_t* source) {
    F8 out;
    for (int lane = 0; lane < 8; ++lane) out[lane] = source[lane];
    return out;
  }
  static unsigned mask8(I8 lanes) {
    unsigned mask = 0;
    for (int lane = 0; lane < 8; ++lane) mask |= static_cast<unsigned>(lanes[lane] & 1) << lane;
    return mask;
  }
};

}  // namespace
}  // namespace vitrine

#include "../gather.hpp"
#include "../nearest.hpp"
#include "../prune.hpp"
#include "../scan.hpp"
#include "../screen.hpp"
#include "../walk.hpp"
#include "../coarse.hpp"
#include "../hash.hpp"

const vitrine::Kernels vitrine::portable_kernels{"portable", Isa::parts, pack<Isa>, scan<Isa>, nearest<Isa>, walk<Isa>, prune<Isa>, Isa::distance<0>, gather<Isa>, pctr, block_bounds<Isa>, peak_below, select_bounds<Isa>, screen_rows<Isa>, coarse_products<Isa>, vector_products, hash_code};
