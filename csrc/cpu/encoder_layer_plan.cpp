// The tiles of an encoder layer call, its packed weights and where a tile's scratch lies.
#include <algorithm>

#include "encoder_layer_tile.h"
#include "philox.h"
#include "rows.h"

namespace adarec::encoder {
namespace {

// Query rows of a tile: enough to amortise reading the weights, few enough that its scratch stays
// in L2.
constexpr int64_t kTileRows = 64;
// With last_only the tokens of a tile, so that they are still in the cache for the backward pass.
constexpr int64_t kTileKeys = 2048;

}  // namespace

Sizes make_sizes(const EncoderLayer& op) {
  return {op.size, op.inner, padded(op.size), padded(op.inner), op.heads, op.size / op.heads,
          op.levels, op.tokens};
}

Plan make_plan(const EncoderLayer& op) {
  Plan plan;
  Tile tile{0, 0, 0, 0, 0};
  auto close = [&] {
    if (tile.first == tile.last) return;
    plan.tiles.push_back(tile);
    plan.max_rows = std::max(plan.max_rows, tile.rows);
    plan.max_keys = std::max(plan.max_keys, tile.keys);
    tile = {tile.last, tile.last, 0, 0, tile.before + tile.rows};
  };
  for (int64_t group = 0; group < op.levels; group += kLanes)
    for (int64_t u = 0; u < op.sequences; ++u) {
      const int64_t reached = op.depth ? op.depth[u] + 1 : op.levels;
      const int64_t end = std::min<int64_t>({group + kLanes, reached, op.levels});
      const int64_t length = op.offsets[u + 1] - op.offsets[u];
      const int64_t rows = op.last_only ? 1 : length, keys = op.last_only ? padded(length) : 0;
      const int64_t fit = std::min(kTileRows / rows, keys ? kTileKeys / keys : kLanes);
      const int64_t most = std::max<int64_t>(1, fit);
      for (int64_t level = group; level < end;) {
        const int64_t count = std::min(end - level, most);
        if (tile.rows + count * rows > kTileRows || tile.keys + count * keys > kTileKeys) close();
        plan.items.push_back({op.offsets[u], u, int32_t(length), int32_t(level), int32_t(count),
                              tile.rows, tile.keys});
        tile.rows += int32_t(count * rows);
        tile.keys += int32_t(count * keys);
        ++tile.last;
        level += count;
        plan.max_length = std::max(plan.max_length, int32_t(length));
      }
    }
  close();
  return plan;
}

Weights pack_weights(const EncoderLayer& op, const Sizes& s, bool backward, Scratch& scratch) {
  Weights w{};
  auto transposed = [&](const float* src, int64_t parts, int64_t out, int64_t in) {
    return pack_transposed(src, parts, out, in, scratch);
  };
  auto rows = [&](const float* src, int64_t parts, int64_t out, int64_t in, int64_t out_rows) {
    return pack_rows(src, parts, out, in, out_rows, scratch);
  };
  auto vector = [&](const float* src, int64_t in) { return rows(src, 1, 1, in, 1); };
  if (op.last_only) {
    const float *q = op.qkv_w, *k = q + s.d * s.d, *v = k + s.d * s.d;
    w.q_t = transposed(q, 1, s.d, s.d);
    w.k = rows(k, 1, s.d, s.d, s.d);
    w.v_t = transposed(v, 1, s.d, s.d);
    if (backward) {
      w.q = rows(q, 1, s.d, s.d, s.d);
      w.k_t = transposed(k, 1, s.d, s.d);
      w.v = rows(v, 1, s.d, s.d, s.d);
    }
  } else {
    w.qkv_t = transposed(op.qkv_w, 3, s.d, s.d);
    if (backward) w.qkv = rows(op.qkv_w, 3, s.d, s.d, s.dp);
  }
  w.out_t = transposed(op.out_w, 1, s.d, s.d);
  w.ff1_t = transposed(op.ff1_w, 1, s.f, s.d);
  w.ff2_t = transposed(op.ff2_w, 1, s.d, s.f);
  if (backward) {
    w.out = rows(op.out_w, 1, s.d, s.d, s.dp);
    w.ff1 = rows(op.ff1_w, 1, s.f, s.d, s.fp);
    w.ff2 = rows(op.ff2_w, 1, s.d, s.f, s.dp);
  }
  w.qkv_b = rows(op.qkv_b, 3, 1, s.d, 1);
  w.out_b = vector(op.out_b, s.d);
  w.ln1_w = vector(op.ln1_w, s.d);
  w.ln1_b = vector(op.ln1_b, s.d);
  w.ff1_b = vector(op.ff1_b, s.f);
  w.ff2_b = vector(op.ff2_b, s.d);
  w.ln2_w = vector(op.ln2_w, s.d);
  w.ln2_b = vector(op.ln2_b, s.d);
  float* valid = scratch.take(s.dp);
  std::fill(valid, valid + s.d, 1.0f);
  std::fill(valid + s.d, valid + s.dp, 0.0f);
  w.valid = valid;
  return w;
}

namespace {

Attention make_attention(const Sizes& s, const Plan& plan, bool backward, Scratch& scratch) {
  const int64_t rows = plan.max_rows;
  Attention a{};
  a.ld_qkv = 3 * s.dp;
  // A row of scores is whole vectors wide and may read keys beyond the segment's last.
  a.ld_t = padded(rows) + 16;
  a.ld_s = padded(plan.max_length);
  // Zeros: with a size that is no multiple of 16 the padding columns are read but never written.
  auto split = [&](float** q, float** k, float** v) {
    *q = s.d == s.dp ? scratch.take(rows * a.ld_qkv) : scratch.zeros(rows * a.ld_qkv);
    *k = *q + s.dp;
    *v = *k + s.dp;
  };
  split(&a.q, &a.k, &a.v);
  a.kt = scratch.take(s.d * a.ld_t);
  a.scores = scratch.take(kBlock * a.ld_s);
  a.keep = scratch.take(kLanes * kBlock * a.ld_s);
  if (backward) {
    a.vt = scratch.take(s.d * a.ld_t);
    a.dscores = scratch.take(kBlock * a.ld_s);
    split(&a.dq, &a.dk, &a.dv);
  }
  return a;
}

Readout make_readout(const EncoderLayer& op, const Sizes& s, const Plan& plan, bool backward,
                     Scratch& scratch) {
  const int64_t rows = plan.max_rows, stacked = rows * s.heads * s.dp;
  Readout r{};
  r.q = scratch.take(rows * s.dp);
  r.folded = scratch.take(2 * stacked);
  r.mean = scratch.take(stacked);
  r.share = scratch.take(rows * s.heads);
  r.weights = scratch.take(2 * s.heads * plan.max_keys);
  r.scores = scratch.take(s.heads * plan.max_keys);
  if (op.bf16 || s.d != s.dp) r.rows = scratch.take(plan.max_keys * s.dp);
  if (backward) {
    r.dq = scratch.take(rows * s.dp);
    r.d_folded = scratch.take(stacked);
  }
  return r;
}

}  // namespace

Workspace make_workspace(const EncoderLayer& op, const Sizes& s, const Plan& plan, bool backward,
                         Scratch& scratch) {
  const int64_t rows = plan.max_rows;
  Workspace w{};
  w.x = scratch.take(rows * s.dp);
  if (op.last_only) w.last = make_readout(op, s, plan, backward, scratch);
  else w.all = make_attention(s, plan, backward, scratch);
  w.context = scratch.take(rows * s.dp);
  w.h = scratch.take(rows * s.dp);
  w.u = w.g = scratch.take(rows * s.fp);
  w.y = scratch.take(rows * s.dp);
  w.keep1 = scratch.take<LaneBits>(keep_words(rows, s));
  w.keep2 = scratch.take<LaneBits>(keep_words(rows, s));
  if (backward) {
    w.xhat1 = scratch.take(rows * s.dp);
    w.xhat2 = scratch.take(rows * s.dp);
    w.rstd1 = scratch.take(rows);
    w.rstd2 = scratch.take(rows);
    w.dg = scratch.take(rows * s.fp);
    w.dh = scratch.take(rows * s.dp);
  }
  return w;
}

void use_kept(const EncoderLayer& op, const Sizes& s, const Tile& tile, float* kept,
              Workspace& w) {
  float* at = kept + tile.before * encoder_layer_kept(op);
  auto take = [&](int64_t floats) {
    float* start = at;
    at += tile.rows * floats;
    return start;
  };
  w.u = take(s.fp);
  w.xhat1 = take(s.dp);
  w.xhat2 = take(s.dp);
  if (!op.last_only) {
    w.context = take(s.dp);
    w.all.q = take(3 * s.dp);
    w.all.k = w.all.q + s.dp;
    w.all.v = w.all.k + s.dp;
  }
  w.rstd1 = take(1);
  w.rstd2 = take(1);
  w.keep1 = reinterpret_cast<LaneBits*>(take(s.dp / 16));
  w.keep2 = w.keep1 + keep_words(tile.rows, s);
}

}  // namespace adarec::encoder

int64_t adarec::encoder_layer_kept(const EncoderLayer& op) {
  const int64_t dp = padded(op.size), fp = padded(op.inner);
  return fp + (op.last_only ? 2 : 6) * dp + 2 + dp / 16;
}
