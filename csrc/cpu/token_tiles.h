// Tiles of rows for ops that treat every token by itself, at every level up to its depth.
//
// Rows are ordered by falling depth (stable), so level k of a tile is a prefix of its rows: work
// is proportional to the levels that exist, and a product sees as many rows as there are.
#pragma once

#include <algorithm>
#include <cstdint>

#include "parallel.h"
#include "vec.h"

namespace adarec {

struct TokenRow {
  std::int64_t token;   // where the row is read
  std::int64_t target;  // where it is written: the token, or its sequence for a last token
  std::int32_t depth;   // levels 0..depth exist
};

struct TokenTiles {
  const TokenRow* rows;
  std::int64_t count;
  std::int32_t tile;    // rows a tile, but for the last

  std::int64_t tiles() const { return (count + tile - 1) / tile; }
  std::int64_t begin(std::int64_t t) const { return t * tile; }
  int size(std::int64_t t) const {
    return static_cast<int>(std::min<std::int64_t>(tile, count - begin(t)));
  }
  // Rows of tile t that reach level k.
  int reaching(std::int64_t t, int k) const {
    const TokenRow* at = rows + begin(t);
    int n = size(t);
    while (n > 0 && at[n - 1].depth < k) --n;
    return n;
  }
};

// depth null: all levels exist. last_only: a row a sequence, its last token.
inline TokenTiles make_token_tiles(std::int64_t sequences, const std::int64_t* offsets,
                                   const std::int64_t* depth, std::int64_t levels, bool last_only,
                                   std::int32_t tile, Scratch& scratch) {
  const std::int64_t count = last_only ? sequences : offsets[sequences];
  TokenRow* rows = scratch.take<TokenRow>(count);
  std::int64_t* next = scratch.zeros<std::int64_t>(levels + 1);
  auto depth_of = [&](std::int64_t s) { return depth == nullptr ? levels - 1 : depth[s]; };
  auto rows_of = [&](std::int64_t s) { return last_only ? 1 : offsets[s + 1] - offsets[s]; };
  // Counting sort: next[j] is where the rows of depth levels - 1 - j begin.
  for (std::int64_t s = 0; s < sequences; ++s) next[levels - depth_of(s)] += rows_of(s);
  for (std::int64_t j = 1; j <= levels; ++j) next[j] += next[j - 1];
  for (std::int64_t s = 0; s < sequences; ++s) {
    const std::int64_t k = depth_of(s);
    std::int64_t& at = next[levels - 1 - k];
    if (last_only) {
      rows[at++] = {offsets[s + 1] - 1, s, static_cast<std::int32_t>(k)};
    } else {
      for (std::int64_t token = offsets[s]; token < offsets[s + 1]; ++token)
        rows[at++] = {token, token, static_cast<std::int32_t>(k)};
    }
  }
  return {rows, count, tile};
}

// Float sums of groups of tiles: group g takes the tiles g, g + groups, ..., in that order, into
// memory of its own, and the groups are added in order. So weight gradients have the same bits
// whatever the number of threads.
class GroupSums {
 public:
  GroupSums(std::int64_t tiles, std::int64_t floats, Scratch& scratch)
      : tiles_(tiles), groups_(std::min<std::int64_t>(tiles, kMaxGroups)), floats_(floats),
        sums_(scratch.take(groups_ * floats)) {}

  // body(tile, sums of the tile's group); sums begin at zero.
  template <typename Body>
  void run(Body&& body) const {
    parallel_for(groups_, [&](std::int64_t g) {
      float* sums = sums_ + g * floats_;
      std::fill(sums, sums + floats_, 0.0f);
      for (std::int64_t t = g; t < tiles_; t += groups_) body(t, sums);
    });
  }

  // out[count] = the groups' sums from `first` on.
  void add_up(std::int64_t first, std::int64_t count, float* out) const {
    constexpr std::int64_t kChunk = 4096;
    parallel_for((count + kChunk - 1) / kChunk, [&](std::int64_t chunk) {
      const std::int64_t begin = chunk * kChunk;
      const int n = static_cast<int>(std::min(kChunk, count - begin));
      for_lanes(n, [&](int i, auto m) {
        Vec total = zero();
        for (std::int64_t g = 0; g < groups_; ++g)
          total = total + load(sums_ + g * floats_ + first + begin + i, m);
        store(out + begin + i, total, m);
      });
    });
  }

 private:
  static constexpr std::int64_t kMaxGroups = 32;
  std::int64_t tiles_, groups_, floats_;
  float* sums_;
};

}  // namespace adarec
