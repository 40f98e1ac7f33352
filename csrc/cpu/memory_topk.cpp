// What a memory adds to a ranking. An item that gains nothing is among the k best only if it is
// among them without the memory, so the k best of that ranking and the items that the history leads
// to are all that must be looked at: a few hundred instead of the catalogue.
#include "memory_topk.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "parallel.h"
#include "topk_list.h"
#include "vec.h"

namespace adarec {
namespace {

using namespace topk;

// Sums by item, all of them zero between two users. It is as long as the catalogue, the list of
// items that were touched is as long as the history's rows.
struct Sums {
  std::vector<float> of;
  std::vector<std::uint32_t> touched;

  void add(std::uint32_t item, float weight) {
    // A weight of zero adds nothing, and would put an item on the list again and again.
    if (weight == 0.0f) return;
    if (of[item] == 0.0f) touched.push_back(item);
    of[item] += weight;
  }
};

float dot(const float* a, const float* b, std::int64_t dim) {
  Vec total = zero();
  std::int64_t d = 0;
  for (; d + kWidth <= dim; d += kWidth) total = fma(load(a + d), load(b + d), total);
  if (d < dim) {
    const Mask m = first(static_cast<int>(dim - d));
    total = fma(load(a + d, m), load(b + d, m), total);
  }
  return sum(total);
}

void rank_user(const TopK& op, const Memory& memory, std::int64_t user, Sums& sums) {
  const std::int64_t begin = memory.offsets[user], end = memory.offsets[user + 1];
  // The same product of powers whoever asks; the sum runs from the oldest item on.
  for (std::int64_t t = begin; t < end; ++t) {
    const float fading = std::pow(memory.decay, static_cast<float>(end - 1 - t));
    const std::int64_t item = memory.values[t];
    for (std::int64_t e = memory.rows[item]; e < memory.rows[item + 1]; ++e)
      sums.add(static_cast<std::uint32_t>(memory.neighbours[e]), fading * memory.weights[e]);
  }
  if (sums.touched.empty()) return;
  Scratch scratch;
  float* scores = op.scores + user * op.k;
  std::int64_t* best = op.best + user * op.k;
  const std::int64_t most = op.k + static_cast<std::int64_t>(sums.touched.size());
  std::uint64_t* keys = scratch.take<std::uint64_t>(most);
  std::int64_t count = 0;
  // A number below zero marks what is not to be looked at again: what was seen, and the k best.
  for (std::int64_t s = op.seen_offsets[user]; s < op.seen_offsets[user + 1]; ++s)
    sums.of[op.seen[s]] = -1.0f;
  const auto gain = [&](float sum) { return memory.alpha * std::log1p(memory.gamma * sum); };
  for (std::int64_t i = 0; i < op.k; ++i) {
    float& sum = sums.of[best[i]];
    const float score = sum > 0.0f ? scores[i] + gain(sum) : scores[i];
    keys[count++] = key_of(rising(score), static_cast<std::uint32_t>(best[i]));
    if (sum > 0.0f) sum = -1.0f;
  }
  const float* vector = op.user_vectors + user * op.dim;
  for (const std::uint32_t item : sums.touched) {
    if (sums.of[item] > 0.0f) {
      const float score = dot(vector, op.item_vectors + item * op.dim, op.dim);
      keys[count++] = key_of(rising(score + gain(sums.of[item])), item);
    }
    sums.of[item] = 0.0f;
  }
  for (std::int64_t s = op.seen_offsets[user]; s < op.seen_offsets[user + 1]; ++s)
    sums.of[op.seen[s]] = 0.0f;
  sums.touched.clear();
  write_ranking(op, user, keys, count);
}

}  // namespace

void add_memory(const TopK& op, const Memory& memory) {
  constexpr std::int64_t kUsers = 16;  // a task
  parallel_for((op.users + kUsers - 1) / kUsers, [&](std::int64_t task) {
    thread_local Sums sums;
    if (sums.of.size() < static_cast<std::size_t>(op.items + 1)) sums.of.resize(op.items + 1);
    const std::int64_t last = std::min(op.users, (task + 1) * kUsers);
    for (std::int64_t user = task * kUsers; user < last; ++user)
      rank_user(op, memory, user, sums);
  });
}

}  // namespace adarec
