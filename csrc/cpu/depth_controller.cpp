// A GRU over sequences of very different lengths.
//
// Sequences are sorted by length, longest first, and cut into blocks; at step t the sequences of a
// block that are still running are its first rows, so that a step is one dense product and nothing
// is spent on padding. What does not depend on the step before (the input product; in the backward
// pass, where the hidden states are known, also the recurrent one and the weight gradients) is
// done for several steps at once.
#include "depth_controller.h"

#include <algorithm>
#include <vector>

#include "depth_controller_blocks.h"
#include "gemm.h"
#include "parallel.h"
#include "rows.h"
#include "vec.h"

namespace adarec {
namespace {

using namespace gru;

constexpr int64_t kMaxGroups = 16;  // sums of weight gradients that exist at once

// Sizes padded to whole vectors; padding columns are zero and stay so.
struct Sizes {
  int d, dp, g, gp, gates, o, op;  // D, G, 3 gp, T + 1
};

Sizes make_sizes(const DepthController& op) {
  const auto dp = padded(op.size), gp = padded(op.hidden), outputs = padded(op.depths);
  return {static_cast<int>(op.size),   static_cast<int>(dp),     static_cast<int>(op.hidden),
          static_cast<int>(gp),        static_cast<int>(3 * gp), static_cast<int>(op.depths),
          static_cast<int>(outputs)};
}

// A row of the sequence bias, its three gates apart.
void load_gates(const float* from, const Sizes& s, float* to) {
  for (int gate = 0; gate < 3; ++gate)
    load_row(from + gate * s.g, false, 0, s.g, s.gp, to + gate * s.gp);
}

// The embeddings of a chunk, x [rows, dp].
void load_tokens(const DepthController& op, const Sizes& s, const Block& block, const Steps& steps,
                 float* x) {
  block.for_each_token(steps, [&](int row, int, int64_t token) {
    load_row(op.embeddings, false, token, s.d, s.dp, x + row * s.dp);
  });
}

// Their input product, input [rows, 3gp] = x W_ih^T + bias.
void input_product(const Sizes& s, const Block& block, const Steps& steps, const float* w_ih_t,
                   const float* bias, const float* x, float* input) {
  block.for_each_token(steps, [&](int row, int i, int64_t) {
    copy_row(bias + i * s.gates, s.gates, input + row * s.gates);
  });
  gemm_nn(steps.rows, s.gates, s.d, x, s.dp, w_ih_t, s.gates, input, s.gates, 1);
}

// bias [count, 3gp] of the block's sequences.
void load_bias(const DepthController& op, const Sizes& s, const Block& block, float* bias) {
  for (int i = 0; i < block.count(); ++i)
    load_gates(op.sequence_bias + block.sequence[i] * 3 * s.g, s, bias + i * s.gates);
}

float* mean_scales(const Block& block, const DepthController& op, Scratch& scratch) {
  float* scale = scratch.take(block.count());
  for (int i = 0; i < block.count(); ++i) {
    const int64_t u = block.sequence[i];
    scale[i] = 1.0f / static_cast<float>(op.offsets[u + 1] - op.offsets[u]);
  }
  return scale;
}

void scale_rows(int rows, int columns, const float* scale, float* x) {
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < columns; c += kWidth)
      store(x + r * columns + c, load(x + r * columns + c) * set1(scale[r]));
}

// One cell's four values at kWidth columns, as they are kept: [reset, update, fresh, what of the
// state before goes into fresh], gp columns each.
struct Cell {
  Vec reset, update, fresh, recurrent;

  Cell(const float* in, const float* rec, int gp) {
    recurrent = load(rec + 2 * gp);
    reset = sigmoid(load(in) + load(rec));
    update = sigmoid(load(in + gp) + load(rec + gp));
    fresh = tanh(fma(reset, recurrent, load(in + 2 * gp)));
  }
  Cell(const float* kept, int gp)
      : reset(load(kept)), update(load(kept + gp)), fresh(load(kept + 2 * gp)),
        recurrent(load(kept + 3 * gp)) {}
  void keep(float* to, int gp) const {
    store(to, reset);
    store(to + gp, update);
    store(to + 2 * gp, fresh);
    store(to + 3 * gp, recurrent);
  }
};

}  // namespace

int64_t depth_controller_kept(const DepthController& op) { return 4 * padded(op.hidden); }

