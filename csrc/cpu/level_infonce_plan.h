// What both passes of Eq. 6 need: the users of every level, which of them are anchors, their unit
// vectors, and panels of anchors beside which the candidates stand in tiles.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "gemm.h"
#include "level_infonce.h"
#include "parallel.h"
#include "rows.h"
#include "softmax_tile.h"

namespace adarec::infonce {

constexpr int kTile = 96;                // candidates
constexpr float kSmallest = 1e-12f;      // norm, as in torch.nn.functional.normalize
constexpr std::int64_t kMostKept = 1024; // users: a panel's similarities stay in the second cache

// One level: the users that reach it, and those that are anchors there.
struct Level {
  std::int64_t count = 0, anchors = 0;
  std::int32_t* users;   // [count], in rising order
  std::int32_t* anchor;  // [anchors]: rows of this level's unit vectors
  std::int32_t* mate;    // [anchors]: their rows at the next level, the positives
  float* unit;           // [count, D]
  float* norm;           // [count]
  float* kept;           // [panels, candidates, columns of the panel], or null

  std::int64_t panels() const { return (anchors + kPanel - 1) / kPanel; }
  // Anchors of a panel, and the columns that they take.
  int in_panel(std::int64_t p) const {
    return static_cast<int>(std::min<std::int64_t>(kPanel, anchors - p * kPanel));
  }
  int columns(std::int64_t p) const { return vectors(in_panel(p)) * kWidth; }
};

struct Plan {
  const LevelInfoNCE& op;
  std::vector<Level> levels;
  std::int32_t* label;  // [B]: the first user with the same target
  bool* shared;         // [B]: there is another one
  std::int64_t pairs = 0;

  // kept: where unit vectors and panels are to be, or null. known: they are there.
  Plan(const LevelInfoNCE& op_in, Scratch& scratch, float* kept, bool known)
      : op(op_in), levels(op.levels), label(scratch.take<std::int32_t>(op.users)),
        shared(scratch.take<bool>(op.users)) {
    for (Level& level : levels) {
      level.users = scratch.take<std::int32_t>(op.users);
      level.anchor = scratch.take<std::int32_t>(op.users);
      level.mate = scratch.take<std::int32_t>(op.users);
    }
    for (std::int64_t u = 0; u < op.users; ++u) {
      const std::int64_t depth = op.depth[u];
      for (std::int64_t k = depth / 2; k < depth; ++k) {
        Level& level = levels[k];
        level.anchor[level.anchors] = static_cast<std::int32_t>(level.count);
        level.mate[level.anchors++] = static_cast<std::int32_t>(levels[k + 1].count);
      }
      for (std::int64_t k = 0; k <= depth; ++k)
        levels[k].users[levels[k].count++] = static_cast<std::int32_t>(u);
    }
    const auto take = [&](std::int64_t floats) {
      return kept == nullptr ? scratch.take(floats) : std::exchange(kept, kept + floats);
    };
    const bool keeps = kept != nullptr;
    for (Level& level : levels) {
      pairs += level.anchors;
      level.unit = take(level.count * op.dim);
      level.norm = take(level.count);
    }
    for (std::int64_t k = 0; k + 1 < op.levels; ++k) {
      levels[k].kept = kept;
      if (!keeps) continue;
      for (std::int64_t p = 0; p < levels[k].panels(); ++p)
        kept += levels[k + 1].count * levels[k].columns(p);
    }
    if (!known) parallel_for(op.levels, [&](std::int64_t k) { normalise(levels[k], k); });
    find_shared_targets();
  }

  float inverse_temperature() const { return 1.0f / op.temperature; }

  // Calls body(level, panel) index by index on the threads.
  template <typename Body>
  void for_panels(Body&& body) const {
    std::vector<std::pair<std::int64_t, std::int64_t>> tasks;
    for (std::int64_t k = 0; k + 1 < op.levels; ++k)
      for (std::int64_t p = 0; p < levels[k].panels(); ++p) tasks.emplace_back(k, p);
    parallel_for(static_cast<std::int64_t>(tasks.size()), [&](std::int64_t task) {
      body(task, tasks[task].first, tasks[task].second);
    });
  }

 private:
  void normalise(const Level& level, std::int64_t k) const {
    const int dim = static_cast<int>(op.dim);
    for (std::int64_t row = 0; row < level.count; ++row) {
      const float* from = op.z + (k * op.users + level.users[row]) * dim;
      float* to = level.unit + row * dim;
      Vec squares = zero();
      for_lanes(dim, [&](int i, auto m) {
        const Vec x = load(from + i, m);
        squares = fma(x, x, squares);
      });
      level.norm[row] = std::max(std::sqrt(sum(squares)), kSmallest);
      const Vec scale = set1(1.0f / level.norm[row]);
      for_lanes(dim, [&](int i, auto m) { store(to + i, load(from + i, m) * scale, m); });
    }
  }

