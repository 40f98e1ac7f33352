// The coarse expert, a tile of tokens at a time, level by level; a tile's hidden layer never
// leaves L2. The backward pass reads back what the forward pass has kept of a tile, or computes the
// tile again.
#include "mlp_expert.h"

#include <cmath>
#include <cstring>

#include "gelu.h"
#include "gemm.h"
#include "parallel.h"
#include "philox.h"
#include "rows.h"
#include "token_tiles.h"
#include "vec.h"

namespace adarec {
namespace {

std::int32_t tile_rows(const MLPExpert& op) { return op.size <= 128 ? 96 : 48; }

struct Shared {
  const MLPExpert& op;
  TokenTiles tiles;
  const float *w1_t, *w2_t;  // [D, H], [H, D]
  Philox philox;
  Dropout dropout;

  Shared(const MLPExpert& o, const MLPExpertWeights& weights, Scratch& scratch)
      : op(o),
        tiles(make_token_tiles(o.sequences, o.offsets, o.depth, o.levels, o.last_only,
                               tile_rows(o), scratch)),
        w1_t(weights.w1_t),
        w2_t(weights.w2_t),
        philox(o.seed, o.stream, o.size),
        dropout(o.dropout) {}

  float* row(float* planes, int k, std::int64_t row, std::int64_t rows) const {
    return planes + (k * rows + row) * op.size;
  }
};

class Tile {
 public:
  // kept: of the whole call, or null.
  Tile(const Shared& shared, std::int64_t index, bool backward, float* kept, Scratch& scratch)
      : s_(shared),
        op_(shared.op),
        rows_(shared.tiles.rows + shared.tiles.begin(index)),
        vectors_(vectors(shared.op.size)),
        count_(shared.tiles.size(index)) {
    x = scratch.take(count_ * op_.size);
    hidden = scratch.take(count_ * op_.hidden);
    slope = backward ? scratch.take(count_ * op_.hidden) : nullptr;
    if (kept != nullptr) {
      kept_ = kept + shared.tiles.begin(index) * op_.levels * mlp_expert_kept(op_);
    } else {
      before_ = hidden;
      normal = scratch.take(count_ * op_.size);
      rstd = scratch.take(count_);
    }
    // A bit a lane for each of four levels: one Philox call serves them all.
    masks_ = op_.seeded ? scratch.take<LaneBits>(kLanes * count_ * mask_words()) : nullptr;
  }

  // Level k of its n rows up to xhat and 1 / sigma of the LayerNorm. Levels come in order.
  void compute(int k, int n) {
    const int size = op_.size, wide = op_.hidden;
    place(k);
    if (k % kLanes == 0) clear_masks(k);
    if (op_.seeded && k % kLanes == 0) make_masks(k, n);
    copy_rows(k, n);
    gemm_nn(n, wide, size, x, size, s_.w1_t, wide, before_, wide, 0);
    gelu_rows(n, wide, before_, op_.b1, hidden, slope);
    gemm_nn(n, size, wide, hidden, wide, s_.w2_t, size, normal, size, 0);
    for (int r = 0; r < n; ++r) normalise(k, r);
  }

  // What compute() leaves, from what a forward pass has kept.
  void compute_again(int k, int n) {
    place(k);
    copy_rows(k, n);
    gelu_rows(n, op_.hidden, before_, op_.b1, hidden, slope);
  }

  // values [D] of row r, dropped out as at level k.
  template <typename M>
  Vec drop(int k, int r, int i, Vec value, M) const {
    if (!op_.seeded) return value;
    return keep(get_bits(mask_of(k, r), i / kWidth), value * set1(s_.dropout.scale()));
  }

  const TokenRow& row(int r) const { return rows_[r]; }

  float *x, *hidden, *slope, *normal, *rstd;  // normal: xhat

 private:
  float* kept_level(int k) const { return kept_ + k * count_ * mlp_expert_kept(op_); }

  // Where level k lies: the same places for all, or those of the memory that is kept.
  void place(int k) {
    if (kept_ == nullptr) return;
    before_ = kept_level(k);
    normal = before_ + count_ * op_.hidden;
    rstd = normal + count_ * op_.size;
  }

  std::int64_t mask_words() const { return lane_bits(vectors_); }

  LaneBits* mask_of(int k, int r) const {
    if (kept_ == nullptr) return masks_ + (k % kLanes * count_ + r) * mask_words();
    float* first = kept_level(k) + count_ * (op_.hidden + op_.size + 1);
    return reinterpret_cast<LaneBits*>(first) + r * mask_words();
  }

  void copy_rows(int k, int n) {
    for (int r = 0; r < n; ++r)
      copy_row(op_.x + (k * op_.tokens + rows_[r].token) * op_.size, op_.size, x + r * op_.size);
  }

  // What is kept has no byte that nobody wrote, with or without dropout.
  void clear_masks(int k) {
    for (int j = 0; kept_ != nullptr && j < kLanes && k + j < op_.levels; ++j)
      std::memset(mask_of(k + j, 0), 0, sizeof(float) * count_ * ((op_.size + 31) / 32));
  }

