// Kafka's murmur2 of an id's decimal digits: what its producers partition by (org.apache.kafka.common.utils.Utils).
#pragma once

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace vitrine {

inline uint32_t murmur2(const char* key, size_t length) {
  constexpr uint32_t m = 0x5bd1e995;
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(key[i])); };
  uint32_t h = 0x9747b28c ^ static_cast<uint32_t>(length);
  size_t i = 0;
  for (; i + 4 <= length; i += 4) {
    uint32_t k = byte(i) | byte(i + 1) << 8 | byte(i + 2) << 16 | byte(i + 3) << 24;
    k *= m;
    k ^= k >> 24;
    k *= m;
    h *= m;
    h ^= k;
  }
  if (i < length) {
    for (size_t shift = 0; i < length; ++i, shift += 8) h ^= byte(i) << shift;
    h *= m;
  }
  h ^= h >> 13;
  h *= m;
  h ^= h >> 15;
  return h;
}

inline void murmur2_decimal(const uint64_t* ids, size_t n, uint32_t* out) {
  char digits[20];  // 2^64 - 1 has twenty
  for (size_t i = 0; i < n; ++i) {
    const std::to_chars_result end = std::to_chars(digits, digits + sizeof digits, ids[i]);
    out[i] = murmur2(digits, static_cast<size_t>(end.ptr - digits));
  }
}

}  // namespace vitrine
