// The candidates for the k best items of a user.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>

#include "catalogue.h"
#include "vec.h"

namespace adarec::topk {

constexpr std::int64_t kSlack = 64;  // room behind the k best, at least

// A score as a number that rises with it; -0 equals 0, NaN is above all, as in torch.sort.
inline std::uint32_t rising(float score) {
  score += 0.0f;
  std::uint32_t word;
  std::memcpy(&word, &score, sizeof word);
  if (score != score) word = 0x7fffffffu;
  return word >> 31 ? ~word : word | 0x80000000u;
}

inline float score_of(std::uint32_t rising) {
  const std::uint32_t word = rising >> 31 ? rising & 0x7fffffffu : ~rising;
  float score;
  std::memcpy(&score, &word, sizeof score);
  return score;
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

// Elements that a list takes: whole vectors, and never full where it could hold the catalogue.
inline std::int64_t room_for(const TopK& op) {
  const std::int64_t wanted = std::min(op.items + 1, op.k + std::max(op.k, kSlack));
  return (wanted + kWidth - 1) / kWidth * kWidth;
}

// A score and its item as a number that rises with the score and falls with the item.
inline std::uint64_t key_of(std::uint32_t score, std::uint32_t item) {
  return static_cast<std::uint64_t>(score) << 32 | (0xffffffffu - item);
}

// Writes the k greatest of `count` keys as the ranking of a user.
inline void write_ranking(const TopK& op, std::int64_t user, std::uint64_t* keys,
                          std::int64_t count) {
  std::partial_sort(keys, keys + op.k, keys + count, std::greater<>());
  for (std::int64_t i = 0; i < op.k; ++i) {
    op.scores[user * op.k + i] = score_of(static_cast<std::uint32_t>(keys[i] >> 32));
    op.best[user * op.k + i] = 0xffffffffu - static_cast<std::uint32_t>(keys[i]);
  }
}

}  // namespace adarec::topk