  // By a table of open addressing, at most half full.
  void find_shared_targets() {
    std::size_t size = 2;
    int log = 1;
    while (size < 2 * static_cast<std::size_t>(op.users)) {
      size *= 2;
      ++log;
    }
    std::vector<std::int32_t> first_user(size, -1);
    for (std::int64_t u = 0; u < op.users; ++u) {
      const auto target = static_cast<std::uint64_t>(op.targets[u]);
      std::size_t at = target * 0x9E3779B97F4A7C15u >> (64 - log);
      while (first_user[at] >= 0 && op.targets[first_user[at]] != op.targets[u])
        at = (at + 1) & (size - 1);
      shared[u] = first_user[at] >= 0;
      if (!shared[u]) first_user[at] = static_cast<std::int32_t>(u);
      label[u] = first_user[at];
      shared[label[u]] |= shared[u];
    }
  }
};

// A panel of anchors of one level, beside which its candidates stand in tiles.
struct Panel {
  const Plan& plan;
  const LevelInfoNCE& op;
  std::int64_t k = 0, first = 0;
  int count = 0, width = 0;  // anchors, and columns of a row of similarities
  float* columns;            // [D, width]: anchors / temperature
  alignas(64) std::int32_t labels[kPanel], users[kPanel];

  Panel(const Plan& plan_in, Scratch& scratch) : plan(plan_in), op(plan_in.op) {
    columns = scratch.take(op.dim * kPanel);
  }

  const Level& here() const { return plan.levels[k]; }
  const Level& next() const { return plan.levels[k + 1]; }
  const float* unit(int a) const { return here().unit + here().anchor[first + a] * op.dim; }
  std::int64_t mate(int a) const { return here().mate[first + a]; }

  void move_to(std::int64_t level, std::int64_t panel) {
    k = level;
    first = panel * kPanel;
    count = here().in_panel(panel);
    width = here().columns(panel);
    for (int a = 0; a < width; ++a) {
      users[a] = a < count ? here().users[here().anchor[first + a]] : -1;
      labels[a] = a < count ? plan.label[users[a]] : -1;
    }
  }

  // The anchors, transposed.
  void fill_columns() {
    const Vec scale = set1(plan.inverse_temperature());
    const int dim = static_cast<int>(op.dim);
    for (int a = 0; a < width; a += kWidth)
      for (int d = 0; d < dim; d += kWidth) {
        const int lanes = std::min(kWidth, dim - d);
        Vec rows[kWidth];
        for (int i = 0; i < kWidth; ++i)
          rows[i] = a + i >= count    ? zero()
                    : lanes == kWidth ? load(unit(a + i) + d)
                                      : load(unit(a + i) + d, adarec::first(lanes));
        transpose_lanes(rows);
        for (int i = 0; i < lanes; ++i) store(columns + (d + i) * width + a, rows[i] * scale);
      }
  }

  // Similarities to the candidates [row, row + items), [items, width]; -inf to others with the same
  // target.
  void compare(std::int64_t row, int items, float* logits) const {
    gemm_nn(items, width, static_cast<int>(op.dim), next().unit + row * op.dim, op.dim, columns,
            width, logits, width, 0);
    const UVec barred = as_bits(set1(-std::numeric_limits<float>::infinity()));
    for (int i = 0; i < items; ++i) {
      const std::int32_t user = next().users[row + i];
      if (!plan.shared[user]) continue;
      const UVec mine = set1u(static_cast<std::uint32_t>(user));
      const UVec label = set1u(static_cast<std::uint32_t>(plan.label[user]));
      for (int v = 0; v < width; v += kWidth) {
        UVec anchor, kind;
        std::memcpy(&anchor, users + v, sizeof anchor);
        std::memcpy(&kind, labels + v, sizeof kind);
        const UVec out = (UVec)(kind == label) & (UVec)(anchor != mine);
        float* at = logits + i * width + v;
        store(at, as_float((out & barred) | (~out & as_bits(load(at)))));
      }
    }
  }

  // Calls body(row, items) for tiles of [begin, end).
  template <typename Body>
  static void for_tiles(std::int64_t begin, std::int64_t end, Body&& body) {
    for (std::int64_t row = begin; row < end; row += kTile)
      body(row, static_cast<int>(std::min<std::int64_t>(kTile, end - row)));
  }
};

}  // namespace adarec::infonce
