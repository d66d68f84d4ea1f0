// Exact top-k by Hamming distance over word-major codes.
//
// A batch's queries share every block of codes while it is in the second-level cache, so that codes are read from
// memory once a batch (of up to 64 queries). Threads take ranges of rows; their k best are merged by (distance, row),
// so that the result does not depend on their number. docs/native.md has the measured share of memory bandwidth.
#pragma once

#include <algorithm>
#include <bit>
#include <vector>

#include "dispatch.hpp"
#include "threads.hpp"
#include "topk.hpp"

namespace vitrine {

// codes: [words][n]; queries: [count][words].
struct HammingInput {
  const uint64_t* codes;
  size_t n;
  size_t words;
  const uint64_t* queries;
  size_t count;
};

inline size_t tile_of(size_t left) { return std::min(max_tile, std::bit_floor(left)); }

// The k best of rows [begin, end) for `count` queries packed tile by tile: [count] lists of distance << 32 | row.
inline std::vector<std::vector<uint64_t>> scan_rows_topk(const Kernels& kernels, const HammingInput& in,
                                                         const uint64_t* packed, size_t count, size_t begin, size_t end,
                                                         size_t k) {
  constexpr size_t block_bytes = 256 << 10;  // a quarter of the second-level cache it was tuned on (docs/native.md)
  const size_t largest = std::clamp<size_t>(block_bytes / (std::max<size_t>(in.words, 1) * 8), 64, 4096) / 64 * 64;
  std::vector<Nearest> nearest(count, Nearest(k, static_cast<uint32_t>(in.words * 64)));
  std::vector<uint64_t> hits(max_tile * largest);
  // Blocks grow: a small one first gives a bound before most rows are seen.
  size_t rows = std::min<size_t>(largest, 256);
  for (size_t from = begin; from < end; from += rows, rows = std::min(2 * rows, largest)) {
    const ScanBlock block{in.codes, in.n, in.words, from, std::min(from + rows, end)};
    const uint64_t* tile = packed;
    for (size_t q = 0, size; q < count; q += size) {
      size = tile_of(count - q);
      uint32_t bounds[max_tile];
      size_t found[max_tile] = {};
      for (size_t i = 0; i < size; ++i) bounds[i] = nearest[q + i].bound();
      kernels.scan(block, tile, size, bounds, hits.data(), largest, found);
      tile += size * in.words * kernels.packed_parts;
      for (size_t i = 0; i < size; ++i) {
        for (size_t h = 0; h < found[i]; ++h) nearest[q + i].offer(hits[i * largest + h]);
      }
    }
  }
  std::vector<std::vector<uint64_t>> best;
  best.reserve(count);
  for (Nearest& one : nearest) best.push_back(one.take());
  return best;
}

// rows, distances: [count][k], k <= n.
inline void hamming_topk(const Kernels& kernels, const HammingInput& in, size_t k, size_t threads, uint32_t* rows,
                         uint32_t* distances) {
  if (k == 0 || in.count == 0) return;
  constexpr size_t rows_a_thread = 8192;  // below this a thread costs more than it saves
  threads = std::clamp<size_t>(in.n / rows_a_thread, 1, threads);
  // Queries of one pass: 64, fewer where their lists would take more than about 256 MB.
  const size_t pass = std::clamp<size_t>((size_t{256} << 20) / (k * 16 * threads), 1, 64);
  std::vector<uint64_t> packed(std::min(pass, in.count) * in.words * kernels.packed_parts);
  for (size_t first = 0; first < in.count; first += pass) {
    const size_t count = std::min(pass, in.count - first);
    uint64_t* tile = packed.data();
    for (size_t q = 0, size; q < count; q += size) {
      size = tile_of(count - q);
      kernels.pack(in.queries + (first + q) * in.words, size, in.words, tile);
      tile += size * in.words * kernels.packed_parts;
    }
    std::vector<std::vector<std::vector<uint64_t>>> parts(threads);
    on_threads(threads, [&](size_t worker) {
      const size_t begin = in.n / threads * worker;
      const size_t end = worker + 1 == threads ? in.n : begin + in.n / threads;
      parts[worker] = scan_rows_topk(kernels, in, packed.data(), count, begin, end, k);
    });
    for (size_t q = 0; q < count; ++q) {
      std::vector<uint64_t> best = std::move(parts[0][q]);
      for (size_t worker = 1; worker < threads; ++worker) {
        best.insert(best.end(), parts[worker][q].begin(), parts[worker][q].end());
      }
      if (threads > 1) std::partial_sort(best.begin(), best.begin() + static_cast<ptrdiff_t>(k), best.end());
      for (size_t i = 0; i < k; ++i) {
        rows[(first + q) * k + i] = static_cast<uint32_t>(best[i]);
        distances[(first + q) * k + i] = static_cast<uint32_t>(best[i] >> 32);
      }
    }
  }
}

// The k best of chosen rows of row-major codes ([n][words]), `rows` ascending: found, distances: [count][k], k <= number
// of rows.
inline void hamming_rows(const Kernels& kernels, const HammingInput& in, const uint32_t* rows, size_t number, size_t k,
                         uint32_t* found, uint32_t* distances) {
  if (k == 0) return;
  constexpr size_t block = 4096;
  std::vector<uint32_t> away(std::min(number, block));
  for (size_t q = 0; q < in.count; ++q) {
    Nearest nearest(k, static_cast<uint32_t>(in.words * 64));
    for (size_t from = 0; from < number; from += block) {
      const size_t size = std::min(block, number - from);
      kernels.gather(in.codes, in.words, rows + from, size, in.queries + q * in.words, away.data());
      for (size_t i = 0; i < size; ++i) nearest.offer(static_cast<uint64_t>(away[i]) << 32 | rows[from + i]);
    }
    const std::vector<uint64_t> best = nearest.take();
    for (size_t i = 0; i < k; ++i) {
      found[q * k + i] = static_cast<uint32_t>(best[i]);
      distances[q * k + i] = static_cast<uint32_t>(best[i] >> 32);
    }
  }
}

}  // namespace vitrine
