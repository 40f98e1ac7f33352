// Eq. 4 and 5: noising, denoiser and x0 for all levels of ragged depth.
#pragma once

#include <cstdint>

#include "seed.h"

namespace adarec {

class Scratch;

// The call's arguments; sizes and values have been checked.
struct HDATrajectory {
  std::int64_t levels, tokens, sequences;  // T + 1, N, B
  int size, hidden;                        // D, H
  const float* embeddings;                 // [N, D]
  const std::int64_t* offsets;             // [B+1]
  const std::int64_t* depth;               // [B]
  const float* alpha_bar;                  // [T+1]
  const float* w1;                         // [H, D]
  const float* level_bias;                 // [T, H]
  const float* w2;                         // [D, H]
  const float* b2;                         // [D]
  bool seeded;
  Seed seed;
  const float* noise;                      // [T, N, D], or null
  bool bounded;                            // eps_theta = spread E_k + signal F, not F itself
};

struct HDATrajectoryGradients {
  float *embeddings, *w1, *level_bias, *w2, *b2;
};

// The weights as the forward pass reads them, packed into the scratch they are taken from.
struct HDATrajectoryWeights {
  const float *w1_t, *w2_t;  // [D, H], [H, D]
};
HDATrajectoryWeights hda_trajectory_pack(const HDATrajectory& op, Scratch& scratch);

// x0 [T+1, N, D], error [N]. Levels beyond a depth and tokens behind the last offset stay as they
// are in x0; the error of such tokens is 0. kept: [T N, hda_trajectory_kept(op)], or null: the
// backward pass computes what it needs again. Both ways have the same bits.
void hda_trajectory_forward(const HDATrajectory& op, float* x0, float* error, float* kept);
// The same on packed weights; w1 and w2 of op are not read.
void hda_trajectory_forward(const HDATrajectory& op, const HDATrajectoryWeights& weights,
                            float* x0, float* error, float* kept);
void hda_trajectory_backward(const HDATrajectory& op, const float* grad_x0,
                             const float* grad_error, const float* kept,
                             const HDATrajectoryGradients& out);

// Floats a token and level that the forward pass can leave for the backward pass; without noise it
// leaves nothing there.
std::int64_t hda_trajectory_kept(const HDATrajectory& op);

}  // namespace adarec
