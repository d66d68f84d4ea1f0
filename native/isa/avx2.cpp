// Kernels for AVX2: four codes a step; a byte's bits are two look-ups of nibbles (Mula's pshufb popcount).
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "../tower.hpp"

namespace vitrine {
namespace {

struct Isa {
  using Sum = __m256i;
  // Nibbles apart: split once a code and once a query, not once a pair.
  struct Nibbles {
    __m256i low, high;
  };
  using Code = Nibbles;
  using Query = Nibbles;
  static constexpr size_t lanes = 4, parts = 2, run = 31;

  static Sum minus(uint32_t bound) { return _mm256_set1_epi64x(-static_cast<int64_t>(bound)); }
  static Code split(__m256i x) {
    const __m256i nibble = _mm256_set1_epi8(0x0f);
    return {_mm256_and_si256(x, nibble), _mm256_and_si256(_mm256_srli_epi64(x, 4), nibble)};
  }
  static Code load(const uint64_t* source) {
    return split(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
  }
  static Code load_first(const uint64_t* source, size_t left) {
    const __m256i mask =
        _mm256_cmpgt_epi64(_mm256_set1_epi64x(static_cast<int64_t>(left)), _mm256_setr_epi64x(0, 1, 2, 3));
    return split(_mm256_maskload_epi64(reinterpret_cast<const long long*>(source), mask));
  }
  static void pack(uint64_t word, uint64_t* packed) {
    packed[0] = word & 0x0f0f0f0f0f0f0f0fu;
    packed[1] = (word >> 4) & 0x0f0f0f0f0f0f0f0fu;
  }
  static Query query(const uint64_t* packed) {
    return {_mm256_set1_epi64x(static_cast<int64_t>(packed[0])), _mm256_set1_epi64x(static_cast<int64_t>(packed[1]))};
  }
  static Sum count(Sum bytes, Code code, Query query) {
    const __m256i bits = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                          0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i low = _mm256_shuffle_epi8(bits, _mm256_xor_si256(code.low, query.low));
    const __m256i high = _mm256_shuffle_epi8(bits, _mm256_xor_si256(code.high, query.high));
    return _mm256_add_epi8(bytes, _mm256_add_epi8(low, high));
  }
  static Sum widen(Sum sum, Sum bytes) {
    return _mm256_add_epi64(sum, _mm256_sad_epu8(bytes, _mm256_setzero_si256()));
  }
  static Sum either(Sum a, Sum b) { return _mm256_or_si256(a, b); }
  static unsigned negative(Sum sum) {
    return static_cast<unsigned>(_mm256_movemask_pd(_mm256_castsi256_pd(sum)));
  }
  static void store(uint64_t* out, Sum sum) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), sum); }

