// One table of kernels an instruction set, and the choice between the tables at run time.
//
// Each table is filled by its own translation unit (native/isa/*.cpp), compiled with that set's flags. The rest of
// the extension is plain code, so that nothing but what stands here runs instructions that a machine may lack.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace vitrine {

// Queries of a full scan tile; what is left of a batch makes tiles of 4, 2, 1.
inline constexpr size_t max_tile = 8;

// Rows [begin, end) of word-major codes ([words][stride]) against one tile of packed queries.
struct ScanBlock {
  const uint64_t* codes;
  size_t stride;
  size_t words;
  size_t begin;
  size_t end;
};

// A flat graph: node i has row i of row-major codes ([nodes][words]) and of edges ([nodes][degree], UINT32_MAX from the
// first unused slot on). Walks begin at the nearest of `entries`, whose codes are word-major ([words][entry_stride],
// entry_stride a multiple of `block_rows`).
struct GraphView {
  const uint64_t* codes;
  const uint32_t* edges;
  size_t nodes, words, degree;
  const uint32_t* entries;
  const uint64_t* entry_codes;
  size_t entry_count, entry_stride;
};

// Walks interleaved at most.
inline constexpr size_t max_turns = 16;

// The memory of one walk: list [most + 1], pending and entries [degree], distances [entry_stride],
// packed [words * packed_parts], seen [seen_slots], a power of two.
struct WalkSpace {
  uint64_t *list, *entries;
  uint32_t* pending;
  uint16_t* distances;
  uint64_t* packed;
  uint32_t* seen;
  size_t seen_slots;
};

// `count` queries ([count][words]), `ef` nodes kept of each; `turns` walks are interleaved, each with a space of its own.
// With `allowed` ([nodes], 0 or 1), a walk keeps as many nodes as it takes to have `ef` allowed ones, `most` at most.
struct WalkInput {
  const uint64_t* queries;
  size_t count, ef, turns;
  WalkSpace* spaces;
  const uint8_t* allowed;
  size_t most;
};

// nodes, distances: [count][ef], the allowed ones, nearest first; counts: how many of them; scored: distances computed, may be null.
struct WalkOutput {
  uint32_t *nodes, *distances, *counts, *scored;
};

// Rows of a block for `Kernels::nearest` are padded to a multiple of this.
inline constexpr size_t block_rows = 64;
// Queries of a tile of `Kernels::nearest`: 4, or 2 or 1 for what is left.
inline constexpr size_t nearest_tile_size = 4;

// Levels that a row of re-rank codes is padded to a multiple of.
inline constexpr size_t coarse_group = 64;

// Re-rank codes: rows of `width` levels of 4 or 8 bits, and what a product with each row is multiplied by.
struct CoarseView {
  const uint8_t* codes;
  const float* factors;
  size_t width, bits;
};

// Rounds of flips and transforms of a hash function.
inline constexpr size_t hash_rounds = 3;

// A hash function of stacked rotations: rotation is [dim][stride], stride a multiple of 32 with zeros beyond the
// directions; flips [rounds][width][blocks], 0 or -1, width a power of two from 64 on.
struct HashView {
  const float* rotation;
  const int32_t* flips;
  size_t dim, stride, width, blocks;
  double scale;  // what projections are multiplied by before they are rounded
};

// Upper bounds of blocks of postings (match_index.hpp): tiles of 8 blocks, each [fields][8]: the greatest log bid, bias,
// log bid + bias, and norm of a tower.
inline constexpr size_t bound_tile = 8, bound_fields = 4;
// Bounds lie between these two.
inline constexpr float least_bound = -3e38f, most_bound = 3e38f;
// What is added to a block's bias and what its norm is multiplied by, for one user.
struct BoundUser {
  float bias, norm;
};

// Log bids and biases of rows are their block's greatest less so many steps.
inline constexpr float mark_step = 1.0f / 32;
// A block of at most 64 rows: codes [quads][rows padded to 8][4], levels from 0 to 127; marks [2][rows padded to 8],
// steps below the block's log bid and below its bias, to which the user's bias and all errors were added.
struct ScreenBlock {
  const uint8_t *codes, *marks;
  size_t rows;
  float bid, bias;
};
// A user's tower as 8-bit weights, four to an integer; offset: what the products of level 64 sum to.
struct ScreenUser {
  const int32_t* weights;
  size_t quads;
  int32_t offset;
  float scale;
};

