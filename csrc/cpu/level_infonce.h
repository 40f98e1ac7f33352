// Eq. 6: the contrastive loss between neighbouring coarse levels.
#pragma once

#include <cstdint>

namespace adarec {

struct LevelInfoNCE {
  std::int64_t levels, users, dim;  // K, B, D
  const float* z;                   // [K, B, D]; levels k > depth are not read
  const std::int64_t* depth;        // [B] in 0..K-1
  const std::int64_t* targets;      // [B]
  float temperature;
};

// Floats that the forward pass can leave for the backward pass; -1: there are too many users.
std::int64_t level_infonce_kept(const LevelInfoNCE& op);

// The mean loss. softmax [2, K-1, B]: an anchor's greatest similarity and the sum of e^(similarity -
// greatest) over its candidates; 0 where there is no pair. kept: [level_infonce_kept(op)], or null:
// the backward pass computes what it needs again. Both ways have the same bits.
double level_infonce_forward(const LevelInfoNCE& op, float* softmax, float* kept);
// d_z [K, B, D] of upstream gradient grad; levels k > depth are not written.
void level_infonce_backward(const LevelInfoNCE& op, const float* softmax, const float* kept,
                            float grad, float* d_z);

}  // namespace adarec