  static void narrow(uint16_t* out, Sum sum) {
    uint64_t lane[lanes];
    store(lane, sum);
    for (size_t i = 0; i < lanes; ++i) out[i] = static_cast<uint16_t>(lane[i]);
  }
  static uint32_t at_most(const uint16_t* distances, uint16_t bound) {
    const __m256i limit = _mm256_set1_epi16(static_cast<int16_t>(bound));
    const auto within = [&](const uint16_t* sixteen) {
      const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sixteen));
      return _mm256_cmpeq_epi16(_mm256_min_epu16(x, limit), x);
    };
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(within(distances), within(distances + 16)), 0xd8);
    return static_cast<uint32_t>(_mm256_movemask_epi8(bytes));
  }
  // A bound that at least k of 32 are within, k at most 32: the k-th smallest of them, or of the smaller halves of pairs.
  static uint16_t kth(const uint16_t* minima, size_t k) {
    const auto* halves = reinterpret_cast<const __m256i*>(minima);
    const __m256i most = _mm256_set1_epi16(0x7fff), low = _mm256_min_epu16(_mm256_loadu_si256(halves), most),
                  high = _mm256_min_epu16(_mm256_loadu_si256(halves + 1), most);
    // Of each, how many are smaller; the greatest of which fewer than k are.
    const auto below = [k](__m256i of, __m256i than, __m256i rest) {
      alignas(32) uint16_t tried[32];
      _mm256_store_si256(reinterpret_cast<__m256i*>(tried), than);
      _mm256_store_si256(reinterpret_cast<__m256i*>(tried) + 1, rest);
      __m256i smaller = _mm256_setzero_si256();
      for (size_t i = 0; i < (k <= 8 ? 16 : 32); ++i) {
        smaller = _mm256_sub_epi16(smaller, _mm256_cmpgt_epi16(of, _mm256_set1_epi16(static_cast<int16_t>(tried[i]))));
      }
      const __m256i within = _mm256_cmpgt_epi16(_mm256_set1_epi16(static_cast<int16_t>(k)), smaller);
      return _mm256_and_si256(of, within);
    };
    __m256i best;
    if (k <= 8) {
      const __m256i least = _mm256_min_epu16(low, high);
      best = below(least, least, least);
    } else {
      best = _mm256_max_epu16(below(low, low, high), below(high, low, high));
    }
    // The greatest lane, as the least of the complements.
    const __m128i half = _mm_max_epu16(_mm256_castsi256_si128(best), _mm256_extracti128_si256(best, 1));
    const __m128i least = _mm_minpos_epu16(_mm_xor_si128(half, _mm_set1_epi16(-1)));
    return static_cast<uint16_t>(~_mm_extract_epi16(least, 0));
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

  // Sums of 16-bit products by pairs.
  using Products = __m256i;
  static Products none() { return _mm256_setzero_si256(); }
  static Products add(Products sum, __m256i levels, const int16_t* query) {
    return _mm256_add_epi32(sum,
                            _mm256_madd_epi16(levels, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(query))));
  }
  static __m128i load_bytes(const uint8_t* codes) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)); }
  static Products add_bytes(Products sum, const int16_t* query, const uint8_t* codes) {
    for (size_t i = 0; i < 64; i += 16) sum = add(sum, _mm256_cvtepi8_epi16(load_bytes(codes + i)), query + i);
    return sum;
  }
  static Products add_nibbles(Products sum, const int16_t* query, const uint8_t* codes) {
    for (size_t i = 0; i < 32; i += 16) {
      const __m256i both = _mm256_cvtepu8_epi16(load_bytes(codes + i));
      sum = add(sum, _mm256_and_si256(both, _mm256_set1_epi16(15)), query + i);
      sum = add(sum, _mm256_srli_epi16(both, 4), query + 32 + i);
    }
    return sum;
  }
  static int32_t total(Products sum) {
    const __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    const __m128i quarter = _mm_add_epi32(half, _mm_unpackhi_epi64(half, half));
    return _mm_cvtsi128_si32(quarter) + _mm_extract_epi32(quarter, 1);
  }

  // Products of four 7-bit levels with four weights, summed, for eight rows.
  static I8 product8(const uint8_t* codes, size_t stride, const int32_t* weights, size_t quads) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i sum = _mm256_setzero_si256();
    for (size_t quad = 0; quad < quads; ++quad, codes += stride) {
      const __m256i levels = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
      const __m256i pairs = _mm256_maddubs_epi16(levels, _mm256_set1_epi32(weights[quad]));  // at most 127 * 127 * 2
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
    }
    return (I8)sum;
  }
  static F8 bytes8(const uint8_t* source) {
    return (F8)_mm256_cvtepi32_ps(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(source))));
  }
  static unsigned mask8(I8 lanes) { return static_cast<unsigned>(_mm256_movemask_ps((__m256)lanes)); }
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

const vitrine::Kernels vitrine::avx2_kernels{"avx2", Isa::parts, pack<Isa>, scan<Isa>, nearest<Isa>, walk<Isa>, prune<Isa>, Isa::distance<0>, gather<Isa>, pctr, block_bounds<Isa>, peak_below, select_bounds<Isa>, screen_rows<Isa>, coarse_products<Isa>, vector_products, hash_code};
