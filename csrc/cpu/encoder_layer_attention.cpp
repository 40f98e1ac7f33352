// Attention of all positions of a tile's segments, forward and backward, with dropout of the
// contract. That of the last positions alone: encoder_layer_readout.cpp.
//
// Keys are transposed once a tile, so that the scores of 16 queries at a time are one small matrix
// product; only 16 rows of scores exist at any moment, whatever the sequence's length.
#include <algorithm>

#include "encoder_layer_scores.h"
#include "encoder_layer_tile.h"
#include "gemm.h"
#include "rows.h"
#include "vec.h"

namespace adarec::encoder {
namespace {

// Some query rows of one item: positions [i0, i1) of each of its levels.
struct Block {
  int i0, i1, keys, ld;  // keys [0, keys) are seen by some of them; ld: keys in whole vectors
  bool causal;
  int count() const { return i1 - i0; }
  int seen(int i) const { return causal ? i + 1 : keys; }  // keys that position i sees
};

template <class Body>
void for_each_block(const EncoderLayer& op, const Plan& plan, const Tile& tile, Body&& body) {
  for (int64_t n = tile.first; n < tile.last; ++n) {
    const Item& item = plan.items[n];
    for (int i0 = 0; i0 < item.length; i0 += kBlock) {
      const int i1 = std::min<int>(i0 + kBlock, item.length);
      const int keys = op.causal ? i1 : item.length;
      for (int head = 0; head < op.heads; ++head)
        body(item, Block{i0, i1, keys, static_cast<int>(padded(keys)), op.causal}, head);
    }
  }
}

// keep [levels, kBlock, ld]: 0 or 1/(1-p) for the probabilities of a block and head.
void block_keep(const ScoreKeep& kept, const Item& item, const Block& block, int head,
                float* keep) {
  for (int i = block.i0; i < block.i1; ++i)
    kept(item, i, block.seen(i), head, keep + (i - block.i0) * block.ld, kBlock * block.ld);
}

// `query` is the block's first row, `key` the segment's. Columns of keys that a query does not
// see become zero.
void probabilities(const Sizes& s, const Attention& a, const Block& block, int head, int64_t query,
                   int64_t key) {
  const int64_t column = head * s.head;
  gemm_nn(block.count(), block.ld, s.head, a.q + query * a.ld_qkv + column, a.ld_qkv,
          a.kt + column * a.ld_t + key, a.ld_t, a.scores, block.ld, 0);
  for (int i = block.i0; i < block.i1; ++i)
    softmax_row(block.seen(i), block.ld, score_scale(s), a.scores + (i - block.i0) * block.ld);
}

}  // namespace

void attention(const EncoderLayer& op, const Sizes& s, const Weights& weights, const Plan& plan,
               const Tile& tile, const Workspace& w) {
  const Attention& a = w.all;
  set_rows(tile.rows, 3 * s.dp, weights.qkv_b, a.q, a.ld_qkv);
  gemm_nn(tile.rows, 3 * s.dp, s.d, w.x, s.dp, weights.qkv_t, 3 * s.dp, a.q, a.ld_qkv, 1);
  transpose_rows(tile.rows, s.d, a.k, a.ld_qkv, a.kt, a.ld_t);
  const bool dropout = drops_scores(op);
  const ScoreKeep kept(op);
  for_each_block(op, plan, tile, [&](const Item& item, const Block& block, int head) {
    if (dropout) block_keep(kept, item, block, head, a.keep);
    const int64_t column = head * s.head;
    for (int level = 0; level < item.levels; ++level) {
      const int64_t key = item.row + level * item.length, query = key + block.i0;
      probabilities(s, a, block, head, query, key);
      if (dropout) {
        const float* keep = a.keep + level * kBlock * block.ld;
        for (int i = 0; i < block.count(); ++i)
          // Whole vectors: beyond the last key that is seen the probability is 0.
          for (int j = 0; j < block.seen(block.i0 + i); j += kWidth) {
            const int64_t at = i * block.ld + j;
            store(a.scores + at, load(a.scores + at) * load(keep + at));
          }
      }
      gemm_nn(block.count(), s.head, block.keys, a.scores, block.ld, a.v + key * a.ld_qkv + column,
              a.ld_qkv, w.context + query * s.dp + column, s.dp, 0);
    }
  });
}

// With P the probabilities, m the kept scales and A = P m: dP = (dC V^T) m,
// dS = P (dP - rowsum(P dP)) / sqrt(d), dQ = dS K, dK = dS^T Q, dV = A^T dC.
void attention_backward(const EncoderLayer& op, const Sizes& s, const Weights& weights,
                        const Plan& plan, const Tile& tile, const Workspace& w,
                        const float* d_context, const Sums& g, void* d_x) {
  const Attention& a = w.all;
  transpose_rows(tile.rows, s.d, a.v, a.ld_qkv, a.vt, a.ld_t);
  for (int r = 0; r < tile.rows; ++r) {
    std::fill_n(a.dk + r * a.ld_qkv, s.dp, 0.0f);
    std::fill_n(a.dv + r * a.ld_qkv, s.dp, 0.0f);
  }
  const bool dropout = drops_scores(op);
  const ScoreKeep kept(op);
  const Vec scale = set1(score_scale(s));
  for_each_block(op, plan, tile, [&](const Item& item, const Block& block, int head) {
    if (dropout) block_keep(kept, item, block, head, a.keep);
    const int64_t column = head * s.head;
    for (int level = 0; level < item.levels; ++level) {
      const int64_t key = item.row + level * item.length, query = key + block.i0;
      const float* dc = d_context + query * s.dp + column;
      probabilities(s, a, block, head, query, key);
      gemm_nn(block.count(), block.ld, s.head, dc, s.dp, a.vt + column * a.ld_t + key, a.ld_t,
              a.dscores, block.ld, 0);
      for (int i = 0; i < block.count(); ++i) {
        float *prob = a.scores + i * block.ld, *grad = a.dscores + i * block.ld;
        const float* keep = a.keep + (level * kBlock + i) * block.ld;
        const int count = block.seen(block.i0 + i);
        Vec total = zero();
        // Whole vectors are stored; beyond the last key that is seen lies what may be no number.
        for_lanes(count, [&](int j, auto m) {
          Vec g = load(grad + j, m);
          if (dropout) g = g * load(keep + j, m);
          store(grad + j, g);
          total = fma(g, load(prob + j), total);
        });
        const Vec mean = set1(sum(total));
        for (int j = 0; j < count; j += kWidth) {
          const Vec p = load(prob + j);
          store(grad + j, p * (load(grad + j) - mean) * scale);
          if (dropout) store(prob + j, p * load(keep + j));
        }
        // Beyond the keys that the row sees the product left other numbers.
        std::fill(grad + count, grad + block.keys, 0.0f);
      }
      gemm_nn(block.count(), s.head, block.keys, a.dscores, block.ld, a.k + key * a.ld_qkv + column,
              a.ld_qkv, a.dq + query * a.ld_qkv + column, a.ld_qkv, 0);
      gemm_tn(block.keys, s.head, block.count(), a.dscores, block.ld,
              a.q + query * a.ld_qkv + column, a.ld_qkv, a.dk + key * a.ld_qkv + column, a.ld_qkv);
      gemm_tn(block.keys, s.head, block.count(), a.scores, block.ld, dc, s.dp,
              a.dv + key * a.ld_qkv + column, a.ld_qkv);
    }
  });
  linear_sums(tile.rows, 3 * s.dp, s.dp, a.dq, a.ld_qkv, w.x, s.dp, g.qkv_w, s.dp, g.qkv_b);
  gemm_nn(tile.rows, s.dp, 3 * s.dp, a.dq, a.ld_qkv, weights.qkv, s.dp, w.y, s.dp, 1);
  for_each_row(op, plan, tile, [&](int64_t to, int64_t, int64_t from) {
    store_row(w.y + from * s.dp, op.bf16, to, s.d, d_x);
  });
}

}  // namespace adarec::encoder
