// embedding: items and positions of packed histories, LayerNorm and dropout.
#pragma once

#include <cstdint>

#include "seed.h"

namespace adarec {

struct Embedding {
  std::int64_t tokens, sequences, size;  // N, B, D
  std::int64_t longest;                  // L; positions count from a sequence's end
  const std::int64_t *item_ids, *offsets;
  const float *table, *positions;  // [V + 1, D], [L, D]
  const float *norm_w, *norm_b;    // [D]
  float eps;
  double dropout;
  bool seeded;
  Seed seed;
};

struct EmbeddingGradients {
  float* table;                        // [V + 1, D], added to; row 0 is left alone
  float *positions, *norm_w, *norm_b;  // written
};

// Floats a token that the forward pass can leave for the backward pass: a bit for every element
// that dropout leaves.
std::int64_t embedding_kept(const Embedding& op);

// x [N, D]; 0 behind the last token. kept: [N, embedding_kept(op)], or null: the backward pass draws
// again. Both ways have the same bits.
void embedding_forward(const Embedding& op, float* x, float* kept);
void embedding_backward(const Embedding& op, const float* grad, const float* kept,
                        const EmbeddingGradients& out);

}  // namespace adarec
