// The gated aggregation, forward: everything but the experts' outputs and the pooled content stays
// in cache, and those are read once.
#include "moe_aggregate.h"

#include <algorithm>

#include "moe_aggregate_tile.h"

namespace adarec {
namespace {

using namespace moe;

// Eq. 8 or 9: the weighted average of an expert's outputs over the levels of each row, summed in
// registers.
void average(const Tile& tile, const Rows& outputs, const float* weights, const float* totals,
             float* buffer, float* to) {
  const MoEAggregate& op = tile.op;
  const int dim = static_cast<int>(op.dim);
  const std::int64_t plane = op.rows * op.dim;
  for (int r = 0; r < tile.now.rows; ++r, to += dim) {
    const std::int64_t row = tile.now.first + r, levels = op.depth[row] + 1;
    const float* from = static_cast<const float*>(outputs.data) + row * dim;
    std::int64_t stride = plane;
    if (outputs.bf16) {
      for (std::int64_t k = 0; k < levels; ++k)
        load_row(outputs.data, true, k * op.rows + row, dim, dim, buffer + k * dim);
      from = buffer;
      stride = dim;
    }
    const Vec total = set1(totals[r]);
    const float* weight = weights + r;
    int d = 0;
    for (; d + 4 * kWidth <= dim; d += 4 * kWidth) {
      Vec sums[4] = {zero(), zero(), zero(), zero()};
      for (std::int64_t k = 0; k < levels; ++k) {
        const Vec w = set1(weight[k * kTile]);
        for (int v = 0; v < 4; ++v)
          sums[v] = fma(w, load(from + k * stride + d + v * kWidth), sums[v]);
      }
      for (int v = 0; v < 4; ++v) store(to + d + v * kWidth, sums[v] / total);
    }
    for_lanes(dim - d, [&](int i, auto m) {
      Vec sums = zero();
      for (std::int64_t k = 0; k < levels; ++k)
        sums = fma(set1(weight[k * kTile]), load(from + k * stride + d + i, m), sums);
      store(to + d + i, sums / total, m);
    });
  }
}

// Scratch beside a Tile's.
struct Buffers {
  float* content;  // [kBlock, D]: so few that they stay in L1
  float* before;   // [kBlock, H]
  float* rows;     // [K, D]: of bfloat16

  Buffers(const MoEAggregate& op, Scratch& scratch)
      : content(scratch.take(kBlock * op.dim)), before(scratch.take(kBlock * op.hidden)),
        rows(scratch.take(op.levels * op.dim)) {}
};

void forward_tile(Tile& tile, const MoEAggregateOut& out, float* kept, const Buffers& buffers) {
  const MoEAggregate& op = tile.op;
  const bool content = op.pooled.data != nullptr;
  const int dim = static_cast<int>(op.dim), rows = tile.now.rows;
  const std::int64_t first = tile.now.first;
  for (int p = 0; content && p < tile.now.pairs; p += kBlock) {
    const int count = std::min(kBlock, tile.now.pairs - p);
    tile.load_content(p, count, buffers.content);
    tile.run_router(count, buffers.content, buffers.before);
    for (int i = 0; i < count; ++i) {
      const Pair& pair = tile.now.pair[p + i];
      float* to =
          kept == nullptr ? nullptr : kept + op.rows * op.dim + pair.at * 2 * op.hidden;
      tile.share[pair.level * kTile + pair.row] = tile.plan.routed(
          buffers.before + i * op.hidden, op.router_level_bias + pair.level * op.hidden, to);
    }
  }
  tile.for_planes([&](std::int64_t i, std::int64_t at, Mask m) {
    const Vec gate =
        content ? sigmoid(load(tile.share + i)) : set1(tile.plan.level_gate[i / kTile]);
    const Vec kept = keep(m, gate);
    store(tile.share + i, kept);
    store(out.gates + at, kept, tile.within(i));
  });
  tile.weigh();
  float* z_fine = out.z_fine + first * dim;
  float* z_coarse = out.z_coarse + first * dim;
  average(tile, op.fine, tile.fine, tile.fine_total, buffers.rows, z_fine);
  average(tile, op.coarse, tile.coarse, tile.coarse_total, buffers.rows, z_coarse);
  tile.run_gate(z_coarse);
  if (kept != nullptr) copy_row(tile.gate, rows * dim, kept + first * dim);
  for (int r = 0; r < rows; ++r) {
    float* line = tile.gate + r * dim;
    for_lanes(dim, [&](int i, auto m) {
      const Vec fine = load(z_fine + r * dim + i, m), coarse = load(z_coarse + r * dim + i, m);
      store(line + i, fuse(load(line + i, m), fine, coarse), m);
    });
    store_row(line, out.user.bf16, first + r, dim, out.user.data);
  }
}

}  // namespace

MoEAggregateWeights moe_aggregate_pack(const MoEAggregate& op, Scratch& scratch) {
  const int dim = static_cast<int>(op.dim), hidden = static_cast<int>(op.hidden);
  float* router_t = scratch.take(dim * hidden);
  float* gate_t = scratch.take(dim * dim);
  float* level_gate = scratch.take(op.levels);
  const MoEAggregateWeights weights{router_t, gate_t, level_gate};
  transpose_rows(dim, dim, op.gate_w, dim, gate_t, dim);
  if (op.pooled.data != nullptr) {
    transpose_rows(hidden, dim, op.router_w1, dim, router_t, hidden);
    return weights;
  }
  const Plan plan(op, weights);
  Scratch local;
  const float* none = local.zeros(hidden);
  for (std::int64_t k = 0; k < op.levels; ++k)
    level_gate[k] = sigmoid_of(plan.routed(none, op.router_level_bias + k * hidden));
  return weights;
}

void moe_aggregate_forward(const MoEAggregate& op, const MoEAggregateOut& out, float* kept) {
  Scratch scratch;
  moe_aggregate_forward(op, moe_aggregate_pack(op, scratch), out, kept);
}

void moe_aggregate_forward(const MoEAggregate& op, const MoEAggregateWeights& weights,
                           const MoEAggregateOut& out, float* kept) {
  const Plan plan(op, weights);
  const std::int64_t rows = op.rows * op.dim * 4;  // bytes
  touch({{out.user.data, out.user.bf16 ? rows / 2 : rows}, {out.z_fine, rows},
         {out.z_coarse, rows}});
  const std::int64_t tiles = plan.tiles(), tasks = tasks_for(tiles);
  parallel_for(tasks, [&](std::int64_t task) {
    Scratch local;
    Tile tile(plan, local);
    const Buffers buffers(op, local);
    const std::int64_t end = tiles * (task + 1) / tasks;
    tile.run(tiles * task / tasks, end, end, [&] { forward_tile(tile, out, kept, buffers); });
  });
}

}  // namespace adarec