DepthControllerWeights depth_controller_pack(const DepthController& op, Scratch& scratch) {
  const Sizes s = make_sizes(op);
  DepthControllerWeights w{};
  w.w_ih_t = pack_transposed(op.w_ih, 3, s.g, s.d, scratch);
  float* b_hh = scratch.take(s.gates);
  load_gates(op.b_hh, s, b_hh);
  w.b_hh = b_hh;
  w.w_hh_t = pack_transposed(op.w_hh, 3, s.g, s.g, scratch);
  w.w_out_t = pack_transposed(op.w_out, 1, s.o, s.g, scratch);
  float* b_out = scratch.take(s.op);
  load_row(op.b_out, false, 0, s.o, s.op, b_out);
  w.b_out = b_out;
  return w;
}

void depth_controller_forward(const DepthController& op, float* logits, float* hidden,
                              float* kept) {
  Scratch shared;
  depth_controller_forward(op, depth_controller_pack(op, shared), logits, hidden, kept);
}

void depth_controller_forward(const DepthController& op, const DepthControllerWeights& weights,
                              float* logits, float* hidden, float* kept) {
  const Sizes s = make_sizes(op);
  const std::vector<int64_t> order = by_length(op);

  parallel_for(block_count(op), [&](int64_t index) {
    const Block block = make_block(op, order, index);
    const int count = block.count();
    Scratch scratch;
    const int64_t most = kChunkRows + count;
    float* x = scratch.take(most * s.dp);
    float* input = scratch.take(most * s.gates);
    float* bias = scratch.take(count * s.gates);
    float* recurrent = scratch.take(count * s.gates);
    float* state = scratch.zeros(count * s.gp);
    float* pooled = scratch.zeros(count * s.gp);
    float* output = scratch.take(count * s.op);
    load_bias(op, s, block, bias);
    for (const Steps& chunk : block.chunks) {
      load_tokens(op, s, block, chunk, x);
      input_product(s, block, chunk, weights.w_ih_t, bias, x, input);
      const float* in = input;
      for (int step = chunk.begin; step < chunk.end; ++step) {
        const int running = block.running[step];
        set_rows(running, s.gates, weights.b_hh, recurrent, s.gates);
        gemm_nn(running, s.gates, s.g, state, s.gp, weights.w_hh_t, s.gates, recurrent, s.gates, 1);
        for (int i = 0; i < running; ++i, in += s.gates) {
          const float* rec = recurrent + i * s.gates;
          const int64_t token = block.first[i] + step;
          for (int c = 0; c < s.gp; c += kWidth) {
            float *h = state + i * s.gp + c, *p = pooled + i * s.gp + c;
            const Cell cell(in + c, rec + c, s.gp);
            if (kept != nullptr) cell.keep(kept + token * 4 * s.gp + c, s.gp);
            const Vec next = fma(cell.update, load(h) - cell.fresh, cell.fresh);
            store(h, next);
            store(p, load(p) + next);
          }
          store_row(state + i * s.gp, false, token, s.g, hidden);
        }
      }
    }
    scale_rows(count, s.gp, mean_scales(block, op, scratch), pooled);
    set_rows(count, s.op, weights.b_out, output, s.op);
    gemm_nn(count, s.op, s.g, pooled, s.gp, weights.w_out_t, s.op, output, s.op, 1);
    for (int i = 0; i < count; ++i)
      store_row(output + i * s.op, false, block.sequence[i], s.o, logits);
  });
}

namespace {

// Sums of weight gradients of a group of blocks, padded like the weights.
struct Sums {
  float *w_ih, *w_hh, *b_hh, *w_out, *b_out;
};

int64_t sums_floats(const Sizes& s) {
  return int64_t{s.gates} * (s.dp + s.gp + 1) + int64_t{s.op} * (s.gp + 1);
}

Sums split_sums(const Sizes& s, float* memory) {
  Sums sums;
  sums.w_ih = memory;
  sums.w_hh = sums.w_ih + int64_t{s.gates} * s.dp;
  sums.b_hh = sums.w_hh + int64_t{s.gates} * s.gp;
  sums.w_out = sums.b_hh + s.gates;
  sums.b_out = sums.w_out + int64_t{s.op} * s.gp;
  return sums;
}

// The backward pass of one block; every pointer below is [rows or count, padded columns].
struct BlockBackward {
  const DepthController& op;
  const Sizes& s;
  const Block& block;
  const float *w_ih_t, *w_hh_t, *w_ih, *w_hh, *w_out, *b_hh;
  const float *grad_logits, *hidden, *kept;
  const DepthControllerGradients& out;
  Sums sums;

