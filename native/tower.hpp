// pCTR of one user to many ads from the two towers of a factorization machine: float32, the same bits everywhere.
//
// Every operation is an IEEE one in a fixed order, contraction is off, and the exponential is our own. A dot product
// has 8 lanes (element i goes to lane i mod 8), summed as ((l0+l4)+(l2+l6)) + ((l1+l5)+(l3+l7)); a short last step is
// padded with zeros. Written in the compiler's vector types, so that one text serves every instruction set. Included
// by native/isa/*.cpp alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace vitrine {
namespace {

typedef float F8 __attribute__((vector_size(32)));
typedef int32_t I8 __attribute__((vector_size(32)));

inline F8 splat(float x) { return F8{x, x, x, x, x, x, x, x}; }

inline F8 load8(const float* source) {
  F8 x;
  std::memcpy(&x, source, sizeof x);
  return x;
}

// exp(-a) for 0 <= a <= 87: -a = n ln 2 + r with |r| <= ln 2 / 2 (Cody and Waite's two-part ln 2, Cephes' polynomial).
inline F8 exp_minus(F8 a) {
  const F8 x = -a;
  const F8 shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, held in the low bits
  const F8 shifted = x * splat(1.44269504088896341f) + shift;
  const F8 n = shifted - shift;
  const F8 r = (x - n * splat(0.693359375f)) - n * splat(-2.12194440e-4f);
  F8 p = splat(1.9875691500e-4f);
  p = p * r + splat(1.3981999507e-3f);
  p = p * r + splat(8.3334519073e-3f);
  p = p * r + splat(4.1665795894e-2f);
  p = p * r + splat(1.6666665459e-1f);
  p = p * r + splat(5.0000001201e-1f);
  p = (p * (r * r) + r) + splat(1.0f);
  I8 bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits - (0x4b400000 - 127)) << 23;  // 2^n
  F8 scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}

// 1 / (1 + exp(-x)), within 2.5 units in the last place (docs/native.md); |x| is clamped to 87, and no number at all
// (from a logit that overflowed) counts as -87, so that the result is always in (0, 1].
inline F8 sigmoid(F8 x) {
  const F8 magnitude = x < 0.0f ? -x : x;
  const F8 e = exp_minus(magnitude < 87.0f ? magnitude : splat(87.0f));
  const F8 numerator = x >= 0.0f ? splat(1.0f) : e;
  return numerator / (splat(1.0f) + e);
}

// Lane sums of eight accumulators, one a lane.
inline F8 sum_lanes(const F8 (&a)[8]) {
  F8 halves[4];  // lanes j + (j+4): accumulator i in the lower half, i+4 in the upper
  for (int i = 0; i < 4; ++i) {
    halves[i] = __builtin_shufflevector(a[i], a[i + 4], 0, 1, 2, 3, 8, 9, 10, 11) +
                __builtin_shufflevector(a[i], a[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
  F8 quarters[2];
  for (int i = 0; i < 2; ++i) {
    const F8 x = halves[2 * i], y = halves[2 * i + 1];
    quarters[i] = __builtin_shufflevector(x, y, 0, 1, 8, 9, 4, 5, 12, 13) +
                  __builtin_shufflevector(x, y, 2, 3, 10, 11, 6, 7, 14, 15);
  }
  return __builtin_shufflevector(quarters[0], quarters[1], 0, 2, 8, 10, 4, 6, 12, 14) +
         __builtin_shufflevector(quarters[0], quarters[1], 1, 3, 9, 11, 5, 7, 13, 15);
}

// <user, row> of eight rows. `overread`: eight floats may be read from the start of a row's last, short step.
inline F8 dot8(const float* user, const float* const (&rows)[8], size_t d, bool overread) {
  F8 sums[8] = {};
  size_t i = 0;
  for (; i + 8 <= d; i += 8) {
    const F8 u = load8(user + i);
    for (int j = 0; j < 8; ++j) sums[j] = sums[j] + u * load8(rows[j] + i);
  }
  if (i < d) {
    const int32_t left = static_cast<int32_t>(d - i);
    const I8 mask = I8{0, 1, 2, 3, 4, 5, 6, 7} < left;
    const F8 u = load8(user + i);
    for (int j = 0; j < 8; ++j) {
      float padded[8] = {};
      if (!overread) {
        for (int32_t lane = 0; lane < left; ++lane) padded[lane] = rows[j][i + static_cast<size_t>(lane)];
      }
      F8 row = load8(overread ? rows[j] + i : padded);
      row = mask ? row : splat(0.0f);
      sums[j] = sums[j] + u * row;
    }
  }
  return sum_lanes(sums);
}

void pctr(float user_bias, const float* user, const uint32_t* ads, size_t n, const float* ad_bias, const float* ad_vecs,
          size_t ad_count, size_t d, float* out) {
  constexpr size_t ahead = 16;  // ads whose rows are asked for early: they lie anywhere in memory
  const size_t padded = (d + 7) / 8 * 8;
  for (size_t i = 0; i < n; i += 8) {
    const size_t group = n - i < 8 ? n - i : 8;
    const float* rows[8];
    float bias[8];
    bool overread = true;
    for (size_t j = 0; j < 8; ++j) {
      const size_t ad = ads[i + (j < group ? j : 0)];
      rows[j] = ad_vecs + ad * d;
      bias[j] = ad_bias[ad];
      overread = overread && ad * d + padded <= ad_count * d;
    }
    for (size_t j = i + ahead; j < i + ahead + 8 && j < n; ++j) {
      __builtin_prefetch(ad_bias + ads[j]);
      for (size_t at = 0; at < d; at += 16) __builtin_prefetch(ad_vecs + ads[j] * d + at);
    }
    const F8 logit = (splat(user_bias) + load8(bias)) + dot8(user, rows, d, overread);
    const F8 result = sigmoid(logit);
    std::memcpy(out + i, &result, group * sizeof(float));
  }
}

}  // namespace
}  // namespace vitrine
