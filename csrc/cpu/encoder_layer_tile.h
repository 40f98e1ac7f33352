// What the forward and backward passes of the encoder layer share: the plan of tiles, the packed
// weights and the scratch of one tile.
//
// A segment is one level of one sequence; its tokens attend among themselves alone. A tile is a
// list of whole segments whose rows are gathered into scratch, so that every matrix product sees
// about 64 rows however short the sequences are, and nothing between x and y leaves the cache.
// The levels 4j .. 4j+3 of a sequence stay together where they fit: one Philox call of the noise
// contract yields the dropout words of all four.
#pragma once

#include <cstdint>
#include <vector>

#include "encoder_layer.h"
#include "parallel.h"

namespace adarec::encoder {

// Some consecutive levels (inside one group of four) of one sequence.
struct Item {
  int64_t begin;     // first token
  int64_t sequence;
  int32_t length;
  int32_t level;     // first level
  int32_t levels;    // how many
  int32_t row;       // first row in the tile; level j's rows follow at row + j * length
  int32_t query;     // first query row; the same as row, or one a segment if last_only
};

struct Tile {
  int64_t first, last;  // items [first, last)
  int32_t rows, queries;
};

struct Plan {
  std::vector<Item> items;
  std::vector<Tile> tiles;
  int32_t max_rows = 0, max_queries = 0, max_length = 0;
};

Plan make_plan(const EncoderLayer& op);

// Sizes padded to whole vectors: padding columns of weights are zero, so no inner loop has a tail.
struct Sizes {
  int64_t d, f;        // D and F
  int64_t dp, fp;      // padded to 16
  int64_t heads, head; // H and D / H
  int64_t levels, tokens;
};

Sizes make_sizes(const EncoderLayer& op);

// Weights as the products read them: [in, out] for the forward pass, [out, in] for the backward
// pass; queries, keys and values at columns 0, dp, 2 dp.
struct Weights {
  const float *qkv_t, *out_t, *ff1_t, *ff2_t;  // [d, 3dp], [d, dp], [d, fp], [f, dp]
  const float *qkv, *out, *ff1, *ff2;          // [3dp, dp], [dp, dp], [fp, dp], [dp, fp]
  const float *qkv_b, *out_b, *ln1_w, *ln1_b, *ff1_b, *ff2_b, *ln2_w, *ln2_b;
  const float* valid;                          // [dp]: 1 for real columns, 0 for padding
};

Weights pack_weights(const EncoderLayer& op, const Sizes& s, bool backward, Scratch& scratch);

// What a tile works on. R rows, Q query rows, kt/vt are transposed, ld_t columns.
struct Workspace {
  float *x, *xq;             // [R, dp], [Q, dp] (the same memory unless last_only)
  float *q, *k, *v;          // columns of one [R, 3dp]; if last_only [Q, dp] and [R, 2dp]
  float *kt, *vt;            // [dp, ld_t]
  float *context;            // [Q, dp]
  float *xhat1, *rstd1, *h;  // [Q, dp], [Q], [Q, dp]: the first LayerNorm
  float *g, *dg;             // [Q, fp]: GELU and its derivative
  float *xhat2, *rstd2, *y;  // the second LayerNorm
  float *keep1, *keep2;      // [Q, dp]: 0 or 1/(1-p) for projection and feed-forward
  float *scores, *dscores;   // [kBlock, ld_s]
  float *keep_scores;        // [levels of an item, kBlock, ld_s]
  float *dq, *dk, *dv, *dh;  // gradients: laid out like q, k, v; [Q, dp]
  int64_t ld_q, ld_kv, ld_t, ld_s;
};

constexpr int kBlock = 16;  // query rows of an attention step

// Streams of the layer's dropout sites, from its first stream on (adarec_fast/rng.py).
constexpr uint32_t kSiteAttention = 0, kSiteProjection = 1, kSiteFeedForward = 2;

Workspace make_workspace(const EncoderLayer& op, const Sizes& s, const Plan& plan, bool backward,
                         Scratch& scratch);

// attention: softmax(q k^T / sqrt(d)) v for every segment of a tile, and its gradient.
void attention(const EncoderLayer& op, const Sizes& s, const Plan& plan, const Tile& tile,
               const Workspace& w);
// Reads the gradient of the context from `d_context` [Q, dp], writes dq, dk and dv.
void attention_backward(const EncoderLayer& op, const Sizes& s, const Plan& plan, const Tile& tile,
                        const Workspace& w, const float* d_context);

// Runs a tile up to y; with a workspace for the backward pass also leaves there what that needs.
void tile_forward(const EncoderLayer& op, const Sizes& s, const Weights& weights, const Plan& plan,
                  const Tile& tile, const Workspace& w);

// Calls body(global row, row of the tile) for the rows of x [K, N, D] that a tile holds, or for
// its query rows of y, which is [K, B, D] if last_only.
template <typename Body>
void for_each_row(const EncoderLayer& op, const Plan& plan, const Tile& tile, bool queries,
                  Body&& body) {
  for (int64_t n = tile.first; n < tile.last; ++n) {
    const Item& item = plan.items[n];
    for (int64_t level = item.level; level < item.level + item.levels; ++level) {
      const int64_t j = level - item.level;
      if (queries && op.last_only) {
        body(level * op.sequences + item.sequence, item.query + j);
      } else {
        for (int64_t i = 0; i < item.length; ++i)
          body(level * op.tokens + item.begin + i, item.row + j * item.length + i);
      }
    }
  }
}

}  // namespace adarec::encoder
