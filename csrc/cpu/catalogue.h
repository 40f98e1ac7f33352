// Ops over the whole catalogue: Eq. 13 and the ranking.
#pragma once

#include <cstdint>

namespace adarec {

struct CrossEntropy {
  std::int64_t rows, items, dim;  // items = V; row 0 of the embeddings is padding
  const float* hidden;            // [rows, dim]
  const float* weight;            // [items + 1, dim]
  const std::int64_t* targets;    // [rows] in 0..V; 0: the row does not count
  float* grad_hidden;             // [rows, dim] or null
  float* grad_weight;             // [items + 1, dim] or null
};

// The mean loss; the gradients are those of an upstream gradient of 1.
double linear_cross_entropy(const CrossEntropy& op);

struct TopK {
  std::int64_t users, items, dim, k;   // 1 <= k <= items = V < 2^32
  const float* user_vectors;           // [users, dim]
  const float* item_vectors;           // [items + 1, dim]; row 0 is padding
  const std::int64_t* seen;            // seen items in 0..V, packed
  const std::int64_t* seen_offsets;    // [users + 1]
  float seen_score;                    // what a seen item scores
  float* scores;                       // [users, k], falling
  std::int64_t* best;                  // [users, k]
};

// The ranking of one of its users alone.
inline TopK of_user(TopK op, std::int64_t user) {
  op.users = 1;
  op.user_vectors += user * op.dim;
  op.seen_offsets += user;
  op.scores += user * op.k;
  op.best += user * op.k;
  return op;
}

void score_topk(const TopK& op);

// The same for a few users: the catalogue is shared out, not the users.
constexpr std::int64_t kFewUsers = 8;
void score_topk_few(const TopK& op);

}  // namespace adarec
