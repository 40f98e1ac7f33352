// The encoder layer's backward pass: what a tile's forward pass has kept is read back, or the tile
// is computed again; then it is differentiated.
//
// Weight gradients: a fixed number of groups of tiles, whatever the number of threads, each with
// one float32 sum of its own; the sums are added in the order of the groups. So the result has
// the same bits for any number of threads.
#include <algorithm>

#include "encoder_layer_tile.h"
#include "gelu.h"
#include "gemm.h"
#include "philox.h"
#include "rows.h"
#include "vec.h"

namespace adarec {
namespace encoder {
namespace {

constexpr int64_t kMaxGroups = 16;
// At least: with one, zeroing and adding the sums would show; with more, a batch of 256 short
// histories would be in too few groups to keep all threads busy to the end.
constexpr int64_t kTilesPerGroup = 2;

int64_t sums_floats(const Sizes& s) {
  return 4 * s.dp * s.dp + 2 * s.dp * s.fp + 9 * s.dp + s.fp;
}

Sums split_sums(const Sizes& s, float* memory) {
  auto take = [&](int64_t floats) {
    float* start = memory;
    memory += floats;
    return start;
  };
  Sums g;
  g.qkv_w = take(3 * s.dp * s.dp);
  g.qkv_b = take(3 * s.dp);
  g.out_w = take(s.dp * s.dp);
  g.out_b = take(s.dp);
  g.ln1_w = take(s.dp);
  g.ln1_b = take(s.dp);
  g.ff1_w = take(s.fp * s.dp);
  g.ff1_b = take(s.fp);
  g.ff2_w = take(s.dp * s.fp);
  g.ff2_b = take(s.dp);
  g.ln2_w = take(s.dp);
  g.ln2_b = take(s.dp);
  return g;
}

// LayerNorm's gradient, dy [R, dp] in place, and its gain's and bias's sums:
// dx = rstd (w dy - mean(w dy) - xhat mean(w dy xhat)).
void norm_backward(int64_t rows, const Sizes& s, const float* xhat, const float* rstd,
                   const float* gain, const float* valid, float* dy, float* d_gain,
                   float* d_bias) {
  const float share = 1.0f / static_cast<float>(s.d);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t at = r * s.dp;
    Vec total = zero(), along = zero();
    for (int64_t c = 0; c < s.dp; c += kWidth) {
      const Vec g = load(dy + at + c), x = load(xhat + at + c);
      store(d_gain + c, fma(g, x, load(d_gain + c)));
      store(d_bias + c, load(d_bias + c) + g);
      const Vec scaled = g * load(gain + c);
      total = total + scaled;
      along = fma(scaled, x, along);
    }
    const Vec mean = set1(sum(total) * share), slope = set1(sum(along) * share);
    const Vec inverse = set1(rstd[r]);
    for (int64_t c = 0; c < s.dp; c += kWidth) {
      const Vec scaled = fma(load(dy + at + c), load(gain + c), negate(mean));
      store(dy + at + c, fnma(slope, load(xhat + at + c), scaled) * inverse * load(valid + c));
    }
  }
}

// to = from * scale where keep says so, else 0 (keep null: from), [R, dp].
void apply_keep(int64_t floats, const float* from, const LaneBits* keep, float scale, float* to) {
  for (int64_t i = 0; i < floats; i += kWidth) {
    const Vec v = load(from + i);
    store(to + i, keep ? adarec::keep(get_bits(keep, i / kWidth), v * set1(scale)) : v);
  }
}

// What tile_forward leaves in a workspace, from what a forward pass has kept.
void tile_again(const EncoderLayer& op, const Sizes& s, const Weights& weights, const Plan& plan,
                const Tile& tile, const Workspace& w) {
  for_each_row(op, plan, tile, [&](int64_t from, int64_t, int64_t to) {
    load_row(op.x, op.bf16, from, s.d, s.dp, w.x + to * s.dp);
  });
  if (op.last_only) readout(op, s, weights, plan, tile, w);
  else transpose_rows(tile.rows, s.d, w.all.k, w.all.ld_qkv, w.all.kt, w.all.ld_t);
  for (int64_t i = 0; i < tile.rows * s.dp; i += kWidth)
    store(w.h + i, fma(load(w.xhat1 + i), load(weights.ln1_w + i % s.dp),
                       load(weights.ln1_b + i % s.dp)));
  gelu_rows(tile.rows, s.fp, w.u, weights.ff1_b, w.g, w.dg);
}

// On entry w.y holds the gradient of y; writes that of x to the tile's rows of d_x.
void tile_backward(const EncoderLayer& op, const Sizes& s, const Weights& weights,
                   const Plan& plan, const Tile& tile, const Workspace& w, const Sums& g,
                   void* d_x) {
  const int rows = tile.rows;
  const bool dropout = op.seeded && op.hidden_dropout > 0;
  const float scale = Dropout(op.hidden_dropout).scale();
  const int64_t floats = rows * s.dp;

  norm_backward(rows, s, w.xhat2, w.rstd2, weights.ln2_w, weights.valid, w.y, g.ln2_w,
                g.ln2_b);
  apply_keep(floats, w.y, dropout ? w.keep2 : nullptr, scale, w.dh);
  linear_sums(rows, s.dp, s.fp, w.dh, s.dp, w.g, s.fp, g.ff2_w, s.fp, g.ff2_b);
  gemm_nn(rows, s.fp, s.d, w.dh, s.dp, weights.ff2, s.fp, w.g, s.fp, 0);
  for (int64_t i = 0; i < rows * s.fp; i += kWidth)
    store(w.g + i, load(w.g + i) * load(w.dg + i));
  linear_sums(rows, s.fp, s.dp, w.g, s.fp, w.h, s.dp, g.ff1_w, s.dp, g.ff1_b);
  gemm_nn(rows, s.dp, s.f, w.g, s.fp, weights.ff1, s.dp, w.y, s.dp, 1);

  norm_backward(rows, s, w.xhat1, w.rstd1, weights.ln1_w, weights.valid, w.y, g.ln1_w,
                g.ln1_b);
  apply_keep(floats, w.y, dropout ? w.keep1 : nullptr, scale, w.dh);
  linear_sums(rows, s.dp, s.dp, w.dh, s.dp, w.context, s.dp, g.out_w, s.dp, g.out_b);
  gemm_nn(rows, s.dp, s.d, w.dh, s.dp, weights.out, s.dp, w.h, s.dp, 0);
  if (op.last_only) readout_backward(op, s, weights, plan, tile, w, w.h, g, d_x);
  else attention_backward(op, s, weights, plan, tile, w, w.h, g, d_x);
}

// target [parts * out, in] = the sum over groups of the padded [parts * out_padded, in_padded].
void add_groups(const float* first, int64_t groups, int64_t stride, int64_t out, int64_t in,
                int64_t parts, int64_t out_padded, int64_t in_padded, float* target) {
  for (int64_t row = 0; row < parts * out; ++row) {
    const float* from = first + (row / out * out_padded + row % out) * in_padded;
    float* to = target + row * in;
    for_lanes(static_cast<int>(in), [&](int c, auto m) {
      Vec total = zero();
      for (int64_t group = 0; group < groups; ++group)
        total = total + load(from + group * stride + c, m);
      store(to + c, total, m);
    });
  }
}

}  // namespace
}  // namespace encoder

