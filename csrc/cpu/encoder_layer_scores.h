// What a query row of attention does with its scores: dropout of the contract and the softmax.
#pragma once

#include <cmath>

#include "encoder_layer_tile.h"
#include "philox.h"
#include "vec.h"

namespace adarec::encoder {

inline bool drops_scores(const EncoderLayer& op) { return op.seeded && op.attention_dropout > 0; }

inline float score_scale(const Sizes& s) { return 1.0f / std::sqrt(static_cast<float>(s.head)); }

// 0 or 1/(1-p) for probabilities, all levels of an item from one Philox call.
class ScoreKeep {
 public:
  explicit ScoreKeep(const EncoderLayer& op)
      : philox_(op.seed, op.stream + kSiteAttention, std::int64_t{op.heads} << 16),
        dropout_(op.attention_dropout), scale_(set1(dropout_.scale())), heads_(op.heads) {}

  // Query position i of an item and its first `keys` keys: whole vectors from keep + level * stride
  // on.
  void operator()(const Item& item, int i, int keys, int head, float* keep,
                  int64_t stride) const {
    const int64_t base = ((item.begin + i) * heads_ + head) << 16;
    int j = 0;
    for (; j + kWidth < keys; j += kDrawn * kWidth)
      draw<kDrawn>(item, base + j, keep + j, stride);
    if (j < keys) draw<1>(item, base + j, keep + j, stride);
  }

 private:
  template <int N>
  void draw(const Item& item, int64_t element, float* keep, int64_t stride) const {
    Words words[N];
    philox_.words(element, item.level / kLanes, words);
    for (int level = 0; level < item.levels; ++level)
      for (int v = 0; v < N; ++v)
        store(keep + level * stride + v * kWidth,
              adarec::keep(dropout_.kept(words[v].word[item.level % kLanes + level]), scale_));
  }

  Philox philox_;
  Dropout dropout_;
  Vec scale_;
  int64_t heads_;
};

// The first `count` of a row's scores become probabilities in place, the rest of its ld columns,
// whole vectors, zero.
inline void softmax_row(int count, int ld, float scale, float* row) {
  const int whole = count / kWidth * kWidth;
  const Mask tail = first(count - whole);
  Vec top = select(tail, load(row + whole, tail), set1(-INFINITY));
  for (int j = 0; j < whole; j += kWidth) top = max(top, load(row + j));
  const Vec slope = set1(scale), shift = set1(-scale * largest(top));
  Vec total = zero();
  for (int j = 0; j < whole; j += kWidth) {
    const Vec e = exp(fma(load(row + j), slope, shift));
    store(row + j, e);
    total = total + e;
  }
  const Vec last = keep(tail, exp(fma(load(row + whole, tail), slope, shift)));
  const Vec inverse = set1(1.0f / sum(total + last));
  for (int j = 0; j < whole; j += kWidth) store(row + j, load(row + j) * inverse);
  if (whole < ld) store(row + whole, last * inverse);
  for (int j = whole + kWidth; j < ld; j += kWidth) store(row + j, zero());
}

}  // namespace adarec::encoder
