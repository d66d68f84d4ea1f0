// Kernels for AVX-512 with VPOPCNTDQ: eight codes a step, three instructions a word.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

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
};

}  // namespace
}  // namespace vitrine

#include "../scan.hpp"
#include "../tower.hpp"

const vitrine::Kernels vitrine::avx512_kernels{"avx512", Isa::parts, pack<Isa>, scan<Isa>, pctr};