  void make_masks(int k, int n) {
    for (int r = 0; r < n; ++r) {
      const std::uint64_t element = static_cast<std::uint64_t>(rows_[r].token) * op_.size;
      int v = 0;
      for (; v + kDrawn <= vectors_; v += kDrawn) draw<kDrawn>(k, r, v, element);
      for (; v < vectors_; ++v) draw<1>(k, r, v, element);
    }
  }

  template <int N>
  void draw(int k, int r, int first, std::uint64_t element) {
    Words words[N];
    s_.philox.words(element + first * kWidth, static_cast<std::uint32_t>(k / kLanes), words);
    for (int j = 0; j < kLanes && k + j < op_.levels; ++j)
      for (int v = 0; v < N; ++v)
        put_bits(mask_of(k + j, r), first + v, s_.dropout.kept(words[v].word[j]));
  }

  void normalise(int k, int r) {
    const int size = op_.size;
    float* row = normal + r * size;
    Vec total = zero();
    for_lanes(size, [&](int i, auto m) {
      Vec v = drop(k, r, i, load(row + i, m) + load(op_.b2 + i, m), m);
      if (op_.residual) v = v + load(x + r * size + i, m);
      store(row + i, v, m);
      total = total + v;
    });
    const float share = 1.0f / static_cast<float>(size);
    const Vec mean = set1(sum(total) * share);
    Vec squares = zero();
    for_lanes(size, [&](int i, auto m) {
      const Vec v = load(row + i, m) - mean;
      store(row + i, v, m);
      const Vec kept = load(row + i, m);  // 0 in the lanes behind the end
      squares = fma(kept, kept, squares);
    });
    // Rounded once: where most of a row is dropped, its gradient cancels to a few last places.
    rstd[r] = static_cast<float>(1.0 / std::sqrt(double{sum(squares)} * share + op_.eps));
    const Vec scale = set1(rstd[r]);
    for_lanes(size, [&](int i, auto m) { store(row + i, load(row + i, m) * scale, m); });
  }

