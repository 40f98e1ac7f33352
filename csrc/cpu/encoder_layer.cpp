// The encoder layer's forward pass: LN(x' + FF(x')), x' = LN(x + Attention(x)), a tile at a time.
#include "encoder_layer_tile.h"

#include <algorithm>
#include <cmath>

#include "gelu.h"
#include "gemm.h"
#include "philox.h"
#include "rows.h"
#include "vec.h"

namespace adarec {
namespace encoder {
namespace {

// keep, of R dp / kWidth vectors: which elements a hidden dropout site leaves, all levels of an
// item from one Philox call.
void hidden_keep(const EncoderLayer& op, const Sizes& s, const Plan& plan, const Tile& tile,
                 uint32_t site, LaneBits* keep) {
  const Philox philox(op.seed, op.stream + site, s.d);
  const Dropout dropout(op.hidden_dropout);
  for (int64_t n = tile.first; n < tile.last; ++n) {
    const Item& item = plan.items[n];
    const int64_t count = queries(op, item);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t token = item.begin + item.length - count + i;
      for (int64_t c = 0; c < s.dp; c += kDrawn * kWidth) {
        const auto put = [&](int64_t level, int v, UVec word) {
          put_bits(keep, ((item.row + level * count + i) * s.dp + c) / kWidth + v,
                   dropout.kept(word));
        };
        if (op.levels == 1) {
          UVec word[kDrawn];
          philox.first(token * s.d + c, 0, word);
          for (int v = 0; v < kDrawn; ++v) put(0, v, word[v]);
          continue;
        }
        Words words[kDrawn];
        philox.words(token * s.d + c, item.level / kLanes, words);
        for (int64_t level = 0; level < item.levels; ++level)
          for (int v = 0; v < kDrawn; ++v)
            put(level, v, words[v].word[item.level % kLanes + level]);
      }
    }
  }
}

}  // namespace

void add_norm(int64_t rows, const Sizes& s, const float* base, const float* branch,
              const float* shift, const LaneBits* keep, float scale, const float* gain,
              const float* bias, const float* valid, float eps, float* xhat, float* rstd,
              float* y) {
  const float share = 1.0f / static_cast<float>(s.d);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t at = r * s.dp;
    Vec total = zero();
    for (int64_t c = 0; c < s.dp; c += kWidth) {
      Vec v = load(branch + at + c) + load(shift + c);
      if (keep) {
        const Vec kept = adarec::keep(get_bits(keep, (at + c) / kWidth), set1(scale));
        v = fma(v, kept, load(base + at + c));
      } else {
        v = v + load(base + at + c);
      }
      store(y + at + c, v);
      total = total + v;
    }
    const Vec mean = set1(sum(total) * share);
    Vec square = zero();
    for (int64_t c = 0; c < s.dp; c += kWidth) {
      const Vec v = (load(y + at + c) - mean) * load(valid + c);
      store(y + at + c, v);
      square = fma(v, v, square);
    }
    const float inverse = 1.0f / std::sqrt(sum(square) * share + eps);
    if (rstd) rstd[r] = inverse;
    for (int64_t c = 0; c < s.dp; c += kWidth) {
      const Vec v = load(y + at + c) * set1(inverse);
      if (xhat) store(xhat + at + c, v);
      store(y + at + c, fma(v, load(gain + c), load(bias + c)));
    }
  }
}

void tile_forward(const EncoderLayer& op, const Sizes& s, const Weights& weights, const Plan& plan,
                  const Tile& tile, const Workspace& w) {
  const int rows = tile.rows;
  for_each_row(op, plan, tile, [&](int64_t from, int64_t, int64_t to) {
    load_row(op.x, op.bf16, from, s.d, s.dp, w.x + to * s.dp);
  });
  if (op.last_only) readout(op, s, weights, plan, tile, w);
  else attention(op, s, weights, plan, tile, w);

  const bool dropout = op.seeded && op.hidden_dropout > 0;
  const float scale = Dropout(op.hidden_dropout).scale();
  if (dropout) {
    hidden_keep(op, s, plan, tile, kSiteProjection, w.keep1);
    hidden_keep(op, s, plan, tile, kSiteFeedForward, w.keep2);
  }
  gemm_nn(rows, s.dp, s.d, w.context, s.dp, weights.out_t, s.dp, w.y, s.dp, 0);
  add_norm(rows, s, w.x, w.y, weights.out_b, dropout ? w.keep1 : nullptr, scale, weights.ln1_w,
           weights.ln1_b, weights.valid, op.eps, w.xhat1, w.rstd1, w.h);

  gemm_nn(rows, s.fp, s.d, w.h, s.dp, weights.ff1_t, s.fp, w.u, s.fp, 0);
  gelu_rows(rows, s.fp, w.u, weights.ff1_b, w.g, w.dg);
  gemm_nn(rows, s.dp, s.f, w.g, s.fp, weights.ff2_t, s.dp, w.y, s.dp, 0);
  add_norm(rows, s, w.h, w.y, weights.ff2_b, dropout ? w.keep2 : nullptr, scale, weights.ln2_w,
           weights.ln2_b, weights.valid, op.eps, w.xhat2, w.rstd2, w.y);
}

void forward(const EncoderLayer& op, const Sizes& s, const Weights& weights, void* y,
             float* kept) {
  const Plan plan = make_plan(op);
  parallel_for(static_cast<int64_t>(plan.tiles.size()), [&](int64_t t) {
    Scratch scratch;
    Workspace w = make_workspace(op, s, plan, false, scratch);
    if (kept != nullptr) {
      use_kept(op, s, plan.tiles[t], kept, w);
      const bool dropout = op.seeded && op.hidden_dropout > 0;
      // What is kept has no byte that nobody wrote.
      if (!dropout) std::fill_n(w.keep1, 2 * keep_words(plan.tiles[t].rows, s), LaneBits{0});
      if (!op.last_only && s.d != s.dp) std::fill_n(w.context, plan.tiles[t].rows * s.dp, 0.0f);
    }
    tile_forward(op, s, weights, plan, plan.tiles[t], w);
    for_each_row(op, plan, plan.tiles[t], [&](int64_t, int64_t to, int64_t from) {
      store_row(w.y + from * s.dp, op.bf16, to, s.d, y);
    });
  });
}

}  // namespace encoder

void encoder_layer_forward(const EncoderLayer& op, void* y, float* kept) {
  const encoder::Sizes s = encoder::make_sizes(op);
  Scratch shared;
  encoder::forward(op, s, encoder::pack_weights(op, s, false, shared), y, kept);
}

}  // namespace adarec
