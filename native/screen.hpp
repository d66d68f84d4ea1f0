// Upper bounds on what postings are worth to a user: of blocks from a few maxima, of rows from 7-bit towers.
//
// All bounds are logarithms of a value, log bid + log sigmoid(logit). log sigmoid is concave, so the least of a few
// tangents is above it. What rounding may add is added by the index (match_index.hpp), so that a bound below the
// logarithm of a floor proves the exact float32 value to be below that floor. Included by native/isa/*.cpp alone.
#pragma once

#include "dispatch.hpp"

namespace vitrine {
namespace {

inline F8 least(F8 a, F8 b) { return a < b ? a : b; }  // b where one is no number

// At least log(sigmoid(x)), and what the sigmoid's clamp at -87 makes of it.
inline F8 log_sigmoid_bound(F8 x) {
  const F8 clamped = x < splat(-87.0f) ? splat(-87.0f) : x;  // what is no number stays so
  F8 bound = least(splat(-0.4973f) + splat(0.1978f) * clamped, clamped);
  bound = least(splat(-0.6931f) + splat(0.5f) * clamped, bound);
  bound = least(splat(-0.4973f) + splat(0.8022f) * clamped, bound);
  return bound > splat(0.0f) ? splat(0.0f) : bound;
}

inline I8 lane_numbers(int32_t first) { return I8{0, 1, 2, 3, 4, 5, 6, 7} + first; }

// out[i]: the bound of block first / 8 * 8 + i, for whole tiles; least_bound in lanes that are not in [first, stop).
template <class Isa>
void block_bounds(const float* tiles, size_t first, size_t stop, const BoundUser& user, float* out) {
  for (size_t tile = first / bound_tile; tile * bound_tile < stop; ++tile, out += bound_tile) {
    const float* source = tiles + tile * bound_tile * bound_fields;
    const F8 bid = load8(source), bias = load8(source + 8), both = load8(source + 16), norm = load8(source + 24);
    const F8 reach = splat(user.bias) + splat(user.norm) * norm;
    const F8 floor = bid - splat(87.0f);
    F8 together = both + reach;
    together = together < floor ? floor : together;
    F8 bound = bid + log_sigmoid_bound(bias + reach);
    bound = least(together, bound);
    bound = bound < splat(most_bound) ? bound : splat(most_bound);
    const int32_t begin = static_cast<int32_t>(static_cast<int64_t>(first) - static_cast<int64_t>(tile * bound_tile));
    const size_t left = stop - tile * bound_tile;
    const I8 lanes = lane_numbers(0);
    const I8 inside = (lanes >= begin) & (lanes < static_cast<int32_t>(left < 8 ? left : 8));
    bound = inside ? bound : splat(least_bound);
    std::memcpy(out, &bound, sizeof bound);
  }
}

// The greatest of bounds[0..n) that is below `ceiling`, least_bound where there is none; n is a multiple of 8.
inline float peak_below(const float* bounds, size_t n, float ceiling) {
  F8 most = splat(least_bound);
  for (size_t i = 0; i < n; i += 8) {
    const F8 b = load8(bounds + i);
    const F8 own = b < splat(ceiling) ? b : splat(least_bound);
    most = own > most ? own : most;
  }
  float peak = most[0];
  for (int lane = 1; lane < 8; ++lane) peak = most[lane] > peak ? most[lane] : peak;
  return peak;
}

// The places of bounds in [floor, ceiling), ascending; returns how many.
template <class Isa>
size_t select_bounds(const float* bounds, size_t n, float floor, float ceiling, uint32_t* places) {
  size_t count = 0;
  for (size_t i = 0; i < n; i += 8) {
    const F8 b = load8(bounds + i);
    for (unsigned mask = Isa::mask8((b >= splat(floor)) & (b < splat(ceiling))); mask; mask &= mask - 1) {
      places[count++] = static_cast<uint32_t>(i) + static_cast<uint32_t>(__builtin_ctz(mask));
    }
  }
  return count;
}

// The rows of a block whose bound is not below `floor`, as bits.
template <class Isa>
uint64_t screen_rows(const ScreenBlock& block, const ScreenUser& user, float floor) {
  uint64_t passed = 0;
  const size_t padded = (block.rows + 7) / 8 * 8;
  for (size_t row = 0; row < padded; row += 8) {
    const I8 product = Isa::product8(block.codes + row * 4, padded * 4, user.weights, user.quads) - user.offset;
    const F8 bias = splat(block.bias) - Isa::bytes8(block.marks + padded + row) * splat(mark_step);
    const F8 logit = bias + __builtin_convertvector(product, F8) * splat(user.scale);
    const F8 bound = (splat(block.bid) - Isa::bytes8(block.marks + row) * splat(mark_step)) + log_sigmoid_bound(logit);
    passed |= static_cast<uint64_t>(Isa::mask8(bound < splat(floor)) ^ 0xffu) << row;
  }
  return block.rows < 64 ? passed & ((uint64_t{1} << block.rows) - 1) : passed;
}

}  // namespace
}  // namespace vitrine
