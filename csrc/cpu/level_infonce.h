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

// The mean loss; lse [K-1, B] is 0 where there is no pair.
double level_infonce_forward(const LevelInfoNCE& op, float* lse);
// d_z [K, B, D] of upstream gradient grad; levels k > depth are not written.
void level_infonce_backward(const LevelInfoNCE& op, const float* lse, float grad, float* d_z);

}  // namespace adarec
