// The gated aggregation, backward: gates and the router's hidden layer are made again unless they
// were kept, the experts' outputs read once, their gradients written once.
#include "moe_aggregate.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "moe_aggregate_tile.h"

namespace adarec {
namespace {

using namespace moe;

constexpr std::int64_t kGroups = 32;  // shares of the weights' gradients, whatever the thread count

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
  float* mass;                  // [K, kTile]: of the level masses
  float* logit;                 // [pairs]: of the router's logits
  float* content;               // [pairs, D]
  float* before;                // [pairs, H]: of the router's hidden layer; that layer at first
  float* block;                 // [kBlock, D]: of content
  float *input, *buffer;        // [D]

  Slopes(const MoEAggregate& op, Scratch& scratch) {
    gate = scratch.take(kTile * op.dim);
    fine = scratch.take(kTile * op.dim);
    coarse = scratch.take(kTile * op.dim);
    mass = scratch.zeros(kTile * op.levels);
    logit = scratch.take(kTile * op.levels);
    content = scratch.take(kTile * op.levels * op.dim);
    before = scratch.take(kTile * op.levels * op.hidden);
    block = scratch.take(kBlock * op.dim);
    input = scratch.take(op.dim);
    buffer = scratch.take(op.dim);
  }
};

// Eq. 10 and 11 backwards: slopes of the averages, and the gate's weights.
void fusion_backward(Tile& tile, const MoEAggregateGradients& grad, const float* kept,
                     Slopes& slopes, Share& share) {
  const MoEAggregate& op = tile.op;
  const int dim = static_cast<int>(op.dim);
  const float* z_fine = grad.z_fine + tile.now.first * dim;
  const float* z_coarse = grad.z_coarse + tile.now.first * dim;
  if (kept == nullptr) tile.run_gate(z_coarse);
  const float* gate = kept == nullptr ? tile.gate : kept + tile.now.first * dim;
  for (int r = 0; r < tile.now.rows; ++r) {
    if (op.depth[tile.now.first + r] < 0) {  // capacity: the upstream gradient may be anything
      for (float* slope : {slopes.fine, slopes.coarse, slopes.gate})
        std::fill_n(slope + r * dim, dim, 0.0f);
      continue;
    }
    const float* upstream = read(grad.grad_user, tile.now.first + r, dim, slopes.input);
    for_lanes(dim, [&](int i, auto m) {
      const int at = r * dim + i;
      const auto g = fuse_gradient(load(upstream + i, m), load(gate + at, m),
                                   load(z_fine + at, m), load(z_coarse + at, m));
      store(slopes.fine + at, g.fine, m);
      store(slopes.coarse + at, g.coarse, m);
      store(slopes.gate + at, g.logit, m);
    });
  }
  gemm_nn(tile.now.rows, dim, dim, slopes.gate, dim, op.gate_w, dim, slopes.coarse, dim, 1);
  gemm_tn(dim, dim, tile.now.rows, slopes.gate, dim, z_coarse, dim, share.gate_w, dim);
  add_columns(tile.now.rows, dim, slopes.gate, dim, share.gate_b);
}

// Whether gradients of [K, R, D] are written past the caches: whole lines, more than would stay.
bool streamed(const MoEAggregate& op, const Rows& gradient) {
  constexpr std::int64_t kKept = std::int64_t{1} << 20;  // floats
  return !gradient.bf16 && op.dim % 16 == 0 && op.levels * op.rows * op.dim > kKept &&
         reinterpret_cast<std::uintptr_t>(gradient.data) % 64 == 0;
}

// One expert output backwards: writes scale * slope to its gradient and returns
// slope . (output - average).
template <bool kStreamed>
float output_backward(const Rows& output, const Rows& gradient, std::int64_t row,
                      const float* slope, const float* average, float scale, int dim,
                      float* buffer) {
  const float* from = read(output, row, dim, buffer);
  float* to = gradient.bf16 ? buffer : static_cast<float*>(gradient.data) + row * dim;
  Vec along = zero();
  for_lanes(dim, [&](int i, auto m) {
    const Vec s = load(slope + i, m);
    along = fma(s, load(from + i, m) - load(average + i, m), along);
    if constexpr (kStreamed)
      stream(to + i, set1(scale) * s);
    else
      store(to + i, set1(scale) * s, m);
  });
  if (gradient.bf16) store_row(buffer, true, row, dim, gradient.data);
  return sum(along);
}

// Eq. 8 and 9 backwards for a few pairs: the experts' outputs, the level masses, the router's
// logits.
template <bool kStreamed>
void averages_backward(Tile& tile, const MoEAggregateGradients& grad, Slopes& slopes, Share& share,
                       int first, int count) {
  const MoEAggregate& op = tile.op;
  const int dim = static_cast<int>(op.dim);
  const float* z_fine = grad.z_fine + tile.now.first * dim;
  const float* z_coarse = grad.z_coarse + tile.now.first * dim;
  for (int p = first; p < first + count; ++p) {
    const auto [at, level, row] = tile.now.pair[p];
    const int within = row * dim;
    const std::int64_t plane = level * kTile + row;
    const float fine_total = tile.fine_total[row], coarse_total = tile.coarse_total[row];
    const float fine_along = output_backward<kStreamed>(
        op.fine, grad.fine, at, slopes.fine + within, z_fine + within,
        tile.fine[plane] / fine_total, dim, slopes.buffer);
    const float coarse_along = output_backward<kStreamed>(
        op.coarse, grad.coarse, at, slopes.coarse + within, z_coarse + within,
        tile.coarse[plane] / coarse_total, dim, slopes.buffer);
    const LevelGradient g = level_gradient(op.level_mass[at], tile.share[plane],
                                           fine_along / fine_total, coarse_along / coarse_total);
    slopes.mass[plane] = g.mass;
    slopes.logit[p] = g.logit;
    share.level_logit[level] += g.logit;
  }
}

// The router's hidden layer backwards, to the slope of what it is before SiLU: from what it is
// before the level's bias, or from what was kept, [2, H].
void hidden_backward(const MoEAggregate& op, float logit, const float* bias, const float* before,
                     const float* kept, float* to, float* d_bias, float* d_w2) {
  const Vec scale = set1(logit);
  for_lanes(static_cast<int>(op.hidden), [&](int i, auto m) {
    Vec active, slope;
    if (kept == nullptr) {
      active = silu(load(before + i, m) + load(bias + i, m), slope);
    } else {
      active = load(kept + i, m);
      slope = load(kept + op.hidden + i, m);
    }
    store(d_w2 + i, fma(scale, active, load(d_w2 + i, m)), m);
    slope = scale * load(op.router_w2 + i, m) * slope;
    store(to + i, slope, m);
    store(d_bias + i, load(d_bias + i, m) + slope, m);
  });
}

// The gradient of a few pairs' content.
template <bool kStreamed>
void content_backward(Tile& tile, const MoEAggregateGradients& grad, Slopes& slopes, int first,
                      int count) {
  const MoEAggregate& op = tile.op;
  const int dim = static_cast<int>(op.dim), hidden = static_cast<int>(op.hidden);
  const float* slope = slopes.block;
  gemm_nn(count, dim, hidden, slopes.before + first * hidden, hidden, op.router_w1, dim,
          slopes.block, dim, 0, tile.fetch);
  for (int p = first; p < first + count; ++p, slope += dim) {
    const std::int64_t at = tile.now.pair[p].at;
    if constexpr (kStreamed) {
      float* to = static_cast<float*>(grad.pooled.data) + at * dim;
      for (int i = 0; i < dim; i += kWidth) stream(to + i, load(slope + i));
    } else {
      store_row(slope, grad.pooled.bf16, at, dim, grad.pooled.data);
    }
  }
}

template <bool kStreamed>
void backward_tile(Tile& tile, const MoEAggregateGradients& grad, const float* kept, Slopes& slopes,
                   Share& share) {
  const MoEAggregate& op = tile.op;
  const int dim = static_cast<int>(op.dim), hidden = static_cast<int>(op.hidden);
  const bool content = op.pooled.data != nullptr;
  const auto for_blocks = [&](auto&& body) {
    for (int p = 0; p < tile.now.pairs; p += kBlock) body(p, std::min(kBlock, tile.now.pairs - p));
  };
  fusion_backward(tile, grad, kept, slopes, share);
  tile.for_planes([&](std::int64_t i, std::int64_t at, Mask m) {
    store(tile.share + i, load(grad.gates + at, m));
  });
  tile.weigh();
  for_blocks([&](int first, int count) {
    averages_backward<kStreamed>(tile, grad, slopes, share, first, count);
    if (!content) return;
    tile.load_content(first, count, slopes.content + first * dim);
    if (kept == nullptr)
      tile.run_router(count, slopes.content + first * dim, slopes.before + first * hidden);
    for (int p = first; p < first + count; ++p) {
      const auto [at, level, row] = tile.now.pair[p];
      const std::int64_t bias = level * op.hidden;
      float* to = slopes.before + p * op.hidden;
      const float* made =
          kept == nullptr ? nullptr : kept + op.rows * op.dim + at * 2 * op.hidden;
      hidden_backward(op, slopes.logit[p], op.router_level_bias + bias, to, made, to,
                      share.router_level_bias + bias, share.router_w2);
    }
  });
  tile.for_planes([&](std::int64_t i, std::int64_t at, Mask m) {
    store(grad.level_mass + at, keep(m, load(slopes.mass + i)), tile.within(i));
  });
  if (content) {
    gemm_tn(hidden, dim, tile.now.pairs, slopes.before, hidden, slopes.content, dim,
            share.router_w1, dim);
    for_blocks([&](int first, int count) {
      content_backward<kStreamed>(tile, grad, slopes, first, count);
    });
  }
}

}  // namespace

