// Eq. 6 level by level, over the users that reach it, in tiles of [candidates, anchors].
//
// Unit vectors of the reached levels are packed once. The forward pass streams the candidates past
// panels of anchors; the backward pass makes the same tiles again from the saved log-sum-exps, and
// gives every task a range of one level's candidates, whose gradients are its own; those of the
// anchors are summed over the few ranges of a level in their order.
#include "level_infonce.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "gemm.h"
#include "parallel.h"
#include "rows.h"
#include "softmax_tile.h"

namespace adarec {
namespace {

constexpr int kTile = 96;               // candidates
constexpr std::int64_t kRange = 1024;   // candidates of a task of the backward pass, at least
constexpr std::int64_t kRanges = 4;     // and tasks a level, at most
constexpr float kSmallest = 1e-12f;     // norm, as in torch.nn.functional.normalize

// One level: the users that reach it, and those that are anchors there.
struct Level {
  std::vector<std::int32_t> users;    // in rising order
  std::vector<std::int32_t> anchors;  // rows of this level's unit vectors
  std::vector<std::int32_t> mates;    // their rows at the next level: the positives
  float* unit;                        // [users, D]
  float* norm;                        // [users]
  std::int64_t panels() const {
    return (static_cast<std::int64_t>(anchors.size()) + kPanel - 1) / kPanel;
  }
};

struct Plan {
  const LevelInfoNCE& op;
  std::vector<Level> levels;
  std::vector<std::int32_t> label;  // [B]: the first user with the same target
  std::int64_t pairs = 0;

  Plan(const LevelInfoNCE& op_in, Scratch& scratch)
      : op(op_in), levels(op.levels), label(op.users) {
    for (std::int64_t u = 0; u < op.users; ++u)
      for (std::int64_t k = 0; k <= op.depth[u]; ++k) {
        if (k < op.depth[u] && k >= op.depth[u] / 2) {
          levels[k].anchors.push_back(static_cast<std::int32_t>(levels[k].users.size()));
          levels[k].mates.push_back(static_cast<std::int32_t>(levels[k + 1].users.size()));
          ++pairs;
        }
        levels[k].users.push_back(static_cast<std::int32_t>(u));
      }
    for (Level& level : levels) {
      const auto count = static_cast<std::int64_t>(level.users.size());
      level.unit = scratch.take(count * op.dim);
      level.norm = scratch.take(count);
    }
    parallel_for(op.levels, [&](std::int64_t k) { normalise(k); });
    std::vector<std::int32_t> order(op.users);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
      return op.targets[a] < op.targets[b];
    });
    for (std::size_t i = 0; i < order.size(); ++i) {
      const bool same = i > 0 && op.targets[order[i]] == op.targets[order[i - 1]];
      label[order[i]] = same ? label[order[i - 1]] : order[i];
    }
  }

  void normalise(std::int64_t k) {
    Level& level = levels[k];
    const int dim = static_cast<int>(op.dim);
    for (std::size_t row = 0; row < level.users.size(); ++row) {
      const float* from = op.z + (k * op.users + level.users[row]) * dim;
      float* to = level.unit + row * dim;
      Vec squares = zero();
      for_lanes(dim, [&](int i, Mask m) {
        const Vec x = load(from + i, m);
        squares = fma(x, x, squares);
      });
      level.norm[row] = std::max(std::sqrt(sum(squares)), kSmallest);
      const Vec norm = set1(level.norm[row]);
      for_lanes(dim, [&](int i, Mask m) { store(to + i, load(from + i, m) / norm, m); });
    }
  }

  // The user of an anchor.
  std::int32_t user(std::int64_t k, std::int64_t anchor) const {
    return levels[k].users[levels[k].anchors[anchor]];
  }
};

// A panel of anchors of one level, and a tile of their similarities.
struct Panel {
  const Plan& plan;
  const LevelInfoNCE& op;
  std::int64_t k = 0, first = 0;
  int count = 0;
  float* columns;   // [D, kPanel]: anchors / temperature
  float* lines;     // [kPanel, D]: the same
  float* logits;    // [kTile, kPanel]
  alignas(64) std::int32_t labels[kPanel], users[kPanel];

  Panel(const Plan& plan_in, Scratch& scratch) : plan(plan_in), op(plan_in.op) {
    columns = scratch.take(op.dim * kPanel);
    lines = scratch.take(kPanel * op.dim);
    logits = scratch.take(kTile * kPanel);
  }

  void move_to(std::int64_t level, std::int64_t panel) {
    k = level;
    first = panel * kPanel;
    const Level& here = plan.levels[k];
    count = static_cast<int>(
        std::min<std::int64_t>(kPanel, static_cast<std::int64_t>(here.anchors.size()) - first));
    for (int a = 0; a < kPanel; ++a) {
      float* line = lines + a * op.dim;
      users[a] = labels[a] = -1;
      if (a < count) {
        const float* unit = here.unit + here.anchors[first + a] * op.dim;
        for (std::int64_t d = 0; d < op.dim; ++d) line[d] = unit[d] / op.temperature;
        users[a] = plan.user(k, first + a);
        labels[a] = plan.label[users[a]];
      } else {
        std::fill_n(line, op.dim, 0.0f);
      }
      for (std::int64_t d = 0; d < op.dim; ++d) columns[d * kPanel + a] = line[d];
    }
  }

