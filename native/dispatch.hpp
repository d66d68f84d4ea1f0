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

  // out[i] = sigmoid(user_bias + ad_bias[ads[i]] + <user, ad_vecs[ads[i]]>); the user's vector is padded with zeros
  // to a multiple of 8; ad_vecs is [ad_count][d].
  void (*pctr)(float user_bias, const float* user, const uint32_t* ads, size_t n, const float* ad_bias,
               const float* ad_vecs, size_t ad_count, size_t d, float* out);
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