void encoder_layer_backward(const EncoderLayer& op, const void* grad_y, const float* kept,
                            const EncoderLayerGradients& out) {
  using namespace encoder;
  const Sizes s = make_sizes(op);
  const Plan plan = make_plan(op);
  const auto tiles = static_cast<int64_t>(plan.tiles.size());
  const int64_t groups = std::clamp<int64_t>(tiles / kTilesPerGroup, 1, kMaxGroups);
  Scratch shared;
  const Weights weights = pack_weights(op, s, true, shared);
  const int64_t stride = padded(sums_floats(s));
  float* sums = shared.take(groups * stride);
  parallel_for(groups, [&](int64_t group) {
    Scratch scratch;
    Workspace w = make_workspace(op, s, plan, true, scratch);
    std::fill_n(sums + group * stride, stride, 0.0f);
    const Sums g = split_sums(s, sums + group * stride);
    for (int64_t t = group * tiles / groups; t < (group + 1) * tiles / groups; ++t) {
      const Tile& tile = plan.tiles[t];
      if (kept != nullptr) {
        use_kept(op, s, tile, const_cast<float*>(kept), w);  // only read from here on
        tile_again(op, s, weights, plan, tile, w);
      } else {
        tile_forward(op, s, weights, plan, tile, w);
      }
      for_each_row(op, plan, tile, [&](int64_t, int64_t from, int64_t to) {
        load_row(grad_y, op.bf16, from, s.d, s.dp, w.y + to * s.dp);
      });
      tile_backward(op, s, weights, plan, tile, w, g, out.x);
    }
  });
  const Sums g = split_sums(s, sums);
  const int64_t d = s.d, dp = s.dp, f = s.f, fp = s.fp;
  const struct {
    const float* first;
    int64_t out, in, parts, out_padded, in_padded;
    float* target;
  } jobs[] = {
      {g.qkv_w, d, d, 3, dp, dp, out.qkv_w}, {g.out_w, d, d, 1, dp, dp, out.out_w},
      {g.ff1_w, f, d, 1, fp, dp, out.ff1_w}, {g.ff2_w, d, f, 1, dp, fp, out.ff2_w},
      {g.qkv_b, 1, d, 3, 1, dp, out.qkv_b},  {g.out_b, 1, d, 1, 1, dp, out.out_b},
      {g.ln1_w, 1, d, 1, 1, dp, out.ln1_w},  {g.ln1_b, 1, d, 1, 1, dp, out.ln1_b},
      {g.ff1_b, 1, f, 1, 1, fp, out.ff1_b},  {g.ff2_b, 1, d, 1, 1, dp, out.ff2_b},
      {g.ln2_w, 1, d, 1, 1, dp, out.ln2_w},  {g.ln2_b, 1, d, 1, 1, dp, out.ln2_b},
  };
  parallel_for(static_cast<int64_t>(std::size(jobs)), [&](int64_t i) {
    const auto& job = jobs[i];
    add_groups(job.first, groups, stride, job.out, job.in, job.parts, job.out_padded,
               job.in_padded, job.target);
  });
}

}  // namespace adarec