  // The positive of anchor a among the candidates.
  std::int64_t mate(int a) const { return plan.levels[k].mates[first + a]; }

  // Similarities to the candidates [row, row + items); -inf to others with the same target.
  void compare(std::int64_t row, int items) {
    const Level& next = plan.levels[k + 1];
    gemm_nn(items, kPanel, static_cast<int>(op.dim), next.unit + row * op.dim, op.dim, columns,
            kPanel, logits, kPanel, 0);
    const UVec barred = as_bits(set1(-std::numeric_limits<float>::infinity()));
    for (int i = 0; i < items; ++i) {
      const std::int32_t user = next.users[row + i];
      const UVec mine = set1u(static_cast<std::uint32_t>(user));
      const UVec label = set1u(static_cast<std::uint32_t>(plan.label[user]));
      for (int v = 0; v < kPanel; v += kWidth) {
        UVec anchor, kind;
        std::memcpy(&anchor, users + v, sizeof anchor);
        std::memcpy(&kind, labels + v, sizeof kind);
        const UVec out = (UVec)(kind == label) & (UVec)(anchor != mine);
        float* at = logits + i * kPanel + v;
        store(at, as_float((out & barred) | (~out & as_bits(load(at)))));
      }
    }
  }

  template <typename Body>
  void for_tiles(std::int64_t begin, std::int64_t end, Body&& body) {
    for (std::int64_t row = begin; row < end; row += kTile)
      body(row, static_cast<int>(std::min<std::int64_t>(kTile, end - row)));
  }
};

// A panel's log-sum-exps, and the sum of its losses.
double panel_forward(Panel& panel, float* lse) {
  const LevelInfoNCE& op = panel.op;
  const Level& next = panel.plan.levels[panel.k + 1];
  alignas(64) float maximum[kPanel], total[kPanel];
  std::fill_n(maximum, kPanel, std::numeric_limits<float>::lowest());
  std::fill_n(total, kPanel, 0.0f);
  const auto size = static_cast<std::int64_t>(next.users.size());
  panel.for_tiles(0, size, [&](std::int64_t row, int items) {
    panel.compare(row, items);
    raise_maximum(panel.logits, items, maximum, total, nullptr, op.dim);
    exponentiate(panel.logits, items, maximum, total);
  });
  double losses = 0;
  for (int a = 0; a < panel.count; ++a) {
    const double exact = maximum[a] + std::log(static_cast<double>(total[a]));
    lse[panel.k * op.users + panel.users[a]] = static_cast<float>(exact);
    const float* mate = next.unit + panel.mate(a) * op.dim;
    const float* line = panel.lines + a * op.dim;
    float positive = 0;  // in the order of the product, so that the two agree to the last bit
    for (std::int64_t d = 0; d < op.dim; ++d) positive = std::fma(mate[d], line[d], positive);
    losses += exact - positive;
  }
  return losses;
}

// One level's gradients of unit vectors: of the anchors, by range of candidates, and of the
// candidates.
struct Slopes {
  std::int64_t ranges;
  float* anchors;     // [ranges, panels * kPanel, D]
  float* candidates;  // [candidates, D]
};

void range_backward(Panel& panel, std::int64_t k, std::int64_t range, const Slopes& slopes,
                    const float* lse, float share) {
  const LevelInfoNCE& op = panel.op;
  const int dim = static_cast<int>(op.dim);
  const Level& here = panel.plan.levels[k];
  const Level& next = panel.plan.levels[k + 1];
  const auto size = static_cast<std::int64_t>(next.users.size());
  const std::int64_t begin = size * range / slopes.ranges, end = size * (range + 1) / slopes.ranges;
  const std::int64_t width = here.panels() * kPanel;
  float* anchors = slopes.anchors + range * width * dim;
  std::fill_n(anchors, width * dim, 0.0f);
  std::fill_n(slopes.candidates + begin * dim, (end - begin) * dim, 0.0f);
  alignas(64) float reference[kPanel];
  for (std::int64_t p = 0; p < here.panels(); ++p) {
    panel.move_to(k, p);
    for (int a = 0; a < kPanel; ++a)
      reference[a] = a < panel.count ? lse[k * op.users + panel.users[a]]
                                     : std::numeric_limits<float>::infinity();
    // What multiplies a softmax in the candidates' gradient.
    for_lanes(kPanel * dim, [&](int i, Mask m) {
      store(panel.lines + i, load(panel.lines + i, m) * set1(share), m);
    });
    panel.for_tiles(begin, end, [&](std::int64_t row, int items) {
      panel.compare(row, items);
      exponentiate(panel.logits, items, reference, nullptr);
      for (int a = 0; a < panel.count; ++a) {
        const std::int64_t i = panel.mate(a) - row;
        if (i >= 0 && i < items) panel.logits[i * kPanel + a] -= 1.0f;
      }
      gemm_nn(items, dim, kPanel, panel.logits, kPanel, panel.lines, dim,
              slopes.candidates + row * dim, dim, 1);
      gemm_tn(kPanel, dim, items, panel.logits, kPanel, next.unit + row * dim, dim,
              anchors + p * kPanel * dim, dim);
    });
  }
}

