// Pool of Eq. 7 for every level, over jagged sequences.
#pragma once

#include <cstdint>

namespace adarec {

// The call's arguments; sizes and values have been checked.
struct LevelPool {
  std::int64_t levels, tokens, sequences;  // K, N, B
  int size;                                // D
  const std::int64_t* offsets;             // [B+1]
  const std::int64_t* depth;               // [B], or null: all levels exist
  bool causal;
};

// x [K, N, D] to its means [K, B, D], or running means [K, N, D] if causal; what a depth does not
// reach stays as it is. The mean of an empty sequence is 0.
void level_pool_forward(const LevelPool& op, const float* x, float* pooled);
void level_pool_backward(const LevelPool& op, const float* grad, float* grad_x);

}  // namespace adarec
