// The coarse expert, of whose results last rows and means over tokens are wanted, and the means of
// what it reads.
#pragma once

#include "level_pool.h"
#include "mlp_expert.h"

namespace adarec {

struct MLPExpertPooled {
  MLPExpert expert;  // all tokens, with a depth; no sequence is empty
  bool content;      // whether the means of x are wanted

  LevelPool pool() const {
    return {expert.levels, expert.tokens,  expert.sequences, expert.size,
            expert.offsets, expert.depth, false};
  }
};

// last, pooled, content [K, B, D]; kept as mlp_expert_forward's; levels [K, N, D] is for use here.
void mlp_expert_pooled_forward(const MLPExpertPooled& op, float* levels, float* last,
                               float* pooled, float* content, float* kept);
void mlp_expert_pooled_backward(const MLPExpertPooled& op, float* levels, const float* d_last,
                                const float* d_pooled, const float* d_content, const float* kept,
                                const MLPExpertGradients& out);

}  // namespace adarec
