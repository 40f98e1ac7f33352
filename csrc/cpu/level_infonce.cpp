// Eq. 6 level by level, over the users that reach it, in tiles of [candidates, anchors].
//
// Unit vectors of the reached levels are packed once. The forward pass lets the candidates pass by
// panels of anchors; it can keep e^(similarity - greatest) of all pairs. The backward pass, which
// makes them again otherwise, gives every task a range of one level's candidates, whose gradients
// are its own; those of the anchors are summed over the few ranges of a level in their order.
// Neither divides the pairs by the softmax's sum: the anchors are, and their gradients.
#include "level_infonce.h"

#include <algorithm>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#include "level_infonce_plan.h"

namespace adarec {
namespace {

using namespace infonce;

constexpr std::int64_t kRange = 1024;  // candidates of a task of the backward pass, at least
constexpr std::int64_t kRanges = 4;    // and tasks a level, at most
constexpr int kLine = 16 / kWidth;     // vectors of a line of memory

// Calls body(column, number of vectors) for every line of columns of a panel, the last one shorter.
template <typename Body>
void for_columns(const Panel& panel, Body&& body) {
  int c = 0;
  for (; c + kLine * kWidth <= panel.width; c += kLine * kWidth)
    body(c, std::integral_constant<int, kLine>{});
  for (; c < panel.width; c += kWidth) body(c, std::integral_constant<int, 1>{});
}

// Rows of similarities become e^(similarity - maximum); their sums are added to total if it is
// asked for.
void exponentiate_rows(const Panel& panel, float* rows, std::int64_t count, const float* maximum,
                       float* total) {
  for_columns(panel, [&](int c, auto line) {
    constexpr int kCount = line;
    Vec top[kCount], sums[kCount];
    for (int v = 0; v < kCount; ++v) {
      top[v] = load(maximum + c + v * kWidth);
      sums[v] = zero();
    }
    for (std::int64_t i = 0; i < count; ++i)
      for (int v = 0; v < kCount; ++v) {
        float* at = rows + i * panel.width + c + v * kWidth;
        const Vec e = exp(load(at) - top[v]);
        sums[v] = sums[v] + e;
        store(at, e);
      }
    if (total == nullptr) return;
    for (int v = 0; v < kCount; ++v) {
      float* at = total + c + v * kWidth;
      store(at, load(at) + sums[v]);
    }
  });
}

// Raises the maxima to those of rows of similarities, and brings the sums so far down to them.
void raise(const Panel& panel, const float* rows, std::int64_t count, float* maximum,
           float* total) {
  for_columns(panel, [&](int c, auto line) {
    constexpr int kCount = line;
    Vec top[kCount];
    for (int v = 0; v < kCount; ++v) top[v] = load(maximum + c + v * kWidth);
    for (std::int64_t i = 0; i < count; ++i)
      for (int v = 0; v < kCount; ++v)
        top[v] = max(load(rows + i * panel.width + c + v * kWidth), top[v]);
    for (int v = 0; v < kCount; ++v) {
      float *most = maximum + c + v * kWidth, *sum = total + c + v * kWidth;
      store(sum, load(sum) * exp(load(most) - top[v]));
      store(most, top[v]);
    }
  });
}

// A panel's softmax, and the sum of its losses. rows: of kMostKept candidates.
double panel_forward(const Panel& panel, float* rows, float* softmax) {
  const LevelInfoNCE& op = panel.op;
  alignas(64) float maximum[kPanel], total[kPanel], positive[kPanel], spread[kPanel];
  std::fill_n(maximum, kPanel, std::numeric_limits<float>::lowest());
  std::fill_n(total, kPanel, 0.0f);
  int mate = 0;  // positives come in the order of anchors
  for (std::int64_t begin = 0; begin < panel.next().count; begin += kMostKept) {
    const std::int64_t end = std::min(begin + kMostKept, panel.next().count);
    Panel::for_tiles(begin, end, [&](std::int64_t row, int items) {
      panel.compare(row, items, rows + (row - begin) * panel.width);
    });
    for (; mate < panel.count && panel.mate(mate) < end; ++mate)
      positive[mate] = rows[(panel.mate(mate) - begin) * panel.width + mate];
    raise(panel, rows, end - begin, maximum, total);
    exponentiate_rows(panel, rows, end - begin, maximum, total);
  }
  for (int c = 0; c < panel.width; c += kWidth) store(spread + c, log(load(total + c)));
  double losses = 0;
  float* most = softmax + panel.k * op.users;
  float* sums = most + (op.levels - 1) * op.users;
  for (int a = 0; a < panel.count; ++a) {
    losses += static_cast<double>(maximum[a] - positive[a]) + spread[a];
    most[panel.users[a]] = maximum[a];
    sums[panel.users[a]] = total[a];
  }
  return losses;
}

// Sums of one level, for the gradients of its unit vectors: e times the candidate, by anchor and
// range of candidates; and e times the anchor over its own sum of e, by candidate.
struct Slopes {
  std::int64_t ranges;
  float* anchors;     // [ranges, panels * kPanel, D]
  float* candidates;  // [candidates, D]
};

void range_backward(Panel& panel, std::int64_t k, std::int64_t range, const Slopes& slopes,
                    const float* softmax, Scratch& scratch) {
  const LevelInfoNCE& op = panel.op;
  const int dim = static_cast<int>(op.dim);
  const Level &here = panel.plan.levels[k], &next = panel.plan.levels[k + 1];
  const std::int64_t begin = next.count * range / slopes.ranges;
  const std::int64_t end = next.count * (range + 1) / slopes.ranges;
  const std::int64_t places = here.panels() * kPanel;
  float* anchors = slopes.anchors + range * places * dim;
  float* lines = scratch.take(kPanel * dim);
  float* tile = here.kept == nullptr ? scratch.take(kTile * kPanel) : nullptr;
  const float *kept = here.kept, *most = softmax + k * op.users;
  const float* sums = most + (op.levels - 1) * op.users;
  alignas(64) float maximum[kPanel];
  for (std::int64_t p = 0; p < here.panels(); ++p) {
    panel.move_to(k, p);
    for (int a = 0; a < panel.width; ++a) {
      if (a < panel.count) {
        maximum[a] = most[panel.users[a]];
        const Vec scale = set1(1.0f / sums[panel.users[a]]);
        const float* unit = panel.unit(a);
        for_lanes(dim, [&](int i, auto m) {
          store(lines + a * dim + i, load(unit + i, m) * scale, m);
        });
      } else {
        maximum[a] = 0;
        std::fill_n(lines + a * dim, dim, 0.0f);
      }
    }
    float* to = anchors + p * kPanel * dim;
    std::fill_n(to, panel.width * dim, 0.0f);
    if (tile != nullptr) panel.fill_columns();
    Panel::for_tiles(begin, end, [&](std::int64_t row, int items) {
      const float* rows = tile;
      if (tile == nullptr) {
        rows = kept + row * panel.width;
      } else {
        panel.compare(row, items, tile);
        exponentiate_rows(panel, tile, items, maximum, nullptr);
      }
      gemm_nn(items, dim, panel.width, rows, panel.width, lines, dim,
              slopes.candidates + row * dim, dim, p > 0);
      gemm_tn(panel.width, dim, items, rows, panel.width, next.unit + row * dim, dim, to, dim);
    });
    if (kept != nullptr) kept += next.count * panel.width;
  }
}

// From the sums to the gradients of one level of z. below: of the level before, whose candidates
// these are; above: of this one's anchors. Both may be null.
void level_backward(const Plan& plan, std::int64_t k, const Slopes* above, const Slopes* below,
                    const float* softmax, float share, float* d_z) {
  const LevelInfoNCE& op = plan.op;
  const int dim = static_cast<int>(op.dim);
  const Level& level = plan.levels[k];
  const std::int64_t places = level.panels() * kPanel;
  const float* sums = softmax + (op.levels - 1 + k) * op.users;
  const float scale = share * plan.inverse_temperature();
  std::vector<float> slope(op.dim);
  std::int64_t anchor = 0, pair = 0;  // those to come, here and at the level before
  for (std::int64_t row = 0; row < level.count; ++row) {
    const std::int32_t user = level.users[row];
    const float* unit = level.unit + row * dim;
    if (below == nullptr) {
      std::fill(slope.begin(), slope.end(), 0.0f);
    } else {
      copy_row(below->candidates + row * dim, dim, slope.data());
      const Level& before = plan.levels[k - 1];
      if (pair < before.anchors && before.mate[pair] == row) {
        const float* other = before.unit + before.anchor[pair++] * dim;
        for_lanes(dim, [&](int i, auto m) {
          store(&slope[i], load(&slope[i], m) - load(other + i, m), m);
        });
      }
    }
    if (anchor < level.anchors && level.anchor[anchor] == row) {
      const float* other = plan.levels[k + 1].unit + level.mate[anchor] * dim;
      const Vec part = set1(1.0f / sums[user]);
      for_lanes(dim, [&](int i, auto m) {
        Vec total = zero();
        for (std::int64_t range = 0; range < above->ranges; ++range)
          total = total + load(above->anchors + (range * places + anchor) * dim + i, m);
        store(&slope[i], load(&slope[i], m) + fma(total, part, negate(load(other + i, m))), m);
      });
      ++anchor;
    }
    Vec along = zero();
    for_lanes(dim, [&](int i, auto m) {
      along = fma(load(unit + i, m), load(&slope[i], m), along);
    });
    // A vector too short to be normalised was only divided.
    const Vec part = set1(level.norm[row] > kSmallest ? sum(along) : 0.0f);
    const Vec factor = set1(scale / level.norm[row]);
    float* to = d_z + (k * op.users + user) * dim;
    for_lanes(dim, [&](int i, auto m) {
      store(to + i, fnma(part, load(unit + i, m), load(&slope[i], m)) * factor, m);
    });
  }
}

}  // namespace

std::int64_t level_infonce_kept(const LevelInfoNCE& op) {
  if (op.users > kMostKept) return -1;
  // A user is an anchor at no more than half of the levels; columns are padded a level.
  const std::int64_t columns = op.users * (op.levels / 2) + 15 * (op.levels - 1);
  return op.levels * op.users * (op.dim + 1) + op.users * columns;
}

double level_infonce_forward(const LevelInfoNCE& op, float* softmax, float* kept) {
  Scratch scratch;
  const Plan plan(op, scratch, kept, false);
  std::fill_n(softmax, 2 * (op.levels - 1) * op.users, 0.0f);
  std::vector<double> losses;
  std::int64_t panels = 0;
  for (const Level& level : plan.levels) panels += level.panels();
  losses.resize(panels);
  plan.for_panels([&](std::int64_t task, std::int64_t k, std::int64_t p) {
    Scratch local;
    Panel panel(plan, local);
    panel.move_to(k, p);
    panel.fill_columns();
    const std::int64_t candidates = plan.levels[k + 1].count;
    float* rows = plan.levels[k].kept != nullptr
                      ? plan.levels[k].kept + p * kPanel * candidates  // all before are full
                      : local.take(std::min(candidates, kMostKept) * kPanel);
    losses[task] = panel_forward(panel, rows, softmax);
  });
  const double total = std::accumulate(losses.begin(), losses.end(), 0.0);
  return total / static_cast<double>(std::max<std::int64_t>(plan.pairs, 1));
}

void level_infonce_backward(const LevelInfoNCE& op, const float* softmax, const float* kept,
                            float grad, float* d_z) {
  Scratch scratch;
  const Plan plan(op, scratch, const_cast<float*>(kept), kept != nullptr);
  const float share = grad / static_cast<float>(std::max<std::int64_t>(plan.pairs, 1));
  std::vector<Slopes> slopes(op.levels - 1);
  std::vector<std::pair<std::int64_t, std::int64_t>> tasks;
  for (std::int64_t k = 0; k + 1 < op.levels; ++k) {
    if (plan.levels[k].anchors == 0) continue;
    const std::int64_t candidates = plan.levels[k + 1].count;
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
    range_backward(panel, k, range, slopes[k], softmax, local);
  });
  const auto of = [&](std::int64_t k) -> const Slopes* {
    const bool any = k >= 0 && k + 1 < op.levels && plan.levels[k].anchors > 0;
    return any ? &slopes[k] : nullptr;
  };
  parallel_for(op.levels, [&](std::int64_t k) {
    level_backward(plan, k, of(k), of(k - 1), softmax, share, d_z);
  });
}

}  // namespace adarec
