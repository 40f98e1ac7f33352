// The gated aggregation, forward: everything but the experts' outputs stays in cache, and those are
// read once.
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
  for (int r = 0; r < tile.rows; ++r, to += dim) {
    const std::int64_t row = tile.first + r, levels = op.depth[row] + 1;
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

void forward_tile(Tile& tile, const MoEAggregateOut& out, float* logits, float* buffer) {
  const MoEAggregate& op = tile.op;
  const bool content = op.pooled.data != nullptr;
  const int dim = static_cast<int>(op.dim);
  if (content) {
    tile.run_router();
    tile.for_pairs([&](int p, std::int64_t k, std::int64_t) {
      logits[p] = tile.plan.routed(tile.before + p * op.hidden,
                                   op.router_level_bias + k * op.hidden);
    });
    for_lanes(tile.pairs,
              [&](int i, auto m) { store(logits + i, sigmoid(load(logits + i, m)), m); });
  }
  tile.for_pairs([&](int p, std::int64_t k, std::int64_t at) {
    out.gates[at] = content ? logits[p] : tile.plan.level_gate[k];
  });
  tile.clear_unreached(out.gates);
  tile.weigh(out.gates);
  average(tile, op.fine, tile.fine, tile.fine_total, buffer, out.z_fine + tile.first * dim);
  average(tile, op.coarse, tile.coarse, tile.coarse_total, buffer, out.z_coarse + tile.first * dim);
  const float* z_fine = out.z_fine + tile.first * dim;
  const float* z_coarse = out.z_coarse + tile.first * dim;
  tile.run_gate(z_coarse);
  for (int r = 0; r < tile.rows; ++r) {
    float* line = tile.gate + r * dim;
    for_lanes(dim, [&](int i, auto m) {
      const Vec fine = load(z_fine + r * dim + i, m), coarse = load(z_coarse + r * dim + i, m);
      store(line + i, fuse(load(line + i, m), fine, coarse), m);
    });
    store_row(line, out.user.bf16, tile.first + r, dim, out.user.data);
  }
}

}  // namespace

void moe_aggregate_forward(const MoEAggregate& op, const MoEAggregateOut& out) {
  Scratch scratch;
  const Plan plan(op, scratch);
  // A few tiles a task: their scratch is taken once.
  const std::int64_t tasks = std::min<std::int64_t>(plan.tiles(), 64);
  parallel_for(tasks, [&](std::int64_t task) {
    Scratch local;
    Tile tile(plan, local);
    float* logits = local.take(kTile * op.levels);
    float* buffer = local.take(op.levels * op.dim);
    for (std::int64_t t = plan.tiles() * task / tasks; t < plan.tiles() * (task + 1) / tasks; ++t) {
      tile.move_to(t);
      forward_tile(tile, out, logits, buffer);
    }
  });
}

}  // namespace adarec
