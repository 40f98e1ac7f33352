// The token-wise coarse expert LN(dropout(W2 GELU(W1 x + b1) + b2)) over levels of ragged depth;
// with a path around the MLP, x is added before LN.
#pragma once

#include <cstdint>

#include "seed.h"

namespace adarec {

class Scratch;

// The call's arguments; sizes and values have been checked.
struct MLPExpert {
  std::int64_t levels, tokens, sequences;  // K, N, B
  int size, hidden;                        // D, H
  const float* x;                          // [K, N, D]
  const std::int64_t* offsets;             // [B+1]
  const std::int64_t* depth;               // [B], or null: all levels exist
  const float *w1, *b1;                    // [H, D], [H]
  const float *w2, *b2;                    // [D, H], [D]
  const float *ln_w, *ln_b;                // [D]
  float eps;
  double dropout;
  bool seeded;                             // dropout is off without a seed
  Seed seed;
  std::uint32_t stream;
  bool residual;
  bool last_only;
};

struct MLPExpertGradients {
  float *x, *w1, *b1, *w2, *b2, *ln_w, *ln_b;
};

// The weights as the forward pass reads them, packed into the scratch they are taken from.
struct MLPExpertWeights {
  const float *w1_t, *w2_t;  // [D, H], [H, D]
};
MLPExpertWeights mlp_expert_pack(const MLPExpert& op, Scratch& scratch);

// Floats a row of y that the forward pass can leave for the backward pass.
std::int64_t mlp_expert_kept(const MLPExpert& op);

// y [K, N, D], or [K, B, D] if last_only; what a depth does not reach stays as it is, in the
// gradient of x as well. kept: [rows of y, mlp_expert_kept(op)], or null: the backward pass computes
// what it needs again. Both ways have the same bits.
void mlp_expert_forward(const MLPExpert& op, float* y, float* kept);
// The same on packed weights; w1 and w2 of op are not read.
void mlp_expert_forward(const MLPExpert& op, const MLPExpertWeights& weights, float* y,
                        float* kept);
void mlp_expert_backward(const MLPExpert& op, const float* grad_y, const float* kept,
                         const MLPExpertGradients& out);

}  // namespace adarec
