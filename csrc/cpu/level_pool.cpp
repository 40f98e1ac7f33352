#include "level_pool.h"

#include <algorithm>

#include "parallel.h"
#include "vec.h"

namespace adarec {
namespace {

// body(level, sequence, first token, tokens) for all that exists, in chunks of sequences.
template <typename Body>
void for_sequences(const LevelPool& op, Body&& body) {
  constexpr std::int64_t kChunk = 32;
  const std::int64_t chunks = (op.sequences + kChunk - 1) / kChunk;
  parallel_for(op.levels * chunks, [&](std::int64_t i) {
    const std::int64_t k = i / chunks, begin = i % chunks * kChunk;
    for (std::int64_t s = begin; s < std::min(begin + kChunk, op.sequences); ++s)
      if (op.depth == nullptr || op.depth[s] >= k)
        body(k, s, op.offsets[s], op.offsets[s + 1] - op.offsets[s]);
  });
}

}  // namespace

void level_pool_forward(const LevelPool& op, const float* x, float* pooled) {
  const std::int64_t size = op.size;
  for_sequences(op, [&](std::int64_t k, std::int64_t s, std::int64_t first, std::int64_t length) {
    const float* from = x + (k * op.tokens + first) * size;
    float* to = pooled + (op.causal ? k * op.tokens + first : k * op.sequences + s) * size;
    const Vec share = set1(1.0f / static_cast<float>(std::max<std::int64_t>(length, 1)));
    for_lanes(op.size, [&](int i, auto m) {
      Vec total = zero();
      for (std::int64_t t = 0; t < length; ++t) {
        total = total + load(from + t * size + i, m);
        if (op.causal) store(to + t * size + i, total / set1(static_cast<float>(t + 1)), m);
      }
      if (!op.causal) store(to + i, total * share, m);
    });
  });
}

void level_pool_backward(const LevelPool& op, const float* grad, float* grad_x) {
  const std::int64_t size = op.size;
  for_sequences(op, [&](std::int64_t k, std::int64_t s, std::int64_t first, std::int64_t length) {
    float* to = grad_x + (k * op.tokens + first) * size;
    const float* from = grad + (op.causal ? k * op.tokens + first : k * op.sequences + s) * size;
    const Vec share = set1(1.0f / static_cast<float>(std::max<std::int64_t>(length, 1)));
    for_lanes(op.size, [&](int i, auto m) {
      // A token is in the running mean of every later one.
      Vec total = op.causal ? zero() : load(from + i, m) * share;
      for (std::int64_t t = length - 1; t >= 0; --t) {
        if (op.causal)
          total = total + load(from + t * size + i, m) / set1(static_cast<float>(t + 1));
        store(to + t * size + i, total, m);
      }
    });
  });
}

}  // namespace adarec