  const Shared& s_;
  const MLPExpert& op_;
  const TokenRow* rows_;
  int vectors_;
  std::int64_t count_;
  float *before_, *kept_ = nullptr;  // before_: the hidden layer before its bias and GELU
  LaneBits* masks_;
};

void forward_tile(const Shared& shared, std::int64_t index, float* y, float* kept) {
  const MLPExpert& op = shared.op;
  const std::int64_t targets = op.last_only ? op.sequences : op.tokens;
  Scratch scratch;
  Tile tile(shared, index, false, kept, scratch);
  for (int k = 0; k <= tile.row(0).depth; ++k) {
    const int n = shared.tiles.reaching(index, k);
    tile.compute(k, n);
    for (int r = 0; r < n; ++r) {
      float* to = shared.row(y, k, tile.row(r).target, targets);
      for_lanes(op.size, [&](int i, auto m) {
        store(to + i,
              fma(load(op.ln_w + i, m), load(tile.normal + r * op.size + i, m),
                  load(op.ln_b + i, m)),
              m);
      });
    }
  }
}

// Where a group's sums keep each gradient.
struct Sums {
  std::int64_t w1, w2, b1, b2, ln_w, ln_b, floats;
  explicit Sums(const MLPExpert& op) {
    const std::int64_t weight = std::int64_t{op.size} * op.hidden;
    w1 = 0;
    w2 = weight;
    b1 = 2 * weight;
    b2 = b1 + op.hidden;
    ln_w = b2 + op.size;
    ln_b = ln_w + op.size;
    floats = ln_b + op.size;
  }
};

// The LayerNorm's and dropout's gradient of row r at level k, from grad [D] into d [D], and the
// LayerNorm's alone into around [D] where there is a path around the MLP.
void norm_backward(const MLPExpert& op, const Tile& tile, int k, int r, const float* grad, float* d,
                   float* around, float* d_gain, float* d_bias) {
  const float* xhat = tile.normal + r * op.size;
  Vec total = zero(), along = zero();
  for_lanes(op.size, [&](int i, auto m) {
    const Vec g = load(grad + i, m), h = load(xhat + i, m);
    store(d_gain + i, fma(g, h, load(d_gain + i, m)), m);
    store(d_bias + i, load(d_bias + i, m) + g, m);
    const Vec w = g * load(op.ln_w + i, m);
    total = total + w;
    along = fma(w, h, along);
  });
  const float share = 1.0f / static_cast<float>(op.size);
  const Vec mean = set1(sum(total) * share), slant = set1(sum(along) * share);
  const Vec scale = set1(tile.rstd[r]);
  for_lanes(op.size, [&](int i, auto m) {
    const Vec w = load(grad + i, m) * load(op.ln_w + i, m);
    const Vec v = scale * fnma(slant, load(xhat + i, m), w - mean);
    if (op.residual) store(around + i, v, m);
    store(d + i, tile.drop(k, r, i, v, m), m);
  });
}

void backward_tile(const Shared& shared, std::int64_t index, const float* grad_y,
                   const float* kept, float* grad_x, const Sums& at, float* sums) {
  const MLPExpert& op = shared.op;
  const int size = op.size, hidden = op.hidden;
  const std::int64_t targets = op.last_only ? op.sequences : op.tokens;
  Scratch scratch;
  Tile tile(shared, index, true, const_cast<float*>(kept), scratch);  // only read from here on
  const std::int64_t count = shared.tiles.size(index);
  float* d_out = scratch.take(count * size);
  float* d_hidden = scratch.take(count * hidden);
  float* d_x = op.residual ? scratch.take(count * size) : d_out;
  for (int k = 0; k <= tile.row(0).depth; ++k) {
    const int n = shared.tiles.reaching(index, k);
    if (kept != nullptr) tile.compute_again(k, n);
    else tile.compute(k, n);
    for (int r = 0; r < n; ++r)
      norm_backward(op, tile, k, r, grad_y + (k * targets + tile.row(r).target) * size,
                    d_out + r * size, d_x + r * size, sums + at.ln_w, sums + at.ln_b);
    gemm_tn(size, hidden, n, d_out, size, tile.hidden, hidden, sums + at.w2, hidden);
    add_columns(n, size, d_out, size, sums + at.b2);
    gemm_nn(n, hidden, size, d_out, size, op.w2, hidden, d_hidden, hidden, 0);
    for_lanes(n * hidden, [&](int i, auto m) {
      store(d_hidden + i, load(d_hidden + i, m) * load(tile.slope + i, m), m);
    });
    gemm_tn(hidden, size, n, d_hidden, hidden, tile.x, size, sums + at.w1, size);
    add_columns(n, hidden, d_hidden, hidden, sums + at.b1);
    gemm_nn(n, size, hidden, d_hidden, hidden, op.w1, size, d_x, size, op.residual ? 1 : 0);
    for (int r = 0; r < n; ++r)
      copy_row(d_x + r * size, size, shared.row(grad_x, k, tile.row(r).token, op.tokens));
  }
}

// Tokens before the last one had no part in a readout of the last: their gradient is 0.
void clear_earlier_tokens(const MLPExpert& op, float* grad_x) {
  parallel_for(op.levels, [&](std::int64_t k) {
    for (std::int64_t s = 0; s < op.sequences; ++s) {
      if (op.depth != nullptr && op.depth[s] < k) continue;
      float* first = grad_x + (k * op.tokens + op.offsets[s]) * op.size;
      std::fill(first, first + (op.offsets[s + 1] - 1 - op.offsets[s]) * op.size, 0.0f);
    }
  });
}

}  // namespace

std::int64_t mlp_expert_kept(const MLPExpert& op) {
  return op.hidden + op.size + 1 + (op.size + 31) / 32;
}

MLPExpertWeights mlp_expert_pack(const MLPExpert& op, Scratch& scratch) {
  float* w1_t = scratch.take(std::int64_t{op.size} * op.hidden);
  float* w2_t = scratch.take(std::int64_t{op.size} * op.hidden);
  transpose(op.hidden, op.size, op.w1, w1_t);
  transpose(op.size, op.hidden, op.w2, w2_t);
  return {w1_t, w2_t};
}

void mlp_expert_forward(const MLPExpert& op, float* y, float* kept) {
  Scratch scratch;
  mlp_expert_forward(op, mlp_expert_pack(op, scratch), y, kept);
}

void mlp_expert_forward(const MLPExpert& op, const MLPExpertWeights& weights, float* y,
                        float* kept) {
  Scratch scratch;
  const Shared shared(op, weights, scratch);
  parallel_for(shared.tiles.tiles(), [&](std::int64_t t) { forward_tile(shared, t, y, kept); });
}

void mlp_expert_backward(const MLPExpert& op, const float* grad_y, const float* kept,
                         const MLPExpertGradients& out) {
  Scratch scratch;
  const Shared shared(op, mlp_expert_pack(op, scratch), scratch);
  const Sums at(op);
  const GroupSums groups(shared.tiles.tiles(), at.floats, scratch);
  if (op.last_only) clear_earlier_tokens(op, out.x);
  groups.run([&](std::int64_t t, float* sums) {
    backward_tile(shared, t, grad_y, kept, out.x, at, sums);
  });
  const std::int64_t weight = std::int64_t{op.size} * op.hidden;
  groups.add_up(at.w1, weight, out.w1);
  groups.add_up(at.w2, weight, out.w2);
  groups.add_up(at.b1, op.hidden, out.b1);
  groups.add_up(at.b2, op.size, out.b2);
  groups.add_up(at.ln_w, op.size, out.ln_w);
  groups.add_up(at.ln_b, op.size, out.ln_b);
}

}  // namespace adarec
