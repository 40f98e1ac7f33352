// A tile of rows of the gated aggregation, for both directions: its (level, row) pairs, the router
// and the gate. Pairs are gathered level by level, so that the router's product sees about a
// hundred rows whatever the depths are.
#pragma once

#include <algorithm>
#include <cmath>

#include "../moe_tile.h"
#include "gemm.h"
#include "moe_aggregate.h"
#include "parallel.h"
#include "rows.h"
#include "vec.h"

namespace adarec::moe {

constexpr std::int64_t kTile = 32;    // rows

inline float sigmoid_of(float x) { return 1.0f / (1.0f + std::exp(-x)); }

inline const float* read(const Rows& rows, std::int64_t row, std::int64_t dim, float* buffer) {
  if (!rows.bf16) return static_cast<const float*>(rows.data) + row * dim;
  load_row(rows.data, true, row, dim, dim, buffer);
  return buffer;
}

// What both passes need: transposed weights, and a gate a level where there is no content.
struct Plan {
  const MoEAggregate& op;
  float *router_t, *gate_t, *level_gate;

  Plan(const MoEAggregate& op_in, Scratch& scratch) : op(op_in) {
    const int dim = static_cast<int>(op.dim), hidden = static_cast<int>(op.hidden);
    gate_t = scratch.take(dim * dim);
    transpose(dim, dim, op.gate_w, gate_t);
    router_t = scratch.take(dim * hidden);
    level_gate = scratch.take(op.levels);
    if (op.pooled.data != nullptr) {
      transpose(hidden, dim, op.router_w1, router_t);
      return;
    }
    const float* none = scratch.zeros(hidden);
    for (std::int64_t k = 0; k < op.levels; ++k)
      level_gate[k] = sigmoid_of(routed(none, op.router_level_bias + k * hidden));
  }

  // The router's logit from its hidden layer before SiLU, the level's bias still to be added.
  float routed(const float* before, const float* bias) const {
    Vec total = zero();
    for_lanes(static_cast<int>(op.hidden), [&](int i, auto m) {
      const Vec x = load(before + i, m) + load(bias + i, m);
      total = fma(silu(x), load(op.router_w2 + i, m), total);
    });
    return sum(total) + op.router_b2[0];
  }

  std::int64_t tiles() const { return (op.rows + kTile - 1) / kTile; }
};

// The scratch of a tile and the (level, row) pairs in it.
struct Tile {
  const Plan& plan;
  const MoEAggregate& op;
  std::int64_t first = 0;
  int rows = 0, pairs = 0;
  int* begin;      // [K + 1]: each level's first pair
  int* row;        // [pairs]: within the tile
  float* content;  // [pairs, D]: pooled
  float* before;   // [pairs, H]: the router's hidden layer before its level's bias and SiLU
  float* gate;     // [kTile, D]: Eq. 10
  // Weights of Eq. 8 and 9, [K, kTile], and their sums over a row's levels.
  float *fine, *coarse, *fine_total, *coarse_total;

  Tile(const Plan& plan_in, Scratch& scratch) : plan(plan_in), op(plan_in.op) {
    const std::int64_t most = kTile * op.levels;
    begin = scratch.take<int>(op.levels + 1);
    row = scratch.take<int>(most);
    content = scratch.take(most * op.dim);
    before = scratch.take(most * op.hidden);
    gate = scratch.take(kTile * op.dim);
    fine = scratch.take(most);
    coarse = scratch.take(most);
    fine_total = scratch.take(kTile);
    coarse_total = scratch.take(kTile);
  }

  void move_to(std::int64_t tile) {
    first = tile * kTile;
    rows = static_cast<int>(std::min(kTile, op.rows - first));
    pairs = 0;
    for (std::int64_t k = 0; k < op.levels; ++k) {
      begin[k] = pairs;
      for (int r = 0; r < rows; ++r)
        if (op.depth[first + r] >= k) row[pairs++] = r;
    }
    begin[op.levels] = pairs;
  }

  // Calls body(pair, level, level * R + row) for every pair.
  template <typename Body>
  void for_pairs(Body&& body) const {
    for (std::int64_t k = 0; k < op.levels; ++k)
      for (int p = begin[k]; p < begin[k + 1]; ++p) body(p, k, k * op.rows + first + row[p]);
  }

  // A plane [K, R] is 0 where a level is not reached.
  void clear_unreached(float* plane) const {
    for (std::int64_t k = 0; k < op.levels; ++k)
      for (int r = 0; r < rows; ++r)
        if (op.depth[first + r] < k) plane[k * op.rows + first + r] = 0.0f;
  }

  // The router's hidden layer of all pairs (only where there is content).
  void run_router() {
    for_pairs([&](int p, std::int64_t, std::int64_t at) {
      load_row(op.pooled.data, op.pooled.bf16, at, op.dim, op.dim, content + p * op.dim);
    });
    gemm_nn(pairs, static_cast<int>(op.hidden), static_cast<int>(op.dim), content, op.dim,
            plan.router_t, op.hidden, before, op.hidden, 0);
  }

  // The weights of Eq. 8 and 9 from the gates of Eq. 7.
  void weigh(const float* gates) {
    std::fill_n(fine_total, rows, kEpsilon);
    std::fill_n(coarse_total, rows, kEpsilon);
    for_pairs([&](int p, std::int64_t k, std::int64_t at) {
      const float mass = op.level_mass[at], share = gates[at];
      const std::int64_t to = k * kTile + row[p];
      fine_total[row[p]] += fine[to] = fine_weight(mass, share);
      coarse_total[row[p]] += coarse[to] = coarse_weight(mass, share);
    });
  }

  // Eq. 10 of the tile's rows.
  void run_gate(const float* z_coarse) {
    set_rows(rows, op.dim, op.gate_b, gate, op.dim);
    gemm_nn(rows, static_cast<int>(op.dim), static_cast<int>(op.dim), z_coarse, op.dim,
            plan.gate_t, op.dim, gate, op.dim, 1);
    for_lanes(static_cast<int>(rows * op.dim),
              [&](int i, auto m) { store(gate + i, sigmoid(load(gate + i, m)), m); });
  }
};

}  // namespace adarec::moe
