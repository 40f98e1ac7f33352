// What a memory adds to a ranking: alpha log(1 + gamma S), nothing to most items. By a screen it is
// added to its bounds, and only items that can be among the k best are scored. Without one the k best
// of the ranking without the memory come first: an item that gains nothing is among the k best only
// if it is one of those, so that beside them only the items are scored that the history leads to.
#include "memory_topk.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.h"
#include "topk_list.h"
#include "topk_scores.h"
#include "vec.h"

namespace adarec {
namespace {

using namespace topk;

// What a user's scores gain, by item: zero but for what the history leads to, and of nobody all zero.
struct Gains {
  std::vector<float> of;               // [V + 1], and what a screen's last block reads behind it
  std::vector<std::uint32_t> touched;  // the items that gain, in the order in which they came up

  void make_room(std::int64_t items) {
    const auto size = static_cast<std::size_t>(items + 1 + kWidth);
    if (of.size() < size) of.resize(size);
  }

  void read(const Memory& memory, std::int64_t user) {
    const std::int64_t begin = memory.offsets[user], end = memory.offsets[user + 1];
    // The same product of powers whoever asks; the sum runs from the oldest item on.
    for (std::int64_t t = begin; t < end; ++t) {
      const float fading = std::pow(memory.decay, static_cast<float>(end - 1 - t));
      const std::int64_t item = memory.values[t];
      for (std::int64_t e = memory.rows[item]; e < memory.rows[item + 1]; ++e)
        add(static_cast<std::uint32_t>(memory.neighbours[e]), fading * memory.weights[e]);
    }
    for (const std::uint32_t item : touched)
      of[item] = memory.alpha * std::log1p(memory.gamma * of[item]);
  }

  void clear() {
    for (const std::uint32_t item : touched) of[item] = 0.0f;
    touched.clear();
  }

 private:
  void add(std::uint32_t item, float weight) {
    // A weight of zero adds nothing, and would put an item on the list again and again.
    if (weight == 0.0f) return;
    if (of[item] == 0.0f) touched.push_back(item);
    of[item] += weight;
  }
};

// Items' keys with what they gain, `count` of them scored as score_topk scores them.
void score(const TopK& op, std::int64_t user, const Gains& gains, const std::uint32_t* items,
           std::int64_t count, std::uint64_t* keys) {
  constexpr std::int64_t kTogether = kAlone * kWidth, kAhead = 16;  // rows; on their way
  Scratch scratch;
  float* rows = scratch.take((kTogether + 1) * op.dim);
  float* scores = scratch.take(kTogether);
  const auto row = [&](std::int64_t i) { return op.item_vectors + items[i] * op.dim; };
  const auto ask = [&](std::int64_t i) {
    for (std::int64_t d = 0; d < op.dim && i < count; d += 16) prefetch(row(i) + d);
  };
  for (std::int64_t i = 0; i < kAhead; ++i) ask(i);
  for (std::int64_t begin = 0; begin < count; begin += kTogether) {
    const std::int64_t some = std::min(kTogether, count - begin);
    for (std::int64_t i = 0; i < some; ++i) {
      ask(begin + i + kAhead);
      std::copy_n(row(begin + i), op.dim, rows + (i + 1) * op.dim);
    }
    TopK one = op;
    one.users = 1;
    one.items = some;
    one.user_vectors += user * op.dim;
    one.item_vectors = rows;
    score_items(one, 0, static_cast<int>(some), scores, 0);
    for (std::int64_t i = 0; i < some; ++i) {
      const std::uint32_t item = items[begin + i];
      keys[begin + i] = key_of(rising(scores[i] + gains.of[item]), item);
    }
  }
}

// op.scores and op.best hold the user's ranking without the memory.
void add_gains(const TopK& op, std::int64_t user, Gains& gains) {
  if (gains.touched.empty()) return;
  Scratch scratch;
  const float* scores = op.scores + user * op.k;
  const std::int64_t* best = op.best + user * op.k;
  const std::int64_t most = op.k + static_cast<std::int64_t>(gains.touched.size());
  std::uint64_t* keys = scratch.take<std::uint64_t>(most);
  for (std::int64_t i = 0; i < op.k; ++i) {
    // What was seen gains nothing: it may be among the k best where there is no other.
    const float gain = scores[i] > op.seen_score ? gains.of[best[i]] : 0.0f;
    keys[i] = key_of(rising(scores[i] + gain), static_cast<std::uint32_t>(best[i]));
  }
  // Neither what was seen nor the k best are scored again. Their gains are not asked for any more.
  for (std::int64_t s = op.seen_offsets[user]; s < op.seen_offsets[user + 1]; ++s)
    gains.of[op.seen[s]] = 0.0f;
  for (std::int64_t i = 0; i < op.k; ++i) gains.of[best[i]] = 0.0f;
  std::uint32_t* others = scratch.take<std::uint32_t>(most);
  std::int64_t count = 0;
  for (const std::uint32_t item : gains.touched)
    if (gains.of[item] != 0.0f) others[count++] = item;
  score(op, user, gains, others, count, keys + op.k);
  write_ranking(op, user, keys, op.k + count);
}

}  // namespace

void memory_topk(const TopK& op, const Memory& memory, const Screen* screen) {
  const bool screened = screen != nullptr && op.users <= kFewUsers;
  if (!screened) score_topk(op);
  const std::int64_t users = screened ? 1 : 16;  // a task
  parallel_for((op.users + users - 1) / users, [&](std::int64_t task) {
    thread_local Gains gains;
    gains.make_room(op.items);
    const std::int64_t last = std::min(op.users, (task + 1) * users);
    for (std::int64_t user = task * users; user < last; ++user) {
      gains.read(memory, user);
      if (!screened || !screen->rank(op, user, gains.of.data())) {
        if (screened) score_topk_few(of_user(op, user));
        add_gains(op, user, gains);
      }
      gains.clear();
    }
  });
}

}  // namespace adarec
