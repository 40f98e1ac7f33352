// Sequences of the same length have the same bias, and there are few lengths: a row is computed a
// length and copied; backwards the rows' gradients are added up first.
#include "length_bias.h"

#include <algorithm>
#include <unordered_map>
#include <vector>

#include "gemm.h"
#include "parallel.h"
#include "rows.h"

namespace adarec {
namespace {

// The lengths there are, in the order of their first sequence, and the place of each sequence's.
struct Lengths {
  std::vector<std::int64_t> length, first;
  std::vector<std::int32_t> place;

  explicit Lengths(const LengthBias& op) : place(op.batch) {
    std::unordered_map<std::int64_t, std::int32_t> found;
    for (std::int64_t b = 0; b < op.batch; ++b) {
      const std::int64_t one = op.offsets[b + 1] - op.offsets[b];
      const auto [at, fresh] = found.try_emplace(one, static_cast<std::int32_t>(length.size()));
      if (fresh) {
        length.push_back(one);
        first.push_back(b);
      }
      place[b] = at->second;
    }
  }
  int count() const { return static_cast<int>(length.size()); }
};

float share_of(const LengthBias& op, std::int64_t length) {
  return static_cast<float>(length) / static_cast<float>(op.max_length);
}

// The hidden layer before its activation, a row a length, and after it with, if asked for, the
// derivative.
void hidden_of(const LengthBias& op, const Lengths& lengths, float* hidden, float* slope) {
  for (int r = 0; r < lengths.count(); ++r) {
    const Vec share = set1(share_of(op, lengths.length[r]));
    for_lanes(op.size, [&](int i, auto m) {
      const Vec before = fma(share, load(op.w1 + i, m), load(op.b1 + i, m));
      const std::int64_t at = std::int64_t{r} * op.size + i;
      if (slope == nullptr) {
        store(hidden + at, silu(before), m);
      } else {
        Vec derivative;
        store(hidden + at, silu(before, derivative), m);
        store(slope + at, derivative, m);
      }
    });
  }
}

// y = x W^T + b of a few rows, W [out, in], on the calling thread.
void layer_forward(int rows, int out, int in, const float* x, const float* w, const float* b,
                   float* y) {
  Scratch scratch;
  float* w_t = scratch.take(std::int64_t{in} * out);
  transpose_rows(out, in, w, in, w_t, out);
  set_rows(rows, out, b, y, out);
  gemm_nn(rows, out, in, x, in, w_t, out, y, out, 1);
}

void layer_backward(int rows, int out, int in, const float* x, const float* w, const float* grad_y,
                    float* grad_w, float* grad_b, float* grad_x) {
  std::fill(grad_w, grad_w + std::int64_t{out} * in, 0.0f);
  std::fill(grad_b, grad_b + out, 0.0f);
  gemm_tn(out, in, rows, grad_y, out, x, in, grad_w, in);
  add_columns(rows, out, grad_y, out, grad_b);
  gemm_nn(rows, in, out, grad_y, out, w, in, grad_x, in, 0);
}

constexpr std::int64_t kChunk = 512;  // sequences a task

}  // namespace

void length_bias_forward(const LengthBias& op, float* bias, float* v) {
  const Lengths lengths(op);
  const int rows = lengths.count();
  Scratch scratch;
  float* hidden = scratch.take(std::int64_t{rows} * op.size);
  float* v_of = scratch.take(std::int64_t{rows} * op.size);
  float* bias_of = scratch.take(std::int64_t{rows} * op.wide);
  hidden_of(op, lengths, hidden, nullptr);
  layer_forward(rows, op.size, op.size, hidden, op.w2, op.b2, v_of);
  layer_forward(rows, op.wide, op.size, v_of, op.w_v, op.b_ih, bias_of);
  parallel_for((op.batch + kChunk - 1) / kChunk, [&](std::int64_t chunk) {
    for (std::int64_t b = chunk * kChunk; b < std::min(op.batch, (chunk + 1) * kChunk); ++b) {
      const std::int64_t at = lengths.place[b];
      copy_row(v_of + at * op.size, op.size, v + b * op.size);
      copy_row(bias_of + at * op.wide, op.wide, bias + b * op.wide);
    }
  });
}

void length_bias_backward(const LengthBias& op, const float* grad_bias, const float* v,
                          const LengthBiasGradients& out) {
  const Lengths lengths(op);
  const int rows = lengths.count();
  Scratch scratch;
  float* grad = scratch.zeros(std::int64_t{rows} * op.wide);
  // Columns a task, whose sums are in the order of sequences. A small batch is one task: a thread
  // takes longer to wake.
  const std::int64_t panel = op.batch > kChunk ? 64 : std::max(op.wide, 1);
  parallel_for((op.wide + panel - 1) / panel, [&](std::int64_t task) {
    const std::int64_t begin = task * panel;
    const int columns = static_cast<int>(std::min(panel, op.wide - begin));
    for (std::int64_t b = 0; b < op.batch; ++b) {
      float* sums = grad + std::int64_t{lengths.place[b]} * op.wide + begin;
      const float* from = grad_bias + b * op.wide + begin;
      for_lanes(columns, [&](int i, auto m) {
        store(sums + i, load(sums + i, m) + load(from + i, m), m);
      });
    }
  });
  const std::int64_t narrow = std::int64_t{rows} * op.size;
  float *v_of = scratch.take(narrow), *d_v = scratch.take(narrow), *hidden = scratch.take(narrow),
        *slope = scratch.take(narrow), *d_before = scratch.take(narrow);
  for (int r = 0; r < rows; ++r)
    copy_row(v + lengths.first[r] * op.size, op.size, v_of + std::int64_t{r} * op.size);
  layer_backward(rows, op.wide, op.size, v_of, op.w_v, grad, out.w_v, out.b_ih, d_v);
  hidden_of(op, lengths, hidden, slope);
  layer_backward(rows, op.size, op.size, hidden, op.w2, d_v, out.w2, out.b2, d_before);
  for (int i = 0; i < op.size; i += kWidth) {
    const Mask m = first(std::min(kWidth, op.size - i));
    Vec d_w1 = zero(), d_b1 = zero();
    for (int r = 0; r < rows; ++r) {
      const std::int64_t at = std::int64_t{r} * op.size + i;
      const Vec d = load(d_before + at, m) * load(slope + at, m);
      d_w1 = fma(set1(share_of(op, lengths.length[r])), d, d_w1);
      d_b1 = d_b1 + d;
    }
    store(out.w1 + i, d_w1, m);
    store(out.b1 + i, d_b1, m);
  }
}

}  // namespace adarec
