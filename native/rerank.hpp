// Re-ranking a search's candidates: re-rank codes made and scored, real vectors scored, the best rows taken.
//
// vitrine/ann/coarse.py says what the codes are, and tests/unit/native_oracles.py the same in numpy, to the bit: every
// float32 operation is an IEEE one in a fixed order, and the sums of `quantize` are exact.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "dispatch.hpp"
#include "threads.hpp"

namespace vitrine {

// Two rounds of sign flips ([2][width], 1 or -1) and a Hadamard transform of the first, then of the last `reach`.
class Turn {
 public:
  Turn(size_t dim, size_t width, const float* flips)
      : turned(width), dim_(dim), flips_(flips), reach_(std::bit_floor(width)) {}

  std::vector<float> turned;

  void operator()(const float* vector) {
    const size_t width = turned.size();
    std::copy_n(vector, dim_, turned.begin());
    std::fill(turned.begin() + static_cast<ptrdiff_t>(dim_), turned.end(), 0.0f);
    const float unit = static_cast<float>(1.0 / std::sqrt(static_cast<double>(reach_)));
    for (size_t round = 0; round < 2; ++round) {
      for (size_t i = 0; i < width; ++i) turned[i] *= flips_[round * width + i];
      float* part = turned.data() + (round ? width - reach_ : 0);
      for (size_t step = 1; step < reach_; step *= 2) {
        for (size_t start = 0; start < reach_; start += 2 * step) {
          for (size_t i = start; i < start + step; ++i) {
            const float a = part[i], b = part[i + step];
            part[i] = a + b;
            part[i + step] = a - b;
          }
        }
      }
      for (size_t i = 0; i < reach_; ++i) part[i] *= unit;
    }
  }

  float largest() const {
    float most = 0;
    for (const float x : turned) most = std::max(most, std::fabs(x));
    return most;
  }

 private:
  size_t dim_;
  const float* flips_;
  size_t reach_;
};

// To the nearest integer, ties to even, for |x| < 2^22 (2^51 of a double): in an instruction that every machine has.
inline float round_even(float x) { return (x + 0x1.8p23f) - 0x1.8p23f; }
inline double round_even(double x) { return (x + 0x1.8p52) - 0x1.8p52; }
// The nearest multiple of 2^-24.
inline double on_grid(float x) { return round_even(double{x} * 0x1p24) * 0x1p-24; }

// A turned query in integers up to `peak`; returns what one of them is worth.
inline float round_query(const Turn& turn, float peak, int16_t* integers) {
  const float unit = std::max(turn.largest(), 1e-30f) / peak;
  for (size_t i = 0; i < turn.turned.size(); ++i) integers[i] = static_cast<int16_t>(round_even(turn.turned[i] / unit));
  return unit;
}

// The largest integer of a query, so that no product with a row overflows.
inline float query_peak(size_t width) {
  return static_cast<float>(std::min<size_t>(8191, size_t{INT32_MAX} / (127 * width)));
}

// A turned vector's code and factor.
inline void quantize(const Turn& turn, size_t bits, uint8_t* code, float* factor) {
  constexpr size_t half = coarse_group / 2;
  const float largest = turn.largest();
  double length = 0, product = 0;
  for (size_t start = 0; start < turn.turned.size(); start += coarse_group, code += coarse_group * bits / 8) {
    const float* group = turn.turned.data() + start;
    float integers[coarse_group];
    if (bits == 8) {
      for (size_t i = 0; i < coarse_group; ++i) integers[i] = round_even(group[i] / largest * 127.0f);
      for (size_t i = 0; i < coarse_group; ++i) code[i] = static_cast<uint8_t>(static_cast<int8_t>(integers[i]));
    } else {
      int levels[coarse_group];
      for (size_t i = 0; i < coarse_group; ++i) {
        levels[i] = std::min(static_cast<int>(group[i] / largest * 7.5f + 8.0f), 15);  // positive: rounds down
        integers[i] = static_cast<float>(2 * levels[i] - 15);
      }
      for (size_t i = 0; i < half; ++i) code[i] = static_cast<uint8_t>(levels[i] | levels[half + i] << 4);
    }
    for (size_t i = 0; i < coarse_group; ++i) {
      const double exact = on_grid(group[i]);
      length += exact * exact;
      product += exact * double{integers[i]};
    }
  }
  *factor = static_cast<float>(length / product);
}

// A score and its row as one number: ascending numbers are falling scores, ties ascending rows.
inline uint64_t score_key(float score, uint32_t row) {
  uint32_t bits;
  const float positive_zero = score + 0.0f;
  std::memcpy(&bits, &positive_zero, sizeof bits);
  bits = bits >> 31 ? bits : ~bits & 0x7fffffffu;
  return uint64_t{bits} << 32 | row;
}

// Takes the `kept` best of a query's candidates, UINT32_MAX beyond them.
inline void take_best(const uint32_t* rows, const float* scores, size_t count, size_t kept, uint32_t* best_rows,
                      float* best_scores) {
  std::vector<uint64_t> keys(count);
  for (size_t i = 0; i < count; ++i) keys[i] = score_key(scores[i], rows[i]);
  const size_t size = std::min(count, kept);
  std::partial_sort(keys.begin(), keys.begin() + static_cast<ptrdiff_t>(size), keys.end());
  for (size_t i = 0; i < kept; ++i) {
    const auto high = i < size ? static_cast<uint32_t>(keys[i] >> 32) : 0;
    const uint32_t bits = high >> 31 ? high : ~high & 0x7fffffffu;
    best_rows[i] = i < size ? static_cast<uint32_t>(keys[i]) : UINT32_MAX;
    std::memcpy(best_scores + i, &bits, sizeof bits);
    if (i >= size) best_scores[i] = 0;
  }
}

// Candidates of queries: rows [count][pool], UINT32_MAX from a query's first unused place on.
struct Candidates {
  const float* queries;  // [count][dim]
  size_t count, dim;
  const uint32_t* rows;
  size_t pool;