  void run() const {
    const int count = block.count();
    const int64_t most = kChunkRows + count;
    Scratch scratch;
    float* x = scratch.take(most * s.dp);
    float* before = scratch.take(most * s.gp);
    float* input = scratch.take(most * s.gates);
    float* recurrent = scratch.take(most * s.gates);
    float* bias = scratch.take(count * s.gates);
    float* d_bias = scratch.zeros(count * s.gates);
    float* d_pooled = scratch.take(count * s.gp);
    float* carry = scratch.zeros(count * s.gp);
    load_bias(op, s, block, bias);
    pool_backward(d_pooled, scratch);
    for (auto chunk = block.chunks.rbegin(); chunk != block.chunks.rend(); ++chunk) {
      load_tokens(op, s, block, *chunk, x);
      block.for_each_token(*chunk, [&](int row, int i, int64_t token) {
        float* to = before + row * s.gp;
        if (token == block.first[i]) std::fill_n(to, s.gp, 0.0f);
        else load_row(hidden, false, token - 1, s.g, s.gp, to);
      });
      if (kept == nullptr) {
        input_product(s, block, *chunk, w_ih_t, bias, x, input);
        set_rows(chunk->rows, s.gates, b_hh, recurrent, s.gates);
        gemm_nn(chunk->rows, s.gates, s.g, before, s.gp, w_hh_t, s.gates, recurrent, s.gates, 1);
      }
      int row = chunk->rows;
      for (int step = chunk->end - 1; step >= chunk->begin; --step) {
        const int running = block.running[step];
        row -= running;
        for (int i = 0; i < running; ++i)
          cell_backward(input + (row + i) * s.gates, recurrent + (row + i) * s.gates,
                        kept == nullptr ? nullptr : kept + (block.first[i] + step) * 4 * s.gp,
                        before + (row + i) * s.gp, d_pooled + i * s.gp, carry + i * s.gp,
                        d_bias + i * s.gates);
        if (step > 0)
          gemm_nn(running, s.gp, s.gates, recurrent + row * s.gates, s.gates, w_hh, s.gp, carry,
                  s.gp, 1);
      }
      gemm_tn(s.gates, s.dp, chunk->rows, input, s.gates, x, s.dp, sums.w_ih, s.dp);
      gemm_tn(s.gates, s.gp, chunk->rows, recurrent, s.gates, before, s.gp, sums.w_hh, s.gp);
      add_columns(chunk->rows, s.gates, recurrent, s.gates, sums.b_hh);
      gemm_nn(chunk->rows, s.dp, s.gates, input, s.gates, w_ih, s.dp, x, s.dp, 0);
      block.for_each_token(*chunk, [&](int r, int, int64_t token) {
        store_row(x + r * s.dp, false, token, s.d, out.embeddings);
      });
    }
    for (int i = 0; i < count; ++i)
      for (int gate = 0; gate < 3; ++gate)
        store_row(d_bias + i * s.gates + gate * s.gp, false, block.sequence[i] * 3 + gate, s.g,
                  out.sequence_bias);
  }

  // The logits' and the mean's gradient: what every token of a sequence receives from its mean.
  void pool_backward(float* d_pooled, Scratch& scratch) const {
    const int count = block.count();
    float* pooled = scratch.zeros(count * s.gp);
    float* grad = scratch.take(count * s.op);
    float* state = scratch.zeros(s.gp);
    const float* scale = mean_scales(block, op, scratch);
    for (int i = 0; i < count; ++i) {
      const int64_t u = block.sequence[i];
      load_row(grad_logits, false, u, s.o, s.op, grad + i * s.op);
      for (int64_t token = op.offsets[u]; token < op.offsets[u + 1]; ++token) {
        copy_row(hidden + token * s.g, s.g, state);
        for (int c = 0; c < s.gp; c += kWidth)
          store(pooled + i * s.gp + c, load(pooled + i * s.gp + c) + load(state + c));
      }
    }
    scale_rows(count, s.gp, scale, pooled);
    gemm_tn(s.op, s.gp, count, grad, s.op, pooled, s.gp, sums.w_out, s.gp);
    add_columns(count, s.op, grad, s.op, sums.b_out);
    gemm_nn(count, s.gp, s.op, grad, s.op, w_out, s.gp, d_pooled, s.gp, 0);
    scale_rows(count, s.gp, scale, d_pooled);
  }

