// Rows are gathered, normalised and dropped out one by one. The backward pass makes a row again (its
// three reads are cheaper than keeping it) and takes the gradient through dropout and LayerNorm;
// then columns, a line of memory at a time, are added to the table's rows in the order of tokens:
// every sum has one owner, whatever items repeat.
#include "embedding.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "parallel.h"
#include "philox.h"
#include "rows.h"
#include "vec.h"

namespace adarec {
namespace {

constexpr std::int64_t kSequences = 64;  // of a task
constexpr std::uint32_t kStream = 2;     // rng.STREAM_EMBEDDING
constexpr int kLine = 16;                // floats

std::int64_t chunks(const Embedding& op) { return (op.sequences + kSequences - 1) / kSequences; }

// Calls body(token, position) for the tokens of a chunk of sequences.
template <typename Body>
void for_tokens(const Embedding& op, std::int64_t first, std::int64_t sequences, Body&& body) {
  const std::int64_t end = std::min(first + sequences, op.sequences);
  for (std::int64_t s = first; s < end; ++s)
    for (std::int64_t token = op.offsets[s], last = op.offsets[s + 1] - 1; token <= last; ++token)
      body(token, last - token);
}

// item + position, centred and over its deviation, into to [D]; returns 1 / deviation.
float normalised(const Embedding& op, std::int64_t token, std::int64_t position, float* to) {
  const int size = static_cast<int>(op.size);
  const float* item = op.table + op.item_ids[token] * op.size;
  const float* place = op.positions + position * op.size;
  const float share = 1.0f / static_cast<float>(op.size);
  Vec total = zero();
  for_lanes(size, [&](int i, auto m) {
    const Vec x = load(item + i, m) + load(place + i, m);
    total = total + x;
    store(to + i, x, m);
  });
  const Vec mean = set1(sum(total) * share);
  Vec squares = zero();
  for_lanes(size, [&](int i, Mask m) {
    const Vec x = keep(m, load(to + i, m) - mean);
    squares = fma(x, x, squares);
  });
  const float scale = 1.0f / std::sqrt(sum(squares) * share + op.eps);
  const Vec factor = set1(scale);
  for_lanes(size, [&](int i, auto m) { store(to + i, (load(to + i, m) - mean) * factor, m); });
  return scale;
}

// A token's bits of dropout, kWidth elements a LaneBits.
LaneBits* bits_of(const Embedding& op, float* kept, std::int64_t token) {
  return reinterpret_cast<LaneBits*>(kept + token * embedding_kept(op));
}

// What dropout does: which elements of a row it leaves, drawn or read back.
class Drops {
 public:
  explicit Drops(const Embedding& op)
      : op_(op), philox_(op.seed, kStream, op.size), dropout_(op.seeded ? op.dropout : 0.0) {}

  // Of the kWidth elements from `at` on of a token's row.
  Mask draw(std::int64_t token, int at) const {
    UVec word[1];
    philox_.first(static_cast<std::uint64_t>(token * op_.size + at), 0, word);
    return dropout_.kept(word[0]);
  }
  Vec scale() const { return set1(dropout_.scale()); }

