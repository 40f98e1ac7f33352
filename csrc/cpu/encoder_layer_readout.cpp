// Attention of the last positions alone: one query a segment and head, so that neither keys nor
// values of the other positions are computed. With W_q, W_k and W_v the rows of a head:
//
//   q = W_q x_last + b_q,  q' = W_k^T q,  P = softmax_j(x_j . q' / sqrt(d)),  A = P m (dropout),
//   mean = sum_j A_j x_j,  share = sum_j A_j,  context = W_v mean + share b_v.
//
// q . b_k is the same for all keys, so b_k changes nothing and its gradient is zero. Backward, from
// dC: dmean = W_v^T dC, g_j = x_j . dmean + b_v . dC, ds_j = (A_j g_j - P_j sum(A g)) / sqrt(d),
// dq' = sum_j ds_j x_j, dq = W_k dq', dx_j = ds_j q' + A_j dmean.
//
// So all products with weights are those of a tile's query rows; of a token no more is done than
// some dot products and sums with its row of x, which is read where it lies.
#include <algorithm>

#include "encoder_layer_scores.h"
#include "encoder_layer_tile.h"
#include "gemm.h"
#include "rows.h"
#include "vec.h"

namespace adarec::encoder {
namespace {

// One level of an item.
struct Segment {
  int64_t row;           // its query row in the tile
  int64_t first;         // its first row of x [K, N, D]
  const float* rows;     // where they can be read as [length, dp]
  float *probs, *kept;   // [H, ld] each, one after the other: P, later ds; and A
  float* scores;         // [H, ld]
};

// Whether the rows of x and of its gradient are such as the products take: no copies are made.
bool direct(const EncoderLayer& op, const Sizes& s) { return !op.bf16 && s.d == s.dp; }

template <class Body>
void for_each_segment(const EncoderLayer& op, const Sizes& s, const Item& item, const Readout& r,
                      Body&& body) {
  const int64_t size = op.heads * padded(item.length);
  for (int64_t j = 0; j < item.levels; ++j) {
    const int64_t first = (item.level + j) * op.tokens + item.begin;
    const float* rows = direct(op, s) ? static_cast<const float*>(op.x) + first * s.d
                                      : r.rows + j * item.length * s.dp;
    float* probs = r.weights + 2 * (op.heads * item.key + j * size);
    body(Segment{item.row + j, first, rows, probs, probs + size, r.scores + j * size});
  }
}

// Copies an item's rows where they cannot be read as they lie.
void load_item(const EncoderLayer& op, const Sizes& s, const Item& item, const Readout& r) {
  if (direct(op, s)) return;
  for (int64_t j = 0; j < item.levels; ++j)
    for (int64_t i = 0; i < item.length; ++i)
      load_row(op.x, op.bf16, (item.level + j) * op.tokens + item.begin + i, s.d, s.dp,
               r.rows + (j * item.length + i) * s.dp);
}

// to[4] = the sums of four vectors.
void store_sums(Vec a, Vec b, Vec c, Vec d, float* to) {
#if ADAREC_AVX512 || ADAREC_AVX2
#if ADAREC_AVX512
  auto fold = [](Vec v) {
    return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  };
#else
  auto fold = [](Vec v) { return v; };
#endif
  const __m256 ab = _mm256_hadd_ps(fold(a), fold(b)), cd = _mm256_hadd_ps(fold(c), fold(d));
  const __m256 all = _mm256_hadd_ps(ab, cd);
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
#else
  Vec square[kWidth] = {a, b, c, d};
  transpose_lanes(square);
  store(to, (square[0] + square[2]) + (square[1] + square[3]));
#endif
}

// scores[h, j] = x_j . y_h for H heads; columns up to the next multiple of four are written too.
template <int H>
void dots(int length, int64_t dp, const float* x, const float* y, float* scores, int64_t ld) {
  for (int j = 0; j < length; j += 4) {
    const float* at[4];
    for (int i = 0; i < 4; ++i) at[i] = x + std::min(j + i, length - 1) * dp;
    Vec total[H][4];
    for (int h = 0; h < H; ++h)
      for (int i = 0; i < 4; ++i) total[h][i] = zero();
    for (int64_t c = 0; c < dp; c += kWidth)
      for (int h = 0; h < H; ++h) {
        const Vec right = load(y + h * dp + c);
        for (int i = 0; i < 4; ++i) total[h][i] = fma(load(at[i] + c), right, total[h][i]);
      }
    for (int h = 0; h < H; ++h)
      store_sums(total[h][0], total[h][1], total[h][2], total[h][3], scores + h * ld + j);
  }
}

// The same for all heads, two at a time over the same rows.
void all_dots(const Sizes& s, int length, const float* x, const float* y, float* scores) {
  const int64_t ld = padded(length);
  int h = 0;
  for (; h + 2 <= s.heads; h += 2) dots<2>(length, s.dp, x, y + h * s.dp, scores + h * ld, ld);
  if (h < s.heads) dots<1>(length, s.dp, x, y + h * s.dp, scores + h * ld, ld);
}

// Scores in place to P; A beside it; share is the sum of A.
void weigh(const Sizes& s, int length, const Segment& segment, bool dropout, float* share) {
  const int ld = static_cast<int>(padded(length));
  for (int head = 0; head < s.heads; ++head) {
    float *probs = segment.probs + head * ld, *kept = segment.kept + head * ld;
    softmax_row(length, ld, score_scale(s), probs);
    Vec total = zero();
    for (int j = 0; j < length; j += kWidth) {
      const Vec p = load(probs + j);
      const Vec a = dropout ? p * load(segment.scores + head * ld + j) : p;
      store(kept + j, a);
      total = total + a;
    }
    share[head] = sum(total);
  }
}

// P to ds; `scores` holds x_j . dmean, `d_context` is dC.
void weigh_backward(const Sizes& s, int length, const Segment& segment, const float* value_bias,
                    const float* d_context) {
  const int64_t ld = padded(length);
  const Vec scale = set1(score_scale(s));
  for (int head = 0; head < s.heads; ++head) {
    float *probs = segment.probs + head * ld, *kept = segment.kept + head * ld;
    const float* grad = segment.scores + head * ld;
    Vec along = zero();
    for_lanes(s.head, [&](int c, auto m) {
      const int64_t at = head * s.head + c;
      along = fma(load(value_bias + at, m), load(d_context + at, m), along);
    });
    const Vec shift = set1(sum(along));
    Vec total = zero();
    for_lanes(length, [&](int j, auto m) {
      total = fma(load(kept + j), load(grad + j, m) + shift, total);
    });
    const Vec mean = set1(sum(total));
    for_lanes(length, [&](int j, auto m) {
      const Vec g = load(kept + j) * (load(grad + j, m) + shift);
      store(probs + j, fnma(load(probs + j), mean, g) * scale);
    });
  }
}

}  // namespace

void readout(const EncoderLayer& op, const Sizes& s, const Weights& weights, const Plan& plan,
             const Tile& tile, const Workspace& w) {
  const Readout& r = w.last;
  const int64_t wide = s.heads * s.dp;
  const float* value_bias = weights.qkv_b + 2 * s.dp;
  set_rows(tile.rows, s.dp, weights.qkv_b, r.q, s.dp);
  gemm_nn(tile.rows, s.dp, s.d, w.x, s.dp, weights.q_t, s.dp, r.q, s.dp, 1);
  for (int64_t head = 0; head < s.heads; ++head)
    gemm_nn(tile.rows, s.dp, s.head, r.q + head * s.head, s.dp, weights.k + head * s.head * s.dp,
            s.dp, r.folded + head * s.dp, 2 * wide, 0);

  const bool dropout = drops_scores(op);
  const ScoreKeep keep(op);
  for (int64_t n = tile.first; n < tile.last; ++n) {
    const Item& item = plan.items[n];
    const int length = item.length;
    const int64_t ld = padded(length);
    load_item(op, s, item, r);
    if (dropout)
      for (int head = 0; head < s.heads; ++head)
        keep(item, length - 1, length, head, r.scores + head * ld, s.heads * ld);
    // Level by level, so that a number is not read in the moment in which it is written.
    for_each_segment(op, s, item, r, [&](const Segment& segment) {
      all_dots(s, length, segment.rows, r.folded + segment.row * 2 * wide, segment.probs);
    });
    for_each_segment(op, s, item, r, [&](const Segment& segment) {
      weigh(s, length, segment, dropout, r.share + segment.row * s.heads);
    });
    for_each_segment(op, s, item, r, [&](const Segment& segment) {
      gemm_nn(s.heads, s.dp, length, segment.kept, ld, segment.rows, s.dp,
              r.mean + segment.row * wide, s.dp, 0);
    });
  }

  for (int64_t head = 0; head < s.heads; ++head) {
    const int64_t column = head * s.head;
    for (int row = 0; row < tile.rows; ++row) {
      const Vec share = set1(r.share[row * s.heads + head]);
      for_lanes(s.head, [&](int c, auto m) {
        store(w.context + row * s.dp + column + c, share * load(value_bias + column + c, m), m);
      });
    }
    gemm_nn(tile.rows, s.head, s.d, r.mean + head * s.dp, wide, weights.v_t + column, s.dp,
            w.context + column, s.dp, 1);
  }
}

void readout_backward(const EncoderLayer& op, const Sizes& s, const Weights& weights,
                      const Plan& plan, const Tile& tile, const Workspace& w,
                      const float* d_context, const Sums& g, void* d_x) {
  const Readout& r = w.last;
  const int64_t wide = s.heads * s.dp;
  const float* value_bias = weights.qkv_b + 2 * s.dp;
  float *d_k = g.qkv_w + s.dp * s.dp, *d_v = d_k + s.dp * s.dp, *d_bias = g.qkv_b + 2 * s.dp;
  for (int64_t head = 0; head < s.heads; ++head) {
    const int64_t column = head * s.head;
    const float* d_head = d_context + column;
    gemm_tn(s.head, s.dp, tile.rows, d_head, s.dp, r.mean + head * s.dp, wide,
            d_v + column * s.dp, s.dp);
    for_lanes(s.head, [&](int c, auto m) {
      Vec total = zero();
      for (int row = 0; row < tile.rows; ++row)
        total = fma(set1(r.share[row * s.heads + head]), load(d_head + row * s.dp + c, m), total);
      store(d_bias + column + c, load(d_bias + column + c, m) + total, m);
    });
    gemm_nn(tile.rows, s.dp, s.head, d_head, s.dp, weights.v + column * s.dp, s.dp,
            r.folded + wide + head * s.dp, 2 * wide, 0);
  }

  for (int64_t n = tile.first; n < tile.last; ++n) {
    const Item& item = plan.items[n];
    const int length = item.length;
    load_item(op, s, item, r);
    for_each_segment(op, s, item, r, [&](const Segment& segment) {
      all_dots(s, length, segment.rows, r.folded + (segment.row * 2 + 1) * wide, segment.scores);
    });
    for_each_segment(op, s, item, r, [&](const Segment& segment) {
      weigh_backward(s, length, segment, value_bias, d_context + segment.row * s.dp);
    });
    for_each_segment(op, s, item, r, [&](const Segment& segment) {
      gemm_nn(s.heads, s.dp, length, segment.probs, padded(length), segment.rows, s.dp,
              r.d_folded + segment.row * wide, s.dp, 0);
    });
  }

  for (int64_t head = 0; head < s.heads; ++head) {
    const int64_t column = head * s.head;
    const float* d_folded = r.d_folded + head * s.dp;
    gemm_tn(s.head, s.dp, tile.rows, r.q + column, s.dp, d_folded, wide, d_k + column * s.dp,
            s.dp);
    gemm_nn(tile.rows, s.head, s.d, d_folded, wide, weights.k_t + column, s.dp, r.dq + column,
            s.dp, 0);
  }
  linear_sums(tile.rows, s.d, s.dp, r.dq, s.dp, w.x, s.dp, g.qkv_w, s.dp, g.qkv_b);
  gemm_nn(tile.rows, s.dp, s.d, r.dq, s.dp, weights.q, s.dp, w.y, s.dp, 1);

  for (int64_t n = tile.first; n < tile.last; ++n) {
    const Item& item = plan.items[n];
    const int length = item.length;
    for_each_segment(op, s, item, r, [&](const Segment& segment) {
      float* to = direct(op, s) ? static_cast<float*>(d_x) + segment.first * s.d : r.rows;
      std::fill_n(to, (length - 1) * s.dp, 0.0f);
      copy_row(w.y + segment.row * s.dp, s.dp, to + (length - 1) * s.dp);
      gemm_tn(length, s.dp, 2 * s.heads, segment.probs, padded(length),
              r.folded + segment.row * 2 * wide, s.dp, to, s.dp);
      if (!direct(op, s))
        for (int j = 0; j < length; ++j)
          store_row(to + j * s.dp, op.bf16, segment.first + j, s.d, d_x);
    });
  }
}

}  // namespace adarec::encoder