void moe_aggregate_backward(const MoEAggregate& op, const MoEAggregateGradients& grad,
                            const float* kept) {
  Scratch scratch;
  const Plan plan(op, moe_aggregate_pack(op, scratch));
  const bool content = op.pooled.data != nullptr;
  const std::int64_t groups = std::max<std::int64_t>(1, std::min(plan.tiles(), kGroups));
  const std::int64_t size = Share::size(op);
  float* shares = scratch.take(groups * size);
  const bool streams = streamed(op, grad.fine) && streamed(op, grad.coarse) &&
                       (!content || streamed(op, grad.pooled));
  if (streams) {
    // Capacity beyond the deepest row stays untouched.
    const std::int64_t deepest = *std::max_element(op.depth, op.depth + op.rows);
    const std::int64_t reached = (deepest + 1) * op.rows * op.dim * 4;  // bytes
    touch({{grad.fine.data, reached}, {grad.coarse.data, reached},
           {grad.pooled.data, content ? reached : 0}});
  }
  const std::int64_t tiles = plan.tiles(), tasks = tasks_for(groups);
  const auto begin = [&](std::int64_t group) { return tiles * group / groups; };
  parallel_for(tasks, [&](std::int64_t task) {
    Scratch local;
    Tile tile(plan, local);
    Slopes slopes(op, local);
    const std::int64_t last = groups * (task + 1) / tasks;
    for (std::int64_t group = groups * task / tasks; group < last; ++group) {
      Share share(op, shares + group * size);
      std::fill_n(shares + group * size, size, 0.0f);
      tile.run(begin(group), begin(group + 1), begin(last), [&] {
        if (streams)
          backward_tile<true>(tile, grad, kept, slopes, share);
        else
          backward_tile<false>(tile, grad, kept, slopes, share);
      });
    }
    if (streams) streamed();
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
      std::fill(before.begin(), before.end(), 0.0f);
      hidden_backward(op, total.level_logit[k], op.router_level_bias + k * op.hidden,
                      before.data(), nullptr, before.data(),
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
