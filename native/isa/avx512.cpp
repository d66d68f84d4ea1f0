// Kernels for AVX-512 with VPOPCNTDQ: eight codes a step, three instructions a word.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "../tower.hpp"

namespace vitrine {
namespace {

struct Isa {
  using Sum = __m512i;
  using Code = __m512i;
  using Query = __m512i;
  static constexpr size_t lanes = 8, parts = 1, run = 0;  // 64-bit counters: nothing to widen

  static Sum minus(uint32_t bound) { return _mm512_set1_epi64(-static_cast<int64_t>(bound)); }
  static Code load(const uint64_t* source) { return _mm512_loadu_si512(source); }
  static Code load_first(const uint64_t* source, size_t left) {
    return _mm512_maskz_loadu_epi64(static_cast<__mmask8>((1u << left) - 1), source);
  }
  static void pack(uint64_t word, uint64_t* packed) { *packed = word; }
  static Query query(const uint64_t* packed) { return _mm512_set1_epi64(static_cast<int64_t>(*packed)); }
  static Sum count(Sum sum, Code code, Query query) {
    return _mm512_add_epi64(sum, _mm512_popcnt_epi64(_mm512_xor_si512(code, query)));
  }
  static Sum either(Sum a, Sum b) { return _mm512_or_si512(a, b); }
  static unsigned negative(Sum sum) { return _mm512_movepi64_mask(sum); }
  static void store(uint64_t* out, Sum sum) { _mm512_storeu_si512(out, sum); }

  static void narrow(uint16_t* out, Sum sum) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi64_epi16(sum));
  }
  static uint32_t at_most(const uint16_t* distances, uint16_t bound) {
    return _mm512_cmple_epu16_mask(_mm512_loadu_si512(distances), _mm512_set1_epi16(static_cast<int16_t>(bound)));
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
    const __m512i most = _mm512_set1_epi32(bound);
    __m512i rows = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int32_t>(first)),
                                    _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    for (size_t row = 0; row < size; row += 16, rows = _mm512_add_epi32(rows, _mm512_set1_epi32(16))) {
      const __m512i away =
          _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(distances + row)));
      const __mmask16 mask = _mm512_cmple_epu32_mask(away, most);
      const __m512i entries = _mm512_or_si512(_mm512_slli_epi32(away, 16), rows);
      _mm512_storeu_si512(found + count, _mm512_maskz_compress_epi32(mask, entries));
      count += static_cast<size_t>(__builtin_popcount(mask));
    }
    return count;
  }
  // The k smallest of up to `ranked` different entries, ascending: each goes where as many are smaller.
  static constexpr size_t ranked = 32;
  static void rank(const uint32_t* entries, size_t count, size_t k, uint32_t* best) {
    const __m512i none = _mm512_set1_epi32(-1);
    const auto mask = [&](size_t first) {
      return static_cast<__mmask16>(count <= first ? 0 : count - first >= 16 ? 0xffff : (1u << (count - first)) - 1);
    };
    const __m512i low = _mm512_mask_loadu_epi32(none, mask(0), entries);
    const __m512i high = _mm512_mask_loadu_epi32(none, mask(16), entries + 16);
    for (size_t i = 0; i < count; ++i) {
      const __m512i entry = _mm512_set1_epi32(static_cast<int32_t>(entries[i]));
      uint32_t smaller = _mm512_cmplt_epu32_mask(low, entry);
      if (count > 16) smaller |= static_cast<uint32_t>(_mm512_cmplt_epu32_mask(high, entry)) << 16;
      const auto place = static_cast<size_t>(__builtin_popcount(smaller));
      if (place < k) best[place] = entries[i];
    }
  }
  template <size_t Words>
  static uint32_t distance(const uint64_t* a, const uint64_t* b, size_t words) {
    if constexpr (Words == 4) {
      const __m256i x = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a)),
                                         _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b)));
      const __m256i bits = _mm256_popcnt_epi64(x);
      const __m128i half = _mm_add_epi64(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
      return static_cast<uint32_t>(_mm_cvtsi128_si64(half) + _mm_extract_epi64(half, 1));
    } else {
      const size_t stop = Words ? Words : words;
      __m512i sum = _mm512_setzero_si512();
      size_t word = 0;
      for (; word + 8 <= stop; word += 8) {
        const __m512i x = _mm512_xor_si512(_mm512_loadu_si512(a + word), _mm512_loadu_si512(b + word));
        sum = _mm512_add_epi64(sum, _mm512_popcnt_epi64(x));
      }
      if (word < stop) {
        const auto mask = static_cast<__mmask8>((1u << (stop - word)) - 1);
        const __m512i x =
            _mm512_xor_si512(_mm512_maskz_loadu_epi64(mask, a + word), _mm512_maskz_loadu_epi64(mask, b + word));
        sum = _mm512_add_epi64(sum, _mm512_popcnt_epi64(x));
      }
      return static_cast<uint32_t>(_mm512_reduce_add_epi64(sum));
    }
  }

  // Sums of 16-bit products by pairs.
  using Products = __m512i;
  static Products none() { return _mm512_setzero_si512(); }
  static Products add(Products sum, __m512i levels, const int16_t* query) {
    return _mm512_add_epi32(sum, _mm512_madd_epi16(levels, _mm512_loadu_si512(query)));
  }
  static __m256i load_bytes(const uint8_t* codes) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)); }
  static Products add_bytes(Products sum, const int16_t* query, const uint8_t* codes) {
    sum = add(sum, _mm512_cvtepi8_epi16(load_bytes(codes)), query);
    return add(sum, _mm512_cvtepi8_epi16(load_bytes(codes + 32)), query + 32);
  }
  static Products add_nibbles(Products sum, const int16_t* query, const uint8_t* codes) {
    const __m512i both = _mm512_cvtepu8_epi16(load_bytes(codes));
    sum = add(sum, _mm512_and_si512(both, _mm512_set1_epi16(15)), query);
    return add(sum, _mm512_srli_epi16(both, 4), query + 32);
  }
  static int32_t total(Products sum) { return _mm512_reduce_add_epi32(sum); }

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

const vitrine::Kernels vitrine::avx512_kernels{"avx512", Isa::parts, pack<Isa>, scan<Isa>, nearest<Isa>, walk<Isa>, prune<Isa>, Isa::distance<0>, gather<Isa>, pctr, block_bounds<Isa>, peak_below, select_bounds<Isa>, screen_rows<Isa>, coarse_products<Isa>, vector_products, hash_code};