struct Kernels {
  const char* name;

  // uint64s that a query word becomes when packed.
  size_t packed_parts;
  // queries [tile][words] -> packed [words][tile][packed_parts].
  void (*pack)(const uint64_t* queries, size_t tile, size_t words, uint64_t* packed);
  // For each query of the tile: the rows at a distance below its bound, ascending, as
  // distance << 32 | row, into hits + query * hit_stride; their number is added to counts[query].
  void (*scan)(const ScanBlock& block, const uint64_t* packed, size_t tile, const uint32_t* bounds, uint64_t* hits,
               size_t hit_stride, size_t* counts);

  // For each query of a tile of 4, 2 or 1: the k nearest of rows [0, block.end) by (distance, row), ascending, as
  // distance << 16 | row into best + query * k, and their number; row skip[query] is left out. block.stride is a
  // multiple of block_rows and below 65,536, distances below 65,535; `distances` is scratch, [tile][block.stride].
  void (*nearest)(const ScanBlock& block, const uint64_t* packed, size_t tile, const uint32_t* skip, size_t k,
                  uint16_t* distances, uint32_t* best, size_t* counts);

  // Best-first search of a graph; walk.hpp.
  void (*walk)(const GraphView& graph, const WalkInput& in, const WalkOutput& out);

  // Relative neighbourhood: of `count` candidates (distance << 32 | node, ascending), those q for which no kept r has
  // d(r, q) * slack < d(p, q) * 100; at most `limit`. Returns their number; `kept` are candidates.
  size_t (*prune)(const uint64_t* codes, size_t words, const uint64_t* candidates, size_t count, size_t limit,
                  uint32_t slack, uint64_t* kept);

  // Hamming distance of two codes.
  uint32_t (*distance)(const uint64_t* a, const uint64_t* b, size_t words);

  // Hamming distances of `query` to rows rows[0..count) of row-major codes.
  void (*gather)(const uint64_t* codes, size_t words, const uint32_t* rows, size_t count, const uint64_t* query,
                 uint32_t* distances);

  // out[i] = sigmoid(user_bias + ad_bias[ads[i]] + <user, ad_vecs[ads[i]]>); the user's vector is padded with zeros
  // to a multiple of 8; ad_vecs is [ad_count][d].
  void (*pctr)(float user_bias, const float* user, const uint32_t* ads, size_t n, const float* ad_bias,
               const float* ad_vecs, size_t ad_count, size_t d, float* out);

  // Bounds of postings' blocks and rows; screen.hpp.
  void (*block_bounds)(const float* tiles, size_t first, size_t stop, const BoundUser& user, float* out);
  float (*peak_below)(const float* bounds, size_t n, float ceiling);
  size_t (*select_bounds)(const float* bounds, size_t n, float floor, float ceiling, uint32_t* places);
  uint64_t (*screen_rows)(const ScreenBlock& block, const ScreenUser& user, float floor);

  // products[i] = <query, the integers of row rows[i]>, for a query int16 [width].
  void (*coarse_products)(const CoarseView& coarse, const int16_t* query, const uint32_t* rows, size_t count,
                          int32_t* products);
  // products[i] = <query, vectors[rows[i]]> summed as in `pctr`; vectors is [n][dim], the query padded with zeros to a
  // multiple of 8.
  void (*vector_products)(const float* vectors, size_t n, size_t dim, const float* query, const uint32_t* rows,
                          size_t count, float* products);

  // The code of a centred vector, of width * blocks bits; sums [stride] and turned [width * blocks] are scratch.
  void (*hash_code)(const HashView& hash, const double* centred, double* sums, uint32_t* turned, uint64_t* code);
};

extern const Kernels portable_kernels;
#ifdef VITRINE_X86
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#endif

// The kernels that this machine runs, best first.
const std::vector<const Kernels*>& supported();

// The kernels called `name`. Throws std::invalid_argument, naming `source`, where this machine has none of the name.
const Kernels& find(const std::string& name, const char* source);

// The kernels of this process: VITRINE_KERNEL's, else the best supported. Read once.
const Kernels& chosen();

}  // namespace vitrine
