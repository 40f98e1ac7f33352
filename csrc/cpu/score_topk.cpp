// The k best items of every user, over tiles of the catalogue: no [users, items] matrix.
//
// A tile of scores is [items, users], as in linear_cross_entropy.cpp, so that neither operand is
// packed again. Scores that may still be among the k best go to the user's list; when it is full
// it is cut to the k best, whose last one becomes the bar for the scores to come.
#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>

#include "catalogue.h"
#include "gemm.h"
#include "parallel.h"
#include "vec.h"

namespace adarec {
namespace {

constexpr int kPanel = 64;           // users whose scores stand side by side in memory
constexpr int kPanels = 4;           // panels that share a tile of items while it is in cache
constexpr int kTile = 96;            // items
constexpr std::int64_t kSlack = 64;  // room behind the k best, at least

// A score as a number that rises with it; -0 equals 0, NaN is above all, as in torch.sort.
std::uint32_t rising(float score) {
  score += 0.0f;
  std::uint32_t word;
  std::memcpy(&word, &score, sizeof word);
  if (score != score) word = 0x7fffffffu;
  return word >> 31 ? ~word : word | 0x80000000u;
}

float score_of(std::uint32_t rising) {
  const std::uint32_t word = rising >> 31 ? rising & 0x7fffffffu : ~rising;
  float score;
  std::memcpy(&score, &word, sizeof score);
  return score;
}

Mask at_most(Vec a, Vec b) {
#if ADAREC_AVX512
  return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ);
#else
  return _mm256_cmp_ps(a, b, _CMP_LE_OQ);
#endif
}

// The candidates of one user, in the order of their items.
struct List {
  std::uint32_t* scores;  // rising(); 0, which no score is, behind the last one
  std::uint32_t* items;
  std::int64_t size;

  // The k-th greatest score, found bit by bit: counting is all vectors.
  std::uint32_t kth(std::int64_t k) const {
    std::uint32_t found = 0;
    for (std::uint32_t bit = 1u << 31; bit != 0; bit >>= 1) {
      const UVec least = set1u(found | bit);
      std::int64_t count = 0;
      for (std::int64_t i = 0; i < size; i += kWidth) {
        UVec some;
        std::memcpy(&some, scores + i, sizeof some);
        count += __builtin_popcount(bits(at_least(some, least)));
      }
      if (count >= k) found |= bit;
    }
    return found;
  }

  // Keeps the k best, of equal ones the first, in their order; returns the last one's score.
  float cut(std::int64_t k) {
    const std::uint32_t least = kth(k);
    std::int64_t above = 0;
    for (std::int64_t i = 0; i < size; ++i) above += scores[i] > least;
    std::int64_t ties = k - above, kept = 0;
    for (std::int64_t i = 0; i < size; ++i) {
      const std::uint32_t score = scores[i];
      const bool tie = score == least && ties > 0;
      scores[kept] = score;
      items[kept] = items[i];
      kept += tie || score > least;
      ties -= tie;
    }
    std::fill(scores + kept, scores + size, 0u);
    size = kept;
    return score_of(least);
  }
};

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

void write_ranking(const TopK& op, const Panel& p) {
  Scratch scratch;
  std::uint64_t* order = scratch.take<std::uint64_t>(op.k);
  for (int u = 0; u < p.users; ++u) {
    List& list = p.lists[u];
    if (list.size > op.k) list.cut(op.k);
    for (std::int64_t i = 0; i < op.k; ++i)
      order[i] = static_cast<std::uint64_t>(list.scores[i]) << 32 | (0xffffffffu - list.items[i]);
    std::sort(order, order + op.k, std::greater<>());
    for (std::int64_t i = 0; i < op.k; ++i) {
      op.scores[(p.first + u) * op.k + i] = score_of(static_cast<std::uint32_t>(order[i] >> 32));
      op.best[(p.first + u) * op.k + i] = 0xffffffffu - static_cast<std::uint32_t>(order[i]);
    }
  }
}

void rank_users(const TopK& op, std::int64_t first, std::int64_t last) {
  Scratch scratch;
  // A list longer than the catalogue is never full and never cut.
  const std::int64_t wanted = std::min(op.items + 1, op.k + std::max(op.k, kSlack));
  const std::int64_t room = (wanted + kWidth - 1) / kWidth * kWidth;
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
  for (int i = 0; i < count; ++i) write_ranking(op, panels[i]);
}

}  // namespace

void score_topk(const TopK& op) {
  // Several panels a task where there are users enough to keep every thread busy all the same.
  const std::int64_t size = kPanel * std::clamp<std::int64_t>(op.users / (8 * kPanel), 1, kPanels);
  parallel_for((op.users + size - 1) / size, [&](std::int64_t task) {
    rank_users(op, task * size, std::min(op.users, (task + 1) * size));
  });
}

}  // namespace adarec