  // One token. in, rec: the gradients of both products on return; on entry the products, unless
  // the cell was kept. carry: the gradient of the state that later steps send back; on return the
  // direct share of the state before.
  void cell_backward(float* in, float* rec, const float* cell, const float* before,
                     const float* from_mean, float* carry, float* d_bias) const {
    const Vec one = set1(1.0f);
    for (int c = 0; c < s.gp; c += kWidth) {
      float *in_n = in + 2 * s.gp + c, *rec_n = rec + 2 * s.gp + c;
      const auto [reset, update, fresh, recurrent] =
          cell == nullptr ? Cell(in + c, rec + c, s.gp) : Cell(cell + c, s.gp);
      const Vec d_state = load(carry + c) + load(from_mean + c);
      const Vec d_fresh = d_state * (one - update) * fnma(fresh, fresh, one);
      const Vec d_update = d_state * (load(before + c) - fresh) * update * (one - update);
      const Vec d_reset = d_fresh * recurrent * reset * (one - reset);
      store(in + c, d_reset);
      store(rec + c, d_reset);
      store(in + s.gp + c, d_update);
      store(rec + s.gp + c, d_update);
      store(in_n, d_fresh);
      store(rec_n, d_fresh * reset);
      store(carry + c, d_state * update);
      store(d_bias + c, load(d_bias + c) + d_reset);
      store(d_bias + s.gp + c, load(d_bias + s.gp + c) + d_update);
      store(d_bias + 2 * s.gp + c, load(d_bias + 2 * s.gp + c) + d_fresh);
    }
  }
};

}  // namespace

void depth_controller_backward(const DepthController& op, const float* grad_logits,
                               const float* hidden, const float* kept,
                               const DepthControllerGradients& out) {
  const Sizes s = make_sizes(op);
  const std::vector<int64_t> order = by_length(op);
  const int64_t blocks = block_count(op), groups = std::clamp<int64_t>(blocks, 1, kMaxGroups);
  Scratch shared;
  const float* w_ih_t = pack_transposed(op.w_ih, 3, s.g, s.d, shared);
  const float* w_hh_t = pack_transposed(op.w_hh, 3, s.g, s.g, shared);
  const float* w_ih = pack_rows(op.w_ih, 3, s.g, s.d, s.gp, shared);
  const float* w_hh = pack_rows(op.w_hh, 3, s.g, s.g, s.gp, shared);
  const float* w_out = pack_rows(op.w_out, 1, s.o, s.g, s.op, shared);
  float* b_hh = shared.take(s.gates);
  load_gates(op.b_hh, s, b_hh);
  const int64_t stride = padded(sums_floats(s));
  float* memory = shared.take(groups * stride);
  parallel_for(groups, [&](int64_t group) {
    std::fill_n(memory + group * stride, stride, 0.0f);
    const Sums sums = split_sums(s, memory + group * stride);
    // Every groups-th block: each group has its share of the long ones.
    for (int64_t b = group; b < blocks; b += groups) {
      const Block block = make_block(op, order, b);
      BlockBackward{op,   s,           block,  w_ih_t, w_hh_t, w_ih, w_hh, w_out,
                    b_hh, grad_logits, hidden, kept,   out,    sums}
          .run();
    }
  });
  const Sums sums = split_sums(s, memory);
  auto total = [&](const float* first, int parts, int rows, int columns, int rows_padded,
                   int columns_padded, float* target) {
    for (int r = 0; r < parts * rows; ++r)
      for_lanes(columns, [&](int c, auto m) {
        const float* from = first + int64_t{r / rows * rows_padded + r % rows} * columns_padded + c;
        Vec value = zero();
        for (int64_t group = 0; group < groups; ++group)
          value = value + load(from + group * stride, m);
        store(target + int64_t{r} * columns + c, value, m);
      });
  };
  total(sums.w_ih, 3, s.g, s.d, s.gp, s.dp, out.w_ih);
  total(sums.w_hh, 3, s.g, s.g, s.gp, s.gp, out.w_hh);
  total(sums.b_hh, 3, 1, s.g, 1, s.gp, out.b_hh);
  total(sums.w_out, 1, s.o, s.g, s.op, s.gp, out.w_out);
  total(sums.b_out, 1, 1, s.o, 1, s.op, out.b_out);
}

}  // namespace adarec
