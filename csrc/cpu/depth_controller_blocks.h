// Which sequences of the GRU advance together, and which of their steps are joined.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "depth_controller.h"

namespace adarec::gru {

constexpr int kMostSequences = 60;  // of a block: ten times the rows of a register block
constexpr int kLeastSequences = 12;
constexpr int kChunkRows = 60;      // steps are joined until they have so many rows

struct Steps {
  int begin, end, rows;
};

// Sequences of similar length that advance together.
struct Block {
  std::vector<int64_t> sequence;  // longest first
  std::vector<int64_t> first;     // its first token
  std::vector<int> running;       // [steps]: how many sequences have a token at that step
  std::vector<Steps> chunks;

  int count() const { return static_cast<int>(sequence.size()); }

  // Calls body(row, place in the block, token) for the tokens of some steps, step by step.
  template <typename Body>
  void for_each_token(const Steps& steps, Body&& body) const {
    int row = 0;
    for (int step = steps.begin; step < steps.end; ++step)
      for (int i = 0; i < running[step]; ++i) body(row++, i, first[i] + step);
  }
};

// The sequences by length, longest first; equal lengths stay in order.
inline std::vector<int64_t> by_length(const DepthController& op) {
  auto length = [&](int64_t u) { return op.offsets[u + 1] - op.offsets[u]; };
  int64_t longest = 0;
  for (int64_t u = 0; u < op.sequences; ++u) longest = std::max(longest, length(u));
  std::vector<int64_t> start(longest + 2, 0), order(op.sequences);
  for (int64_t u = 0; u < op.sequences; ++u) ++start[longest - length(u) + 1];
  for (int64_t i = 0; i <= longest; ++i) start[i + 1] += start[i];
  for (int64_t u = 0; u < op.sequences; ++u) order[start[longest - length(u)]++] = u;
  return order;
}

// Few sequences make small blocks, so that there is work for every thread; whole register blocks.
inline int64_t block_size(const DepthController& op) {
  const int64_t share = (op.sequences + 15) / 16;
  return std::clamp<int64_t>((share + 5) / 6 * 6, kLeastSequences, kMostSequences);
}

inline int64_t block_count(const DepthController& op) {
  return (op.sequences + block_size(op) - 1) / block_size(op);
}

inline Block make_block(const DepthController& op, const std::vector<int64_t>& order, int64_t index) {
  Block block;
  const int64_t size = block_size(op);
  const int64_t end = std::min(op.sequences, (index + 1) * size);
  for (int64_t i = index * size; i < end; ++i) {
    block.sequence.push_back(order[i]);
    block.first.push_back(op.offsets[order[i]]);
  }
  auto length = [&](int i) {
    return op.offsets[block.sequence[i] + 1] - op.offsets[block.sequence[i]];
  };
  int running = block.count();
  for (int step = 0; step < length(0); ++step) {
    while (length(running - 1) <= step) --running;
    block.running.push_back(running);
    if (block.chunks.empty() || block.chunks.back().rows >= kChunkRows)
      block.chunks.push_back({step, step, 0});
    Steps& chunk = block.chunks.back();
    chunk.end = step + 1;
    chunk.rows += running;
  }
  return block;
}

}  // namespace adarec::gru
