// The gated aggregation in tiles of rows. A tile's (level, row) pairs are gathered, so that the
// router's product sees about a hundred rows whatever the depths are; everything but the experts'
// outputs stays in cache, and those are read once in each direction.
#include "moe_aggregate.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "../moe_tile.h"
#include "gemm.h"
#include "parallel.h"
#include "rows.h"
#include "vec.h"

namespace adarec {
namespace {

constexpr std::int64_t kTile = 32;    // rows
constexpr std::int64_t kGroups = 32;  // shares of the weights' gradients, whatever the thread count

float sigmoid_of(float x) { return 1.0f / (1.0f + std::exp(-x)); }

const float* read(const Rows& rows, std::int64_t row, std::int64_t dim, float* buffer) {
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
    for (std::int64_t k = 0; k < op.levels; ++k)
      level_gate[k] = sigmoid_of(routed(op.router_level_bias + k * hidden));
  }

  // The router's logit from its hidden layer before SiLU.
  float routed(const float* before) const {
    Vec total = zero();
    for_lanes(static_cast<int>(op.hidden), [&](int i, Mask m) {
      total = fma(silu(load(before + i, m)), load(op.router_w2 + i, m), total);
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
  std::int64_t* place;  // [pairs]: level * R + row
  int* begin;           // [kTile + 1]: each row's first pair
  float* content;       // [pairs, D]: pooled
  float* before;        // [pairs, H]: the router's hidden layer before SiLU
  float* gate;          // [kTile, D]: Eq. 10

  Tile(const Plan& plan_in, Scratch& scratch) : plan(plan_in), op(plan_in.op) {
    const std::int64_t most = kTile * op.levels;
    place = scratch.take<std::int64_t>(most);
    begin = scratch.take<int>(kTile + 1);
    content = scratch.take(most * op.dim);
    before = scratch.take(most * op.hidden);
    gate = scratch.take(kTile * op.dim);
  }

  void move_to(std::int64_t tile) {
    first = tile * kTile;
    rows = static_cast<int>(std::min(kTile, op.rows - first));
    pairs = 0;
    for (int r = 0; r < rows; ++r) {
      begin[r] = pairs;
      for (std::int64_t k = 0; k <= op.depth[first + r]; ++k)
        place[pairs++] = k * op.rows + first + r;
    }
    begin[rows] = pairs;
  }

  // The router's hidden layer of all pairs (only where there is content).
  void run_router() {
    for (int r = 0; r < rows; ++r)
      for (int p = begin[r]; p < begin[r + 1]; ++p) {
        load_row(op.pooled.data, op.pooled.bf16, place[p], op.dim, op.dim, content + p * op.dim);
        copy_row(op.router_level_bias + (p - begin[r]) * op.hidden, op.hidden,
                 before + p * op.hidden);
      }
    gemm_nn(pairs, static_cast<int>(op.hidden), static_cast<int>(op.dim), content, op.dim,
            plan.router_t, op.hidden, before, op.hidden, 1);
  }

  // Eq. 10 of the tile's rows.
  void run_gate(const float* z_coarse) {
    set_rows(rows, op.dim, op.gate_b, gate, op.dim);
    gemm_nn(rows, static_cast<int>(op.dim), static_cast<int>(op.dim), z_coarse, op.dim,
            plan.gate_t, op.dim, gate, op.dim, 1);
    for_lanes(static_cast<int>(rows * op.dim),
              [&](int i, Mask m) { store(gate + i, sigmoid(load(gate + i, m)), m); });
  }
};

// sum over n levels of weight[k] * rows[k], divided by divisor.
void average(const float* const* rows, const float* weights, int n, float divisor, int dim,
             float* to) {
  int d = 0;
  const Vec scale = set1(divisor);
  for (; d + 4 * kWidth <= dim; d += 4 * kWidth) {
    Vec total[4] = {zero(), zero(), zero(), zero()};
    for (int k = 0; k < n; ++k) {
      const Vec w = set1(weights[k]);
      for (int v = 0; v < 4; ++v) total[v] = fma(w, load(rows[k] + d + v * kWidth), total[v]);
    }
    for (int v = 0; v < 4; ++v) store(to + d + v * kWidth, total[v] / scale);
  }
  for_lanes(dim - d, [&](int i, Mask m) {
    Vec total = zero();
    for (int k = 0; k < n; ++k) total = fma(set1(weights[k]), load(rows[k] + d + i, m), total);
    store(to + d + i, total / scale, m);
  });
}

// The two weights of a row's levels in Eq. 8 and 9, and their sums.
struct LevelWeights {
  std::vector<float> fine, coarse;
  float fine_total = 0, coarse_total = 0;

  explicit LevelWeights(std::int64_t levels) : fine(levels), coarse(levels) {}

  void set(const MoEAggregate& op, const float* gates, std::int64_t row) {
    fine_total = coarse_total = 0;
    for (std::int64_t k = 0; k <= op.depth[row]; ++k) {
      const float mass = op.level_mass[k * op.rows + row], gate = gates[k * op.rows + row];
      fine_total += fine[k] = moe::fine_weight(mass, gate);
      coarse_total += coarse[k] = moe::coarse_weight(mass, gate);
    }
  }
};

void forward_tile(Tile& tile, const MoEAggregateOut& out, LevelWeights& weights,
                  std::vector<const float*>& sources, float* buffer) {
  const MoEAggregate& op = tile.op;
  const bool content = op.pooled.data != nullptr;
  const int dim = static_cast<int>(op.dim);
  if (content) tile.run_router();
  for (int r = 0; r < tile.rows; ++r) {
    const std::int64_t row = tile.first + r;
    const int levels = tile.begin[r + 1] - tile.begin[r];
    for (int k = 0; k < levels; ++k)
      out.gates[k * op.rows + row] =
          content ? sigmoid_of(tile.plan.routed(tile.before + (tile.begin[r] + k) * op.hidden))
                  : tile.plan.level_gate[k];
    for (std::int64_t k = levels; k < op.levels; ++k) out.gates[k * op.rows + row] = 0.0f;
    weights.set(op, out.gates, row);
    for (int k = 0; k < levels; ++k)
      sources[k] = read(op.fine, k * op.rows + row, dim, buffer + k * dim);
    average(sources.data(), weights.fine.data(), levels, weights.fine_total + moe::kEpsilon, dim,
            out.z_fine + row * dim);
    for (int k = 0; k < levels; ++k)
      sources[k] = read(op.coarse, k * op.rows + row, dim, buffer + k * dim);
    average(sources.data(), weights.coarse.data(), levels, weights.coarse_total + moe::kEpsilon,
            dim, out.z_coarse + row * dim);
  }
  const float* z_fine = out.z_fine + tile.first * dim;
  const float* z_coarse = out.z_coarse + tile.first * dim;
  tile.run_gate(z_coarse);
  for (int r = 0; r < tile.rows; ++r) {
    float* line = tile.gate + r * dim;
    for_lanes(dim, [&](int i, Mask m) {
      const Vec fine = load(z_fine + r * dim + i, m), coarse = load(z_coarse + r * dim + i, m);
      store(line + i, moe::fuse(load(line + i, m), fine, coarse), m);
    });
    store_row(line, out.user.bf16, tile.first + r, dim, out.user.data);
  }
}

// A share of the weights' gradients.
struct Share {
  float *router_w1, *router_level_bias, *router_w2, *gate_w, *gate_b;
  float* level_logit;  // [K]: the router's logits' gradients, summed by level

  static std::int64_t size(const MoEAggregate& op) {
    return (op.hidden + op.dim + 1) * op.dim + (op.levels + 1) * op.hidden + op.levels;
  }

  Share(const MoEAggregate& op, float* memory) {
    const auto part = [&](std::int64_t count) { return std::exchange(memory, memory + count); };
    router_w1 = part(op.hidden * op.dim);
    router_level_bias = part(op.levels * op.hidden);
    router_w2 = part(op.hidden);
    gate_w = part(op.dim * op.dim);
    gate_b = part(op.dim);
    level_logit = part(op.levels);
  }
};

// Scratch of the backward pass beside a Tile's.
struct Slopes {
  float *gate, *fine, *coarse;  // [kTile, D]: of Eq. 10's logits and of the two averages
  float* logit;                 // [pairs]: of the router's logits
  float* content;               // [pairs, D]
  float *input, *buffer;        // [D]

  Slopes(const MoEAggregate& op, Scratch& scratch) {
    gate = scratch.take(kTile * op.dim);
    fine = scratch.take(kTile * op.dim);
    coarse = scratch.take(kTile * op.dim);
    logit = scratch.take(kTile * op.levels);
    content = scratch.take(kTile * op.levels * op.dim);
    input = scratch.take(op.dim);
    buffer = scratch.take(op.dim);
  }
};

// Eq. 10 and 11 backwards: slopes of the averages, and the gate's weights.
void fusion_backward(Tile& tile, const MoEAggregateGradients& grad, Slopes& slopes, Share& share) {
  const MoEAggregate& op = tile.op;
  const int dim = static_cast<int>(op.dim);
  const float* z_fine = grad.z_fine + tile.first * dim;
  const float* z_coarse = grad.z_coarse + tile.first * dim;
  tile.run_gate(z_coarse);
  for (int r = 0; r < tile.rows; ++r) {
    const float* upstream = read(grad.grad_user, tile.first + r, dim, slopes.input);
    for_lanes(dim, [&](int i, Mask m) {
      const int at = r * dim + i;
      const auto g = moe::fuse_gradient(load(upstream + i, m), load(tile.gate + at, m),
                                        load(z_fine + at, m), load(z_coarse + at, m));
      store(slopes.fine + at, g.fine, m);
      store(slopes.coarse + at, g.coarse, m);
      store(slopes.gate + at, g.logit, m);
    });
  }
  gemm_nn(tile.rows, dim, dim, slopes.gate, dim, op.gate_w, dim, slopes.coarse, dim, 1);
  gemm_tn(dim, dim, tile.rows, slopes.gate, dim, z_coarse, dim, share.gate_w, dim);
  add_columns(tile.rows, dim, slopes.gate, dim, share.gate_b);
}

// One expert output backwards: writes scale * slope to its gradient and returns
// slope . (output - average).
float output_backward(const Rows& output, const Rows& gradient, std::int64_t row,
                      const float* slope, const float* average, float scale, int dim,
                      float* buffer) {
  const float* from = read(output, row, dim, buffer);
  float* to = gradient.bf16 ? buffer : static_cast<float*>(gradient.data) + row * dim;
  Vec along = zero();
  for_lanes(dim, [&](int i, Mask m) {
    const Vec s = load(slope + i, m);
    along = fma(s, load(from + i, m) - load(average + i, m), along);
    store(to + i, set1(scale) * s, m);
  });
  if (gradient.bf16) store_row(buffer, true, row, dim, gradient.data);
  return sum(along);
}

// Eq. 8 and 9 backwards: the experts' outputs, the level masses, the router's logits.
void averages_backward(Tile& tile, const MoEAggregateGradients& grad, Slopes& slopes,
                       Share& share, LevelWeights& weights) {
  const MoEAggregate& op = tile.op;
  const int dim = static_cast<int>(op.dim);
  for (int r = 0; r < tile.rows; ++r) {
    const std::int64_t row = tile.first + r;
    const int levels = tile.begin[r + 1] - tile.begin[r];
    weights.set(op, grad.gates, row);
    const float* fine = slopes.fine + r * dim;
    const float* coarse = slopes.coarse + r * dim;
    const float fine_total = weights.fine_total + moe::kEpsilon;
    const float coarse_total = weights.coarse_total + moe::kEpsilon;
    for (int k = 0; k < levels; ++k) {
      const std::int64_t at = k * op.rows + row;
      const float along_fine =
          output_backward(op.fine, grad.fine, at, fine, grad.z_fine + row * dim,
                          weights.fine[k] / fine_total, dim, slopes.buffer);
      const float along_coarse =
          output_backward(op.coarse, grad.coarse, at, coarse, grad.z_coarse + row * dim,
                          weights.coarse[k] / coarse_total, dim, slopes.buffer);
      const moe::LevelGradient g =
          moe::level_gradient(op.level_mass[at], grad.gates[at], along_fine / fine_total,
                              along_coarse / coarse_total);
      grad.level_mass[at] = g.mass;
      slopes.logit[tile.begin[r] + k] = g.logit;
      share.level_logit[k] += g.logit;
    }
    for (std::int64_t k = levels; k < op.levels; ++k) grad.level_mass[k * op.rows + row] = 0.0f;
  }
}

// The router's hidden layer backwards: before becomes its slope.
void hidden_backward(const MoEAggregate& op, float logit, float* before, float* level_bias,
                     float* w2) {
  const Vec scale = set1(logit);
  for_lanes(static_cast<int>(op.hidden), [&](int i, Mask m) {
    Vec slope;
    const Vec active = silu(load(before + i, m), slope);
    store(w2 + i, fma(scale, active, load(w2 + i, m)), m);
    slope = scale * load(op.router_w2 + i, m) * slope;
    store(before + i, slope, m);
    store(level_bias + i, load(level_bias + i, m) + slope, m);
  });
}

void router_backward(Tile& tile, const MoEAggregateGradients& grad, Slopes& slopes, Share& share) {
  const MoEAggregate& op = tile.op;
  const int dim = static_cast<int>(op.dim), hidden = static_cast<int>(op.hidden);
  tile.run_router();
  for (int r = 0; r < tile.rows; ++r)
    for (int p = tile.begin[r]; p < tile.begin[r + 1]; ++p)
      hidden_backward(op, slopes.logit[p], tile.before + p * hidden,
                      share.router_level_bias + (p - tile.begin[r]) * hidden, share.router_w2);
  gemm_tn(hidden, dim, tile.pairs, tile.before, hidden, tile.content, dim, share.router_w1, dim);
  gemm_nn(tile.pairs, dim, hidden, tile.before, hidden, op.router_w1, dim, slopes.content, dim, 0);
  for (int p = 0; p < tile.pairs; ++p)
    store_row(slopes.content + p * dim, grad.pooled.bf16, tile.place[p], dim, grad.pooled.data);
}

}  // namespace

void moe_aggregate_forward(const MoEAggregate& op, const MoEAggregateOut& out) {
  Scratch scratch;
  const Plan plan(op, scratch);
  // A few tiles a task: the pointers' tables are made once for them.
  const std::int64_t tasks = std::min<std::int64_t>(plan.tiles(), 64);
  parallel_for(tasks, [&](std::int64_t task) {
    Scratch local;
    Tile tile(plan, local);
    LevelWeights weights(op.levels);
    std::vector<const float*> sources(op.levels);
    float* buffer = local.take(op.levels * op.dim);
    for (std::int64_t t = plan.tiles() * task / tasks; t < plan.tiles() * (task + 1) / tasks; ++t) {
      tile.move_to(t);
      forward_tile(tile, out, weights, sources, buffer);
    }
  });
}

void moe_aggregate_backward(const MoEAggregate& op, const MoEAggregateGradients& grad) {
  Scratch scratch;
  const Plan plan(op, scratch);
  const bool content = op.pooled.data != nullptr;
  const std::int64_t groups = std::max<std::int64_t>(1, std::min(plan.tiles(), kGroups));
  const std::int64_t size = Share::size(op);
  float* shares = scratch.take(groups * size);
  parallel_for(groups, [&](std::int64_t group) {
    Scratch local;
    Share share(op, shares + group * size);
    std::fill_n(shares + group * size, size, 0.0f);
    Tile tile(plan, local);
    Slopes slopes(op, local);
    LevelWeights weights(op.levels);
    for (std::int64_t t = plan.tiles() * group / groups; t < plan.tiles() * (group + 1) / groups;
         ++t) {
      tile.move_to(t);
      fusion_backward(tile, grad, slopes, share);
      averages_backward(tile, grad, slopes, share, weights);
      if (content) router_backward(tile, grad, slopes, share);
    }
  });
  constexpr std::int64_t kPiece = 4096;
  parallel_for((size + kPiece - 1) / kPiece, [&](std::int64_t piece) {
    const std::int64_t from = piece * kPiece, to = std::min(size, from + kPiece);
    for (std::int64_t g = 1; g < groups; ++g)
      for (std::int64_t i = from; i < to; ++i) shares[i] += shares[g * size + i];
  });
  Share total(op, shares);
  if (!content) {
    // The router sees the level alone: one pass over the levels does for all rows.
    std::vector<float> before(op.hidden);
    for (std::int64_t k = 0; k < op.levels; ++k) {
      copy_row(op.router_level_bias + k * op.hidden, op.hidden, before.data());
      hidden_backward(op, total.level_logit[k], before.data(),
                      total.router_level_bias + k * op.hidden, total.router_w2);
    }
  }
  std::copy_n(total.router_w1, op.hidden * op.dim, grad.router_w1);
  std::copy_n(total.router_level_bias, op.levels * op.hidden, grad.router_level_bias);
  std::copy_n(total.router_w2, op.hidden, grad.router_w2);
  std::copy_n(total.gate_w, op.dim * op.dim, grad.gate_w);
  std::copy_n(total.gate_b, op.dim, grad.gate_b);
  float logits = 0;
  for (std::int64_t k = 0; k < op.levels; ++k) logits += total.level_logit[k];
  grad.router_b2[0] = logits;
}

}  // namespace adarec
