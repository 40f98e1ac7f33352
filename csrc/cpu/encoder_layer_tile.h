// What the forward and backward passes of the encoder layer share: the plan of tiles, the packed
// weights and the scratch of one tile.
//
// A segment is one level of one sequence; its tokens attend among themselves alone. A tile is a
// list of whole segments whose query rows, those that y has, are gathered into scratch, so that
// every matrix product sees about 64 rows however short the sequences are, and nothing between x
// and y leaves the cache. A segment has a query row for each token, with last_only just one.
// The levels 4j .. 4j+3 of a sequence stay together where they fit: one Philox call of the noise
// contract yields the dropout words of all four.
#pragma once

#include <cstdint>
#include <vector>

#include "encoder_layer.h"
#include "gemm.h"
#include "parallel.h"

namespace adarec::encoder {

// Some consecutive levels (inside one group of four) of one sequence.
struct Item {
  int64_t begin;     // first token
  int64_t sequence;
  int32_t length;
  int32_t level;     // first level
  int32_t levels;    // how many
  int32_t row;       // first query row in the tile; level j's are at row + j * queries(op, item)
  int32_t key;       // last_only: place of its first score; level j's at key + j * padded(length)
};

struct Tile {
  int64_t first, last;  // items [first, last)
  int32_t rows, keys;   // query rows, scores of a head (last_only)
  int64_t before;       // query rows of the tiles before
};

struct Plan {
  std::vector<Item> items;
  std::vector<Tile> tiles;
  int32_t max_rows = 0, max_keys = 0, max_length = 0;
};

Plan make_plan(const EncoderLayer& op);

// Query rows of each of an item's segments.
inline int64_t queries(const EncoderLayer& op, const Item& item) {
  return op.last_only ? 1 : item.length;
}

// Sizes padded to whole vectors: padding columns of weights are zero, so no inner loop has a tail.
struct Sizes {
  int64_t d, f;        // D and F
  int64_t dp, fp;      // padded to 16
  int64_t heads, head; // H and D / H
  int64_t levels, tokens;
};

Sizes make_sizes(const EncoderLayer& op);

// Weights as the products read them: [in, out] for the forward pass, [out, in] for the backward
// pass. What the call does not read is null: the first two belong to attention of all positions,
// the next six to that of the last.
struct Weights {
  const float *qkv_t, *qkv;                     // [d, 3dp], [3dp, dp]: a part at 0, dp, 2 dp
  const float *q_t, *k_t, *v_t, *q, *k, *v;     // [d, dp]
  const float *out_t, *ff1_t, *ff2_t;           // [d, dp], [d, fp], [f, dp]
  const float *out, *ff1, *ff2;                 // [dp, dp], [fp, dp], [dp, fp]
  const float *qkv_b;                           // [3dp]
  const float *out_b, *ln1_w, *ln1_b, *ff1_b, *ff2_b, *ln2_w, *ln2_b;
  const float* valid;                           // [dp]: 1 for real columns, 0 for padding
};

Weights pack_weights(const EncoderLayer& op, const Sizes& s, bool backward, Scratch& scratch);

// Attention of all positions: queries, keys and values are columns of one [R, 3dp]; kt, vt are
// transposed, ld_t columns.
struct Attention {
  float *q, *k, *v, *dq, *dk, *dv;
  float *kt, *vt;            // [d, ld_t]
  float *scores, *dscores;   // [kBlock, ld_s]
  float *keep;               // [levels of an item, kBlock, ld_s]
  int64_t ld_qkv, ld_t, ld_s;
};

// Attention of the last positions: see encoder_layer_readout.cpp.
struct Readout {
  float *q, *dq;             // [R, dp]
  float *folded;             // [R, 2, H, dp]: q' and the gradient of `mean`
  float *mean, *d_folded;    // [R, H, dp]: the weighted sum of x, and the gradient of q'
  float *share;              // [R, H]: the sum of the weights
  float* weights;            // [2, H, padded(length)] a segment, at 2 H key: the probabilities,
                             // then the gradient of the scores; and what dropout leaves of them
  float* scores;             // [levels, H, padded(length)] of one item
  float* rows;               // [levels * length, dp] of one item, unless x is read as it lies
};

// What a tile of R query rows works on.
struct Workspace {
  float *x;                  // [R, dp]
  float *context;            // [R, dp]
  float *xhat1, *rstd1, *h;  // [R, dp], [R], [R, dp]: the first LayerNorm
  float *u, *g, *dg;         // [R, fp]: what GELU sees less its bias, may be g; GELU, its derivative
  float *xhat2, *rstd2, *y;  // the second LayerNorm
  LaneBits *keep1, *keep2;   // of R dp / kWidth vectors: what dropout leaves of projection, inner
  float *dh;                 // [R, dp]
  Attention all;
  Readout last;              // one of the two, as last_only says
};

inline int64_t keep_words(int64_t rows, const Sizes& s) { return lane_bits(rows * s.dp / kWidth); }

// Puts what the backward pass needs of a tile into its part of the memory that is kept.
void use_kept(const EncoderLayer& op, const Sizes& s, const Tile& tile, float* kept, Workspace& w);

constexpr int kBlock = 16;  // query rows of an attention step

// Streams of the layer's dropout sites, from its first stream on (adarec_fast/rng.py).
constexpr uint32_t kSiteAttention = 0, kSiteProjection = 1, kSiteFeedForward = 2;

Workspace make_workspace(const EncoderLayer& op, const Sizes& s, const Plan& plan, bool backward,
                         Scratch& scratch);

// Gradients of the weights, padded like the weights themselves.
struct Sums {
  float *qkv_w, *qkv_b, *out_w, *out_b, *ln1_w, *ln1_b, *ff1_w, *ff1_b, *ff2_w, *ff2_b, *ln2_w,
      *ln2_b;
};

// The linear layer y = x W^T + b: sums of dW and db for a tile.
inline void linear_sums(int rows, int out, int in, const float* dy, int64_t ld_dy,
                        const float* x, int64_t ld_x, float* d_w, int64_t ld_w, float* d_b) {
  gemm_tn(out, in, rows, dy, ld_dy, x, ld_x, d_w, ld_w);
  add_columns(rows, out, dy, ld_dy, d_b);
}

// attention: x [R, dp] to the context, softmax(q k^T / sqrt(d)) v of every segment of a tile, and
// its gradient: reads that of the context from `d_context` [R, dp] and that of x along the residual
// path from w.y, writes the tile's rows of d_x [K, N, D].
void attention(const EncoderLayer& op, const Sizes& s, const Weights& weights, const Plan& plan,
               const Tile& tile, const Workspace& w);
void attention_backward(const EncoderLayer& op, const Sizes& s, const Weights& weights,
                        const Plan& plan, const Tile& tile, const Workspace& w,
                        const float* d_context, const Sums& g, void* d_x);
// The same for last_only.
void readout(const EncoderLayer& op, const Sizes& s, const Weights& weights, const Plan& plan,
             const Tile& tile, const Workspace& w);
void readout_backward(const EncoderLayer& op, const Sizes& s, const Weights& weights,
                      const Plan& plan, const Tile& tile, const Workspace& w,
                      const float* d_context, const Sums& g, void* d_x);

// Runs a tile up to y; with a workspace for the backward pass also leaves there what that needs.
void tile_forward(const EncoderLayer& op, const Sizes& s, const Weights& weights, const Plan& plan,
                  const Tile& tile, const Workspace& w);

// The whole forward pass on packed weights; y and kept as in encoder_layer_forward().
void forward(const EncoderLayer& op, const Sizes& s, const Weights& weights, void* y, float* kept);

// y = LayerNorm(base + scale * keep (branch + shift)) by rows [dp], shift being the bias of the
// linear layer that made the branch. keep, xhat and rstd may be null, y may be branch.
void add_norm(int64_t rows, const Sizes& s, const float* base, const float* branch,
              const float* shift, const LaneBits* keep, float scale, const float* gain,
              const float* bias, const float* valid, float eps, float* xhat, float* rstd,
              float* y);

// Calls body(row of x, row of y, row of the tile) for a tile's query rows; x is [K, N, D], y the
// same or, if last_only, [K, B, D].
template <typename Body>
void for_each_row(const EncoderLayer& op, const Plan& plan, const Tile& tile, Body&& body) {
  for (int64_t n = tile.first; n < tile.last; ++n) {
    const Item& item = plan.items[n];
    const int64_t count = queries(op, item), skipped = item.length - count;
    for (int64_t j = 0; j < item.levels; ++j) {
      const int64_t level = item.level + j;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t from = level * op.tokens + item.begin + skipped + i;
        body(from, op.last_only ? level * op.sequences + item.sequence : from,
             item.row + j * count + i);
      }
    }
  }
}

}  // namespace adarec::encoder
