// Elements of many tensors in blocks of fixed size, so that threads share large tensors and take
// several small ones.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace adarec {

struct Block {
  std::int64_t tensor, begin;
  int count;
};

// Few enough that one is read from L2 again, and enough for a task.
constexpr std::int64_t kBlock = 16384;

// count_of(t) is the number of elements of tensor t.
template <typename CountOf>
std::vector<Block> blocks_of(std::int64_t tensors, CountOf&& count_of) {
  std::vector<Block> blocks;
  for (std::int64_t t = 0; t < tensors; ++t) {
    const std::int64_t count = count_of(t);
    for (std::int64_t begin = 0; begin < count; begin += kBlock)
      blocks.push_back({t, begin, static_cast<int>(std::min(kBlock, count - begin))});
  }
  return blocks;
}

// The blocks in runs of about kBlock elements together, for parallel_for: run r is
// [bounds[r], bounds[r + 1]).
inline std::vector<std::int64_t> runs_of(const std::vector<Block>& blocks) {
  std::vector<std::int64_t> bounds{0};
  std::int64_t gathered = 0;
  for (std::int64_t b = 0; b < static_cast<std::int64_t>(blocks.size()); ++b) {
    gathered += blocks[b].count;
    if (gathered < kBlock) continue;
    bounds.push_back(b + 1);
    gathered = 0;
  }
  if (bounds.back() < static_cast<std::int64_t>(blocks.size()))
    bounds.push_back(static_cast<std::int64_t>(blocks.size()));
  return bounds;
}

}  // namespace adarec