  size_t used(size_t query) const {
    const uint32_t* begin = rows + query * pool;
    return static_cast<size_t>(std::find(begin, begin + pool, UINT32_MAX) - begin);
  }
};

// Scores of one query's candidates by re-rank codes; one a thread.
class CoarseScorer {
 public:
  CoarseScorer(const Kernels& kernels, const CoarseView& coarse, const float* flips, const Candidates& in)
      : kernels_(kernels), coarse_(coarse), in_(in), turn_(in.dim, coarse.width, flips), integers_(coarse.width),
        products_(in.pool) {}

  void operator()(size_t query, size_t used, float* scores) {
    turn_(in_.queries + query * in_.dim);
    const float unit = round_query(turn_, query_peak(coarse_.width), integers_.data());
    const uint32_t* rows = in_.rows + query * in_.pool;
    kernels_.coarse_products(coarse_, integers_.data(), rows, used, products_.data());
    for (size_t i = 0; i < used; ++i) {
      scores[i] = static_cast<float>(products_[i]) * coarse_.factors[rows[i]] * unit;
    }
  }

 private:
  const Kernels& kernels_;
  const CoarseView& coarse_;
  const Candidates& in_;
  Turn turn_;
  std::vector<int16_t> integers_;
  std::vector<int32_t> products_;
};

// Scores of one query's candidates by real vectors ([n][dim]); one a thread.
class VectorScorer {
 public:
  VectorScorer(const Kernels& kernels, const float* vectors, size_t n, const Candidates& in)
      : kernels_(kernels), vectors_(vectors), n_(n), in_(in), padded_((in.dim + 7) / 8 * 8) {}

  void operator()(size_t query, size_t used, float* scores) {
    std::copy_n(in_.queries + query * in_.dim, in_.dim, padded_.begin());
    kernels_.vector_products(vectors_, n_, in_.dim, padded_.data(), in_.rows + query * in_.pool, used, scores);
  }

 private:
  const Kernels& kernels_;
  const float* vectors_;
  size_t n_;
  const Candidates& in_;
  std::vector<float> padded_;
};

// For each query work(scorer, query, used candidates), shared by threads that each have a scorer of their own.
template <class Make, class Work>
void for_each_query(const Candidates& in, size_t threads, const Make& make, const Work& work) {
  threads = std::min(threads, std::max<size_t>(in.count, 1));
  on_threads(threads, [&](size_t worker) {
    auto scorer = make();
    for (size_t q = in.count * worker / threads; q < in.count * (worker + 1) / threads; ++q) {
      work(scorer, q, in.used(q));
    }
  });
}

// rows, scores: [count][kept], best first, ties by row; UINT32_MAX and 0 where there are fewer.
template <class Make>
void best_candidates(const Candidates& in, size_t kept, size_t threads, const Make& make, uint32_t* rows,
                     float* scores) {
  for_each_query(in, threads, make, [&](auto& scorer, size_t q, size_t used) {
    std::vector<float> all(used);
    scorer(q, used, all.data());
    take_best(in.rows + q * in.pool, all.data(), used, kept, rows + q * kept, scores + q * kept);
  });
}

}  // namespace vitrine