// From the slopes of a level's unit vectors to those of z.
void level_backward(const Plan& plan, std::int64_t k, const Slopes* as_anchors,
                    const Slopes* as_candidates, float share, float* d_z) {
  const LevelInfoNCE& op = plan.op;
  const int dim = static_cast<int>(op.dim);
  const Level& level = plan.levels[k];
  const std::int64_t width = level.panels() * kPanel;
  std::vector<float> slope(op.dim);
  std::size_t anchor = 0;
  for (std::size_t row = 0; row < level.users.size(); ++row) {
    std::fill(slope.begin(), slope.end(), 0.0f);
    if (as_candidates != nullptr)
      copy_row(as_candidates->candidates + row * dim, dim, slope.data());
    if (anchor < level.anchors.size() && level.anchors[anchor] == static_cast<std::int32_t>(row)) {
      for (std::int64_t d = 0; d < dim; ++d) {
        float total = 0;
        for (std::int64_t range = 0; range < as_anchors->ranges; ++range)
          total += as_anchors->anchors[(range * width + anchor) * dim + d];
        slope[d] += total * share / op.temperature;
      }
      ++anchor;
    }
    const float* unit = level.unit + row * dim;
    Vec along = zero();
    for_lanes(dim, [&](int i, Mask m) {
      along = fma(load(unit + i, m), load(&slope[i], m), along);
    });
    // A vector too short to be normalised was only divided.
    const Vec part = set1(level.norm[row] > kSmallest ? sum(along) : 0.0f);
    const Vec norm = set1(level.norm[row]);
    float* to = d_z + (k * op.users + level.users[row]) * dim;
    for_lanes(dim, [&](int i, Mask m) {
      store(to + i, fnma(part, load(unit + i, m), load(&slope[i], m)) / norm, m);
    });
  }
}

}  // namespace

double level_infonce_forward(const LevelInfoNCE& op, float* lse) {
  Scratch scratch;
  const Plan plan(op, scratch);
  std::fill_n(lse, (op.levels - 1) * op.users, 0.0f);
  std::vector<std::pair<std::int64_t, std::int64_t>> tasks;
  for (std::int64_t k = 0; k + 1 < op.levels; ++k)
    for (std::int64_t p = 0; p < plan.levels[k].panels(); ++p) tasks.emplace_back(k, p);
  std::vector<double> losses(tasks.size());
  parallel_for(static_cast<std::int64_t>(tasks.size()), [&](std::int64_t task) {
    Scratch local;
    Panel panel(plan, local);
    panel.move_to(tasks[task].first, tasks[task].second);
    losses[task] = panel_forward(panel, lse);
  });
  const double total = std::accumulate(losses.begin(), losses.end(), 0.0);
  return total / static_cast<double>(std::max<std::int64_t>(plan.pairs, 1));
}

void level_infonce_backward(const LevelInfoNCE& op, const float* lse, float grad, float* d_z) {
  Scratch scratch;
  const Plan plan(op, scratch);
  const float share = grad / static_cast<float>(std::max<std::int64_t>(plan.pairs, 1));
  std::vector<Slopes> slopes(op.levels - 1);
  std::vector<std::pair<std::int64_t, std::int64_t>> tasks;
  for (std::int64_t k = 0; k + 1 < op.levels; ++k) {
    const auto candidates = static_cast<std::int64_t>(plan.levels[k + 1].users.size());
    Slopes& s = slopes[k];
    s.ranges = std::clamp<std::int64_t>(candidates / kRange, 1, kRanges);
    s.anchors = scratch.take(s.ranges * plan.levels[k].panels() * kPanel * op.dim);
    s.candidates = scratch.take(candidates * op.dim);
    for (std::int64_t range = 0; range < s.ranges; ++range) tasks.emplace_back(k, range);
  }
  parallel_for(static_cast<std::int64_t>(tasks.size()), [&](std::int64_t task) {
    Scratch local;
    Panel panel(plan, local);
    const auto [k, range] = tasks[task];
    range_backward(panel, k, range, slopes[k], lse, share);
  });
  parallel_for(op.levels, [&](std::int64_t k) {
    level_backward(plan, k, k + 1 < op.levels ? &slopes[k] : nullptr,
                   k > 0 ? &slopes[k - 1] : nullptr, share, d_z);
  });
}

}  // namespace adarec
