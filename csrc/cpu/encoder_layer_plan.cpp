// The tiles of an encoder layer call, its packed weights and where a tile's scratch lies.
#include <algorithm>

#include "encoder_layer_tile.h"
#include "philox.h"
#include "rows.h"

namespace adarec::encoder {
namespace {

// Rows of a tile: enough to amortise reading the weights, few enough that its scratch stays in L2.
constexpr int64_t kTileRows = 64;
// With last_only only keys and values are computed for all rows, and the rest wants rows too.
constexpr int64_t kTileRowsLastOnly = 256;

}  // namespace

Sizes make_sizes(const EncoderLayer& op) {
  return {op.size, op.inner, padded(op.size), padded(op.inner), op.heads, op.size / op.heads,
          op.levels, op.tokens};
}

Plan make_plan(const EncoderLayer& op) {
  Plan plan;
  const int64_t limit = op.last_only ? kTileRowsLastOnly : kTileRows;
  Tile tile{0, 0, 0, 0};
  auto close = [&] {
    if (tile.first == tile.last) return;
    plan.tiles.push_back(tile);
    plan.max_rows = std::max(plan.max_rows, tile.rows);
    plan.max_queries = std::max(plan.max_queries, tile.queries);
    tile = {tile.last, tile.last, 0, 0};
  };
  for (int64_t group = 0; group < op.levels; group += kLanes)
    for (int64_t u = 0; u < op.sequences; ++u) {
      const int64_t reached = op.depth ? op.depth[u] + 1 : op.levels;
      const int64_t end = std::min<int64_t>({group + kLanes, reached, op.levels});
      const int64_t length = op.offsets[u + 1] - op.offsets[u];
      const int64_t most = std::max<int64_t>(1, limit / length);
      for (int64_t level = group; level < end;) {
        const int64_t count = std::min(end - level, most);
        const int64_t rows = count * length;
        if (tile.rows + rows > limit) close();
        plan.items.push_back({op.offsets[u], u, int32_t(length), int32_t(level), int32_t(count),
                              tile.rows, tile.queries});
        tile.rows += int32_t(rows);
        tile.queries += int32_t(op.last_only ? count : rows);
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
  w.qkv_t = transposed(op.qkv_w, 3, s.d, s.d);
  w.out_t = transposed(op.out_w, 1, s.d, s.d);
  w.ff1_t = transposed(op.ff1_w, 1, s.f, s.d);
  w.ff2_t = transposed(op.ff2_w, 1, s.d, s.f);
  if (backward) {
    w.qkv = rows(op.qkv_w, 3, s.d, s.d, s.dp);
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

Workspace make_workspace(const EncoderLayer& op, const Sizes& s, const Plan& plan, bool backward,
                         Scratch& scratch) {
  const int64_t rows = plan.max_rows, queries = plan.max_queries;
  Workspace w{};
  // A row of scores is whole vectors wide and may read keys beyond the segment's last.
  w.ld_t = padded(rows) + 16;
  w.ld_s = padded(plan.max_length);
  w.ld_q = op.last_only ? s.dp : 3 * s.dp;
  w.ld_kv = op.last_only ? 2 * s.dp : 3 * s.dp;
  // Zeros: with a size that is no multiple of 16 the padding columns are read but never written.
  auto split = [&](float** q, float** k, float** v) {
    *q = s.d == s.dp ? scratch.take(queries * w.ld_q) : scratch.zeros(queries * w.ld_q);
    *k = *q + s.dp;
    if (op.last_only)
      *k = s.d == s.dp ? scratch.take(rows * w.ld_kv) : scratch.zeros(rows * w.ld_kv);
    *v = *k + s.dp;
  };
  w.x = scratch.take(rows * s.dp);
  w.xq = op.last_only ? scratch.take(queries * s.dp) : w.x;
  split(&w.q, &w.k, &w.v);
  w.kt = scratch.take(s.d * w.ld_t);
  w.context = scratch.take(queries * s.dp);
  w.h = scratch.take(queries * s.dp);
  w.g = scratch.take(queries * s.fp);
  w.y = scratch.take(queries * s.dp);
  w.scores = scratch.take(kBlock * w.ld_s);
  w.keep1 = scratch.take(queries * s.dp);
  w.keep2 = scratch.take(queries * s.dp);
  w.keep_scores = scratch.take(kLanes * kBlock * w.ld_s);
  if (backward) {
    w.vt = scratch.take(s.d * w.ld_t);
    w.xhat1 = scratch.take(queries * s.dp);
    w.xhat2 = scratch.take(queries * s.dp);
    w.rstd1 = scratch.take(queries);
    w.rstd2 = scratch.take(queries);
    w.dg = scratch.take(queries * s.fp);
    w.dscores = scratch.take(kBlock * w.ld_s);
    w.dh = scratch.take(queries * s.dp);
    split(&w.dq, &w.dk, &w.dv);
  }
  return w;
}

}  // namespace adarec::encoder
