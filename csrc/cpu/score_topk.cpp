// The k best items of every user, over tiles of the catalogue: no [users, items] matrix.
//
// A tile of scores is [items, users], as in linear_cross_entropy.cpp, so that neither operand is
// packed again. Scores that may still be among the k best go to the user's list; when it is full
// it is cut to the k best, whose last one becomes the bar for the scores to come.
#include <algorithm>
#include <limits>

#include "catalogue.h"
#include "gemm.h"
#include "parallel.h"
#include "topk_list.h"
#include "vec.h"

namespace adarec {
namespace {

using namespace topk;

constexpr int kPanel = 64;           // users whose scores stand side by side in memory
constexpr int kPanels = 4;           // panels that share a tile of items while it is in cache
constexpr int kTile = 96;            // items

// A panel's users and what is known of their k best.
struct Panel {
  std::int64_t first;   // user
  int users, padded;    // padded to whole vectors
  float* columns;       // [dim, kPanel]
  float* bar;           // [kPanel]: what a score must exceed; NaN lets every score pass
  List* lists;          // [users]
  std::int64_t* seen;   // the users' seen items, each user's in rising order
  std::int64_t* cursor; // [users]: the first of them that was not passed yet
};

Panel make_panel(const TopK& op, std::int64_t first, std::int64_t room, Scratch& scratch) {
  Panel p;
  p.first = first;
  p.users = static_cast<int>(std::min<std::int64_t>(kPanel, op.users - first));
  p.padded = vectors(p.users) * kWidth;
  p.columns = scratch.zeros(op.dim * kPanel);
  p.bar = scratch.take(kPanel);
  p.lists = scratch.take<List>(p.users);
  const std::int64_t* offsets = op.seen_offsets + first;
  const std::int64_t begin = offsets[0], end = offsets[p.users];
  p.seen = scratch.take<std::int64_t>(end - begin);
  p.cursor = scratch.take<std::int64_t>(p.users);
  std::copy(op.seen + begin, op.seen + end, p.seen);
  for (int u = 0; u < p.users; ++u) {
    std::sort(p.seen + (offsets[u] - begin), p.seen + (offsets[u + 1] - begin));
    p.cursor[u] = offsets[u] - begin;
    p.lists[u] = {scratch.zeros<std::uint32_t>(room), scratch.take<std::uint32_t>(room), 0};
    const float* user = op.user_vectors + (first + u) * op.dim;
    for (std::int64_t d = 0; d < op.dim; ++d) p.columns[d * kPanel + u] = user[d];
  }
  std::fill_n(p.bar, p.users, std::numeric_limits<float>::quiet_NaN());
  std::fill(p.bar + p.users, p.bar + kPanel, std::numeric_limits<float>::infinity());
  return p;
}

// Gives the seen items of a tile their score.
void mask_seen(const TopK& op, const Panel& p, std::int64_t item, int items, float* scores) {
  for (int u = 0; u < p.users; ++u) {
    const std::int64_t end = op.seen_offsets[p.first + u + 1] - op.seen_offsets[p.first];
    std::int64_t& at = p.cursor[u];
    for (; at < end && p.seen[at] <= item + items; ++at)
      if (p.seen[at] > item) scores[(p.seen[at] - item - 1) * kPanel + u] = op.seen_score;
  }
}

void collect(const TopK& op, const Panel& p, std::int64_t room, std::int64_t item, int items,
             const float* scores) {
  const std::uint32_t all = (1u << kWidth) - 1;
  for (int i = 0; i < items; ++i) {
    const float* line = scores + i * kPanel;
    for (int v = 0; v < p.padded; v += kWidth) {
      // Not "greater than": a NaN, in the score or as the bar, must pass.
      std::uint32_t left = all & ~bits(at_most(load(line + v), load(p.bar + v)));
      for (; left != 0; left &= left - 1) {
        const int u = v + __builtin_ctz(left);
        if (u >= p.users) break;
        List& list = p.lists[u];
        list.scores[list.size] = rising(line[u]);
        list.items[list.size++] = static_cast<std::uint32_t>(item + i + 1);
        if (list.size == room) p.bar[u] = list.cut(op.k);
      }
    }
  }
}

void write_rankings(const TopK& op, const Panel& p) {
  Scratch scratch;
  std::uint64_t* keys = scratch.take<std::uint64_t>(op.k);
  for (int u = 0; u < p.users; ++u) {
    List& list = p.lists[u];
    if (list.size > op.k) list.cut(op.k);
    for (std::int64_t i = 0; i < op.k; ++i) keys[i] = key_of(list.scores[i], list.items[i]);
    write_ranking(op, p.first + u, keys, op.k);
  }
}

void rank_users(const TopK& op, std::int64_t first, std::int64_t last) {
  Scratch scratch;
  const std::int64_t room = room_for(op);
  Panel panels[kPanels];
  int count = 0;
  for (std::int64_t user = first; user < last; user += kPanel)
    panels[count++] = make_panel(op, user, room, scratch);
  float* scores = scratch.take(kTile * kPanel);
  for (std::int64_t item = 0; item < op.items; item += kTile) {
    const int items = static_cast<int>(std::min<std::int64_t>(kTile, op.items - item));
    for (int i = 0; i < count; ++i) {
      const Panel& p = panels[i];
      gemm_nn(items, p.padded, static_cast<int>(op.dim), op.item_vectors + (item + 1) * op.dim,
              op.dim, p.columns, kPanel, scores, kPanel, 0);
      mask_seen(op, p, item, items, scores);
      collect(op, p, room, item, items, scores);
    }
  }
  for (int i = 0; i < count; ++i) write_rankings(op, panels[i]);
}

}  // namespace

void score_topk(const TopK& op) {
  if (op.users <= kFewUsers) return score_topk_few(op);
  // Several panels a task where there are users enough to keep every thread busy all the same.
  const std::int64_t size = kPanel * std::clamp<std::int64_t>(op.users / (8 * kPanel), 1, kPanels);
  parallel_for((op.users + size - 1) / size, [&](std::int64_t task) {
    rank_users(op, task * size, std::min(op.users, (task + 1) * size));
  });
}

}  // namespace adarec
