// Causal attention of a tile's segments, forward and backward, with dropout of the contract.
//
// Keys are transposed once a tile, so that the scores of 16 queries at a time are one small matrix
// product; only 16 rows of scores exist at any moment, whatever the sequence's length.
#include <algorithm>
#include <cmath>

#include "encoder_layer_tile.h"
#include "gemm.h"
#include "philox.h"
#include "rows.h"
#include "vec.h"

namespace adarec::encoder {
namespace {

// Some query rows of one item: positions [i0, i1) of each of its levels.
struct Block {
  int i0, i1, ld;  // ld: columns of a row of scores, whole vectors
  int count() const { return i1 - i0; }
};

// The first row of a level's keys, and of its queries that belong to the block.
int64_t key_row(const Item& item, int level) { return item.row + level * item.length; }

int64_t query_row(const EncoderLayer& op, const Item& item, const Block& block, int level) {
  return item.query + (op.last_only ? level : level * item.length + block.i0);
}

template <class Body>
void for_each_block(const EncoderLayer& op, const Plan& plan, const Tile& tile, Body&& body) {
  for (int64_t n = tile.first; n < tile.last; ++n) {
    const Item& item = plan.items[n];
    for (int i0 = op.last_only ? item.length - 1 : 0; i0 < item.length; i0 += kBlock) {
      const int i1 = std::min<int>(i0 + kBlock, item.length);
      for (int head = 0; head < op.heads; ++head)
        body(item, Block{i0, i1, static_cast<int>(padded(i1))}, head);
    }
  }
}

// keep [levels, kBlock, ld]: 0 or 1/(1-p) for the probabilities of a block and head.
void attention_keep(const EncoderLayer& op, const Item& item, const Block& block, int head,
                    float* keep) {
  const Philox philox(op.seed, op.stream + kSiteAttention, std::int64_t{op.heads} << 16);
  const Dropout dropout(op.attention_dropout);
  const Vec scale = set1(dropout.scale());
  for (int i = block.i0; i < block.i1; ++i) {
    const int64_t base = ((item.begin + i) * op.heads + head) << 16;
    for (int j = 0; j <= i; j += kWidth) {
      const Words words = philox(base + j, item.level / kLanes);
      for (int level = 0; level < item.levels; ++level)
        store(keep + (level * kBlock + i - block.i0) * block.ld + j,
              adarec::keep(dropout.kept(words.word[item.level % kLanes + level]), scale));
    }
  }
}

// Scores become probabilities in place; columns beyond the query's own position become zero.
void softmax_rows(const Block& block, float scale, float* scores) {
  for (int i = block.i0; i < block.i1; ++i) {
    float* row = scores + (i - block.i0) * block.ld;
    const int count = i + 1, whole = count / kWidth * kWidth;
    const Mask tail = first(count - whole);
    Vec top = select(tail, load(row + whole, tail), set1(-INFINITY));
    for (int j = 0; j < whole; j += kWidth) top = max(top, load(row + j));
    const Vec slope = set1(scale), shift = set1(-scale * largest(top));
    Vec total = zero();
    for (int j = 0; j < whole; j += kWidth) {
      const Vec e = exp(fma(load(row + j), slope, shift));
      store(row + j, e);
      total = total + e;
    }
    const Vec last = keep(tail, exp(fma(load(row + whole, tail), slope, shift)));
    const Vec inverse = set1(1.0f / sum(total + last));
    for (int j = 0; j < whole; j += kWidth) store(row + j, load(row + j) * inverse);
    if (whole < block.ld) store(row + whole, last * inverse);
    for (int j = whole + kWidth; j < block.ld; j += kWidth) store(row + j, zero());
  }
}

void probabilities(const Sizes& s, const Workspace& w, const Block& block, int head, int64_t query,
                   int64_t key) {
  const int64_t column = head * s.head;
  gemm_nn(block.count(), block.ld, s.head, w.q + query * w.ld_q + column, w.ld_q,
          w.kt + column * w.ld_t + key, w.ld_t, w.scores, block.ld, 0);
  softmax_rows(block, 1.0f / std::sqrt(static_cast<float>(s.head)), w.scores);
}

}  // namespace

void attention(const EncoderLayer& op, const Sizes& s, const Plan& plan, const Tile& tile,
               const Workspace& w) {
  transpose_rows(tile.rows, s.d, w.k, w.ld_kv, w.kt, w.ld_t);
  const bool dropout = op.seeded && op.attention_dropout > 0;
  for_each_block(op, plan, tile, [&](const Item& item, const Block& block, int head) {
    if (dropout) attention_keep(op, item, block, head, w.keep_scores);
    const int64_t column = head * s.head;
    for (int level = 0; level < item.levels; ++level) {
      const int64_t query = query_row(op, item, block, level), key = key_row(item, level);
      probabilities(s, w, block, head, query, key);
      if (dropout) {
        const float* kept = w.keep_scores + level * kBlock * block.ld;
        for (int i = 0; i < block.count(); ++i)
          for_lanes(block.i0 + i + 1, [&](int j, auto m) {
            const int64_t at = i * block.ld + j;
            store(w.scores + at, load(w.scores + at, m) * load(kept + at, m), m);
          });
      }
      gemm_nn(block.count(), s.head, block.i1, w.scores, block.ld, w.v + key * w.ld_kv + column,
              w.ld_kv, w.context + query * s.dp + column, s.dp, 0);
    }
  });
}

// With P the probabilities, m the kept scales and A = P m: dP = (dC V^T) m,
// dS = P (dP - rowsum(P dP)) / sqrt(d), dQ = dS K, dK = dS^T Q, dV = A^T dC.
void attention_backward(const EncoderLayer& op, const Sizes& s, const Plan& plan, const Tile& tile,
                        const Workspace& w, const float* d_context) {
  transpose_rows(tile.rows, s.d, w.v, w.ld_kv, w.vt, w.ld_t);
  for (int r = 0; r < tile.rows; ++r) {
    std::fill_n(w.dk + r * w.ld_kv, s.dp, 0.0f);
    std::fill_n(w.dv + r * w.ld_kv, s.dp, 0.0f);
  }
  const bool dropout = op.seeded && op.attention_dropout > 0;
  const Vec scale = set1(1.0f / std::sqrt(static_cast<float>(s.head)));
  for_each_block(op, plan, tile, [&](const Item& item, const Block& block, int head) {
    if (dropout) attention_keep(op, item, block, head, w.keep_scores);
    const int64_t column = head * s.head;
    for (int level = 0; level < item.levels; ++level) {
      const int64_t query = query_row(op, item, block, level), key = key_row(item, level);
      const float* dc = d_context + query * s.dp + column;
      probabilities(s, w, block, head, query, key);
      gemm_nn(block.count(), block.ld, s.head, dc, s.dp, w.vt + column * w.ld_t + key, w.ld_t,
              w.dscores, block.ld, 0);
      for (int i = 0; i < block.count(); ++i) {
        float *prob = w.scores + i * block.ld, *grad = w.dscores + i * block.ld;
        const float* kept = w.keep_scores + (level * kBlock + i) * block.ld;
        const int count = block.i0 + i + 1;
        Vec total = zero();
        for_lanes(count, [&](int j, auto m) {
          Vec g = load(grad + j, m);
          if (dropout) g = g * load(kept + j, m);
          store(grad + j, g, m);
          total = fma(g, load(prob + j, m), total);
        });
        const Vec mean = set1(sum(total));
        for_lanes(count, [&](int j, auto m) {
          const Vec p = load(prob + j, m);
          store(grad + j, p * (load(grad + j, m) - mean) * scale, m);
          if (dropout) store(prob + j, p * load(kept + j, m), m);
        });
        // Beyond the row's own position the product left other segments' numbers.
        std::fill(grad + count, grad + block.i1, 0.0f);
      }
      gemm_nn(block.count(), s.head, block.i1, w.dscores, block.ld, w.k + key * w.ld_kv + column,
              w.ld_kv, w.dq + query * w.ld_q + column, w.ld_q, 0);
      gemm_tn(block.i1, s.head, block.count(), w.dscores, block.ld,
              w.q + query * w.ld_q + column, w.ld_q, w.dk + key * w.ld_kv + column, w.ld_kv);
      gemm_tn(block.i1, s.head, block.count(), w.scores, block.ld, dc, s.dp,
              w.dv + key * w.ld_kv + column, w.ld_kv);
    }
  });
}

}  // namespace adarec::encoder