 private:
  const Embedding& op_;
  Philox philox_;
  Dropout dropout_;
};

}  // namespace

std::int64_t embedding_kept(const Embedding& op) { return (op.size + 31) / 32; }

void embedding_forward(const Embedding& op, float* x, float* kept) {
  const int size = static_cast<int>(op.size);
  const Drops drops(op);
  parallel_for(chunks(op), [&](std::int64_t chunk) {
    for_tokens(op, chunk * kSequences, kSequences, [&](std::int64_t token, std::int64_t position) {
      float* row = x + token * op.size;
      normalised(op, token, position, row);
      LaneBits* left = nullptr;
      if (kept != nullptr) {
        left = bits_of(op, kept, token);
        std::memset(left, 0, sizeof(float) * embedding_kept(op));  // a tail has fewer bits
      }
      for_lanes(size, [&](int i, auto m) {
        Vec y = fma(load(row + i, m), load(op.norm_w + i, m), load(op.norm_b + i, m));
        if (op.seeded) {
          const Mask stays = drops.draw(token, i);
          if (left != nullptr) put_bits(left, i / kWidth, stays);
          y = adarec::keep(stays, y * drops.scale());
        }
        store(row + i, y, m);
      });
    });
  });
  const std::int64_t end = op.offsets[op.sequences];
  std::fill_n(x + end * op.size, (op.tokens - end) * op.size, 0.0f);
}

void embedding_backward(const Embedding& op, const float* grad, const float* kept,
                        const EmbeddingGradients& out) {
  const int size = static_cast<int>(op.size);
  const Drops drops(op);
  Scratch scratch;
  float* slopes = scratch.take(op.tokens * op.size);  // of item + position
  float* sums = scratch.zeros(chunks(op) * 2 * op.size);
  parallel_for(chunks(op), [&](std::int64_t chunk) {
    Scratch local;
    float* row = local.take(op.size);
    float *d_weight = sums + chunk * 2 * op.size, *d_bias = d_weight + op.size;
    for_tokens(op, chunk * kSequences, kSequences, [&](std::int64_t token, std::int64_t position) {
      const Vec scale = set1(normalised(op, token, position, row));
      const float* from = grad + token * op.size;
      float* slope = slopes + token * op.size;
      const LaneBits* left =
          kept == nullptr ? nullptr : bits_of(op, const_cast<float*>(kept), token);
      Vec plain = zero(), along = zero();
      for_lanes(size, [&](int i, auto m) {
        Vec g = load(from + i, m);
        if (op.seeded) {
          const Mask stays = left == nullptr ? drops.draw(token, i) : get_bits(left, i / kWidth);
          g = adarec::keep(stays, g * drops.scale());
        }
        const Vec x = load(row + i, m);
        store(d_weight + i, fma(g, x, load(d_weight + i, m)), m);
        store(d_bias + i, load(d_bias + i, m) + g, m);
        g = g * load(op.norm_w + i, m);
        plain = plain + g;
        along = fma(g, x, along);
        store(slope + i, g, m);
      });
      const float share = 1.0f / static_cast<float>(op.size);
      const Vec mean = set1(sum(plain) * share), part = set1(sum(along) * share);
      for_lanes(size, [&](int i, auto m) {
        const Vec g = load(slope + i, m) - mean;
        store(slope + i, fnma(part, load(row + i, m), g) * scale, m);
      });
    });
  });
  parallel_for((op.size + kLine - 1) / kLine, [&](std::int64_t line) {
    const std::int64_t at = line * kLine;
    const int columns = static_cast<int>(std::min<std::int64_t>(kLine, op.size - at));
    for (std::int64_t p = 0; p < op.longest; ++p)
      std::fill_n(out.positions + p * op.size + at, columns, 0.0f);
    for_tokens(op, 0, op.sequences, [&](std::int64_t token, std::int64_t position) {
      const float* slope = slopes + token * op.size + at;
      const std::int64_t item = op.item_ids[token];
      float* to = out.positions + position * op.size + at;
      float* row = out.table + item * op.size + at;
      for_lanes(columns, [&](int i, auto m) {
        const Vec s = load(slope + i, m);
        store(to + i, load(to + i, m) + s, m);
        if (item != 0) store(row + i, load(row + i, m) + s, m);
      });
    });
  });
  for (float* target : {out.norm_w, out.norm_b}) {
    const float* from = sums + (target == out.norm_w ? 0 : op.size);
    for_lanes(size, [&](int i, auto m) {
      Vec total = zero();
      for (std::int64_t c = 0; c < chunks(op); ++c)
        total = total + load(from + c * 2 * op.size + i, m);
      store(target + i, total, m);
    });
  }
}

}  // namespace adarec
