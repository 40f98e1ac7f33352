// A tile of rows of the gated aggregation, for both directions: its (level, row) pairs, the router
// and the gate. Pairs are gathered level by level, so that the router's products see whole blocks
// whatever the depths are.
#pragma once

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <utility>
#include <vector>

#include "../moe_tile.h"
#include "gemm.h"
#include "moe_aggregate.h"
#include "parallel.h"
#include "rows.h"
#include "vec.h"

namespace adarec::moe {

constexpr std::int64_t kTile = 32;  // rows: the bits of a word
constexpr int kBlock = 24;          // pairs whose content and hidden layer stay in L1

inline float sigmoid_of(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// Tasks for so much work: a few a thread, so that a slow one can be made up for, and no more,
// because a task's first rows come without having been asked for.
inline std::int64_t tasks_for(std::int64_t pieces) {
  return std::min(pieces, 6 * num_threads());
}

// Fresh memory about to be written, from its first byte to its last.
struct Fresh {
  const void* data;
  std::int64_t bytes;
};

// Takes the first touches of huge pages out of the tiles. Threads that touch one page at the same
// time each clear a page for it, and all but one of these are thrown away; and with rows in the
// millions of bytes a level, all threads come to the same pages at once.
inline void touch(std::initializer_list<Fresh> all) {
  constexpr std::uintptr_t kPage = std::uintptr_t{1} << 21;
  std::vector<volatile char*> pages;
  for (const Fresh& fresh : all) {
    const auto begin = reinterpret_cast<std::uintptr_t>(fresh.data);
    for (std::uintptr_t at = (begin + kPage - 1) / kPage * kPage; at < begin + fresh.bytes;
         at += kPage)
      pages.push_back(reinterpret_cast<volatile char*>(at));
  }
  if (pages.size() > 1)
    parallel_for(static_cast<std::int64_t>(pages.size()), [&](std::int64_t i) { *pages[i] = 0; });
}

inline const float* read(const Rows& rows, std::int64_t row, std::int64_t dim, float* buffer) {
  if (!rows.bf16) return static_cast<const float*>(rows.data) + row * dim;
  load_row(rows.data, true, row, dim, dim, buffer);
  return buffer;
}

// What both passes need.
struct Plan : MoEAggregateWeights {
  const MoEAggregate& op;

  Plan(const MoEAggregate& op_in, const MoEAggregateWeights& weights)
      : MoEAggregateWeights(weights), op(op_in) {}

  // The router's logit from its hidden layer before SiLU, the level's bias still to be added. kept:
  // null, or where the layer behind SiLU and SiLU's slope are to be, [2, H].
  float routed(const float* before, const float* bias, float* kept = nullptr) const {
    Vec total = zero();
    for_lanes(static_cast<int>(op.hidden), [&](int i, auto m) {
      Vec slope;
      const Vec active = silu(load(before + i, m) + load(bias + i, m), slope);
      if (kept != nullptr) {
        store(kept + i, active, m);
        store(kept + op.hidden + i, slope, m);
      }
      total = fma(active, load(op.router_w2 + i, m), total);
    });
    return sum(total) + op.router_b2[0];
  }

  std::int64_t tiles() const { return (op.rows + kTile - 1) / kTile; }
};

// A row at a level that it reaches.
struct Pair {
  std::int64_t at;          // level * R + row
  std::int32_t level, row;  // the row within its tile
};

// What a tile of rows reaches, level by level.
struct Reach {
  std::int64_t first = -1;  // row of the tile; -1: no tile
  int rows = 0, pairs = 0;
  std::uint32_t* reached;  // [K]: bit r where row r reaches the level
  Pair* pair;              // [pairs]

  Reach(const MoEAggregate& op, Scratch& scratch)
      : reached(scratch.take<std::uint32_t>(op.levels)),
        pair(scratch.take<Pair>(kTile * op.levels)) {}

  // Depths are random to the branch predictor, so bits are gathered instead of asked for.
  void find(const MoEAggregate& op, std::int64_t tile) {
    first = tile * kTile;
    rows = static_cast<int>(std::min(kTile, op.rows - first));
    pairs = 0;
    std::fill_n(reached, op.levels, 0u);
    for (int r = 0; r < rows; ++r) {
      const std::int64_t depth = op.depth[first + r];
      reached[std::max<std::int64_t>(depth, 0)] |= static_cast<std::uint32_t>(depth >= 0) << r;
    }
    for (std::int64_t k = op.levels - 1; k-- > 0;) reached[k] |= reached[k + 1];
    for (std::int64_t k = 0; k < op.levels; ++k)
      for (std::uint32_t left = reached[k]; left != 0; left &= left - 1) {
        const int r = __builtin_ctz(left);
        pair[pairs++] = {k * op.rows + first + r, static_cast<std::int32_t>(k), r};
      }
  }
};

// Asks for the rows of a tile's pairs, a line at a call.
struct Fetch {
  const char** rows;  // [pairs, 2 or 3]: fine, coarse, pooled
  std::int64_t count = 0, row = 0, offset = 0, bytes = 0;

  void begin(const MoEAggregate& op, const Reach& reach) {
    count = row = offset = 0;
    bytes = op.dim * (op.fine.bf16 ? 2 : 4);
    for (int p = 0; p < reach.pairs; ++p)
      for (const Rows* from : {&op.fine, &op.coarse, &op.pooled})
        if (from->data != nullptr && from->bf16 == op.fine.bf16)
          rows[count++] = static_cast<const char*>(from->data) + reach.pair[p].at * bytes;
  }
  void operator()() {
    if (row == count) return;
    prefetch(rows[row] + offset);
    offset += 64;
    if (offset >= bytes) {
      offset = 0;
      ++row;
    }
  }
  void finish() {
    while (row < count) (*this)();
  }
};

// The scratch of a tile. While it is worked on, the rows of the next one are fetched: the products
// need no memory, and what comes from memory is scattered over many short runs.
struct Tile {
  const Plan& plan;
  const MoEAggregate& op;
  Reach now, next;
  Fetch fetch;   // of `next`
  float* gate;   // [kTile, D]: Eq. 10
  float* share;  // [K, kTile]: Eq. 7, or its logits
  // Weights of Eq. 8 and 9, [K, kTile], and their sums over a row's levels, [kTile].
  float *fine, *coarse, *fine_total, *coarse_total;

  Tile(const Plan& plan_in, Scratch& scratch)
      : plan(plan_in), op(plan_in.op), now(op, scratch), next(op, scratch) {
    const std::int64_t most = kTile * op.levels;
    fetch.rows = scratch.take<const char*>(3 * most);
    gate = scratch.take(kTile * op.dim);
    share = scratch.zeros(most);
    fine = scratch.take(most);
    coarse = scratch.take(most);
    fine_total = scratch.take(kTile);
    coarse_total = scratch.take(kTile);
  }

  // Calls body() with each tile in [from, to) in place. If `to` lies before `end`, it will be the
  // next call's first tile, and its rows are fetched as well.
  template <typename Body>
  void run(std::int64_t from, std::int64_t to, std::int64_t end, Body&& body) {
    if (from < to && next.first != from * kTile) next.find(op, from);
    for (std::int64_t t = from; t < to; ++t) {
      std::swap(now, next);
      next.first = -1;
      next.pairs = 0;
      if (t + 1 < end) {
        next.find(op, t + 1);
        for (std::int64_t k = 0; k < op.levels; ++k)
          for (std::int64_t r = next.first; r < next.first + next.rows; r += 16)
            prefetch(op.level_mass + k * op.rows + r);
      }
      fetch.begin(op, next);
      body();
      fetch.finish();
    }
  }

  // The content of a few pairs (only where there is any), [count, D].
  void load_content(int first, int count, float* content) const {
    for (int p = 0; p < count; ++p)
      copy_in(op.pooled, now.pair[first + p].at, content + p * op.dim);
  }

  // The router's hidden layer before its level's bias and SiLU, [count, H].
  void run_router(int count, const float* content, float* before) {
    gemm_nn(count, static_cast<int>(op.hidden), static_cast<int>(op.dim), content, op.dim,
            plan.router_t, op.hidden, before, op.hidden, 0, fetch);
  }

  void copy_in(const Rows& rows, std::int64_t row, float* to) const {
    if (rows.bf16) return load_row(rows.data, true, row, op.dim, op.dim, to);
    const float* from = static_cast<const float*>(rows.data) + row * op.dim;
    for_lanes(static_cast<int>(op.dim),
              [&](int i, auto m) { store(to + i, load(from + i, m), m); });
  }

  // Calls body(level * kTile + row, level * R + row, mask) for vectors of rows; the mask says which
  // reach the level.
  template <typename Body>
  void for_planes(Body&& body) const {
    for (std::int64_t k = 0; k < op.levels; ++k)
      for (int r = 0; r < now.rows; r += kWidth)
        body(k * kTile + r, k * op.rows + now.first + r, from_bits(now.reached[k] >> r));
  }

  // Lanes of a vector that are rows of the tile, from the offset that for_planes gives.
  Mask within(std::int64_t offset) const {
    return first(std::min<int>(kWidth, now.rows - static_cast<int>(offset % kTile)));
  }

  // The weights of Eq. 8 and 9 from the gates of Eq. 7 in `share`.
  void weigh() {
    std::fill_n(fine_total, kTile, kEpsilon);
    std::fill_n(coarse_total, kTile, kEpsilon);
    for_planes([&](std::int64_t i, std::int64_t at, Mask m) {
      const Vec mass = load(op.level_mass + at, m), gates = load(share + i);
      const Vec to_fine = fine_weight(mass, gates), to_coarse = coarse_weight(mass, gates);
      store(fine + i, to_fine);
      store(coarse + i, to_coarse);
      float *fine_sum = fine_total + i % kTile, *coarse_sum = coarse_total + i % kTile;
      store(fine_sum, load(fine_sum) + to_fine);
      store(coarse_sum, load(coarse_sum) + to_coarse);
    });
  }

  // Eq. 10 of the tile's rows.
  void run_gate(const float* z_coarse) {
    set_rows(now.rows, op.dim, op.gate_b, gate, op.dim);
    gemm_nn(now.rows, static_cast<int>(op.dim), static_cast<int>(op.dim), z_coarse, op.dim,
            plan.gate_t, op.dim, gate, op.dim, 1, fetch);
    for_lanes(static_cast<int>(now.rows * op.dim),
              [&](int i, auto m) { store(gate + i, sigmoid(load(gate + i, m)), m); });
  }
};

}  // namespace adarec::moe
