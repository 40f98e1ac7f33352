// The expert's own passes, over levels that live no longer than the call: what other ops would make
// of them stays in this one, and no gradient of every token is written to be added to another.
#include "mlp_expert_pooled.h"

#include <algorithm>

#include "parallel.h"
#include "rows.h"
#include "vec.h"

namespace adarec {
namespace {

// Calls body(level, sequence) for all that exist, in chunks of sequences.
template <typename Body>
void for_sequences(const MLPExpert& op, Body&& body) {
  constexpr std::int64_t kChunk = 32;
  const std::int64_t chunks = (op.sequences + kChunk - 1) / kChunk;
  parallel_for(op.levels * chunks, [&](std::int64_t i) {
    const std::int64_t k = i / chunks, begin = i % chunks * kChunk;
    for (std::int64_t s = begin; s < std::min(begin + kChunk, op.sequences); ++s)
      if (op.depth[s] >= k) body(k, s);
  });
}

}  // namespace

void mlp_expert_pooled_forward(const MLPExpertPooled& op, float* levels, float* last,
                               float* pooled, float* content, float* kept) {
  const MLPExpert& e = op.expert;
  mlp_expert_forward(e, levels, kept);
  level_pool_forward(op.pool(), levels, pooled);
  for_sequences(e, [&](std::int64_t k, std::int64_t s) {
    copy_row(levels + (k * e.tokens + e.offsets[s + 1] - 1) * e.size, e.size,
             last + (k * e.sequences + s) * e.size);
  });
  if (op.content) level_pool_forward(op.pool(), e.x, content);
}

void mlp_expert_pooled_backward(const MLPExpertPooled& op, float* levels, const float* d_last,
                                const float* d_pooled, const float* d_content, const float* kept,
                                const MLPExpertGradients& out) {
  const MLPExpert& e = op.expert;
  level_pool_backward(op.pool(), d_pooled, levels);
  for_sequences(e, [&](std::int64_t k, std::int64_t s) {
    const float* from = d_last + (k * e.sequences + s) * e.size;
    float* to = levels + (k * e.tokens + e.offsets[s + 1] - 1) * e.size;
    for_lanes(e.size, [&](int i, auto m) { store(to + i, load(to + i, m) + load(from + i, m), m); });
  });
  mlp_expert_backward(e, levels, kept, out);
  if (!op.content) return;
  for_sequences(e, [&](std::int64_t k, std::int64_t s) {
    const std::int64_t first = e.offsets[s], length = e.offsets[s + 1] - first;
    const Vec share = set1(1.0f / static_cast<float>(length));
    const float* from = d_content + (k * e.sequences + s) * e.size;
    float* to = out.x + (k * e.tokens + first) * e.size;
    for_lanes(e.size, [&](int i, auto m) {
      const Vec part = load(from + i, m) * share;
      for (std::int64_t t = 0; t < length; ++t)
        store(to + t * e.size + i, load(to + t * e.size + i, m) + part, m);
    });
  });
}

}  // namespace adarec
