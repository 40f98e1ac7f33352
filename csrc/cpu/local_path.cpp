// The local path, a few tokens at a time: what is read of the tokens before and, backward, added to
// them lies in L1. Stages go over all rows of a block, so that a row's sums do not wait for the
// row's before. The backward pass computes each block again.
#include "local_path.h"

#include <algorithm>
#include <cmath>

#include "parallel.h"
#include "philox.h"
#include "rows.h"
#include "token_tiles.h"
#include "vec.h"

namespace adarec {
namespace {

// A tile has the sequences that begin in a stretch of so many tokens: nothing that a token reads or
// adds to is another tile's.
constexpr std::int64_t kStretch = 64;
constexpr int kRows = 8;  // of a block, or fewer

std::int64_t num_tiles(const LocalPath& op) {
  return (op.offsets[op.sequences] + kStretch - 1) / kStretch;
}

class Block {
 public:
  Block(const LocalPath& op, Scratch& scratch)
      : normal(scratch.take(std::int64_t{kRows} * op.size)),
        keep(scratch.take(std::int64_t{kRows} * op.size)),
        op_(op),
        quarter_((op.size + kLanes - 1) / kLanes),
        stride_(kRows * quarter_ + kWidth),
        quarters_(scratch.take(kLanes * stride_)),
        philox_(op.seed, op.stream, quarter_),
        dropout_(op.dropout) {
    std::fill(keep, keep + std::int64_t{kRows} * op.size, 1.0f);
  }

  // x and what is mixed to it, up to xhat and 1 / sigma of the LayerNorm, of the tokens from
  // `begin` on.
  void compute() {
    const std::int64_t size = op_.size;
    if (op_.seeded) draw();
    const float share = 1.0f / static_cast<float>(size);
    float mean[kRows], squares[kRows];
    for (int r = 0; r < rows; ++r) mean[r] = mix(r) * share;
    for (int r = 0; r < rows; ++r) {
      Vec total = zero();
      for_lanes(op_.size, [&](int i, auto m) {
        float* at = normal + r * size + i;
        store(at, load(at, m) - set1(mean[r]), m);
        const Vec v = load(at, m);  // 0 in the lanes behind the end
        total = fma(v, v, total);
      });
      squares[r] = sum(total);
    }
    for (int r = 0; r < rows; ++r)
      rstd[r] = static_cast<float>(1.0 / std::sqrt(double{squares[r]} * share + op_.eps));
    for (int r = 0; r < rows; ++r)
      for_lanes(op_.size, [&](int i, auto m) {
        float* at = normal + r * size + i;
        store(at, load(at, m) * set1(rstd[r]), m);
      });
  }

  std::int64_t begin = 0;  // its first token
  int rows = 0;
  int before[kRows];       // tokens of its sequence that a row reads, beside its own
  float *normal, *keep;    // [rows, D]: xhat; dropout's factor
  float rstd[kRows];

 private:
  // The four words of a call serve the four quarters of a row (rng.keep_quarters). A quarter's
  // elements in one row follow those in the row before, so that calls are of whole vectors.
  void draw() {
    for (int at = 0; at < rows * quarter_; at += kWidth) {
      const Words words = philox_(static_cast<std::uint64_t>(begin * quarter_ + at), 0);
      for (int lane = 0; lane < kLanes; ++lane)
        store(quarters_ + lane * stride_ + at, dropout_.apply(words.word[lane], set1(1.0f)));
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      const int from = lane * quarter_, count = std::min(quarter_, op_.size - from);
      for (int r = 0; r < rows && count > 0; ++r)
        copy_row(quarters_ + lane * stride_ + r * quarter_, count, keep + r * op_.size + from);
    }
  }

  // x + dropout(mixed) of a row into `normal`; its sum.
  float mix(int r) {
    const std::int64_t size = op_.size;
    const float* x = op_.x + (begin + r) * size;
    const int taps = before[r];
    Vec total = zero();
    for_lanes(op_.size, [&](int i, auto m) {
      const Vec own = load(x + i, m);
      Vec mixed = own * load(op_.weights + i, m);
      for (int j = 1; j <= taps; ++j)
        mixed = fma(load(x - j * size + i, m), load(op_.weights + j * size + i, m), mixed);
      const Vec v = fma(mixed, load(keep + r * size + i, m), own);
      store(normal + r * size + i, v, m);
      total = total + v;
    });
    return sum(total);
  }

  const LocalPath& op_;
  int quarter_, stride_;
  float* quarters_;  // [4, stride]: dropout's factors, a quarter of all rows after the other
  Philox philox_;
  Dropout dropout_;
};

// body(block, computed) for all tokens of a tile, in order.
template <typename Body>
void for_blocks(const LocalPath& op, std::int64_t tile, Body&& body) {
  Scratch scratch;
  Block block(op, scratch);
  const std::int64_t* end = op.offsets + op.sequences;
  const std::int64_t* at = std::lower_bound(op.offsets, end, tile * kStretch);
  const auto flush = [&] {
    if (block.rows == 0) return;
    block.compute();
    body(block);
    block.rows = 0;
  };
  for (; at < end && *at < (tile + 1) * kStretch; ++at)
    for (std::int64_t token = at[0]; token < at[1]; ++token) {
      if (block.rows == 0) block.begin = token;
      block.before[block.rows++] =
          static_cast<int>(std::min<std::int64_t>(op.taps - 1, token - at[0]));
      if (block.rows == kRows) flush();
    }
  flush();
}

// The gradient of what LayerNorm reads, into grad_x, that of what was mixed into block.normal, and
// their shares of the sums of weight gradients.
void norm_backward(const LocalPath& op, const Block& block, const float* grad, float* grad_x,
                   float* sums) {
  const std::int64_t size = op.size;
  float *d_gain = sums + op.taps * size, *d_bias = d_gain + size;
  const float share = 1.0f / static_cast<float>(size);
  float mean[kRows], slant[kRows];
  for (int r = 0; r < block.rows; ++r) {
    const float *from = grad + r * size, *normal = block.normal + r * size;
    Vec total = zero(), along = zero();
    for_lanes(op.size, [&](int i, auto m) {
      const Vec w = load(from + i, m) * load(op.norm_w + i, m);
      total = total + w;
      along = fma(w, load(normal + i, m), along);
    });
    mean[r] = sum(total) * share;
    slant[r] = sum(along) * share;
  }
  const float* x = op.x + block.begin * size;
  for_lanes(op.size, [&](int i, auto m) {
    Vec gain = load(d_gain + i, m), bias = load(d_bias + i, m), tap = load(sums + i, m);
    const Vec norm = load(op.norm_w + i, m), own = load(op.weights + i, m);
    for (int r = 0; r < block.rows; ++r) {
      const std::int64_t at = r * size + i;
      const Vec g = load(grad + at, m), h = load(block.normal + at, m);
      gain = fma(g, h, gain);
      bias = bias + g;
      const Vec centred = fma(g, norm, set1(-mean[r]));
      const Vec d = set1(block.rstd[r]) * fnma(set1(slant[r]), h, centred);
      const Vec mixed = d * load(block.keep + at, m);
      store(block.normal + at, mixed, m);
      store(grad_x + at, fma(mixed, own, d), m);
      tap = fma(mixed, load(x + at, m), tap);
    }
    store(d_gain + i, gain, m);
    store(d_bias + i, bias, m);
    store(sums + i, tap, m);
  });
}

void backward_block(const LocalPath& op, const Block& block, const float* grad, float* grad_x,
                    float* sums) {
  const std::int64_t size = op.size, first = block.begin * size;
  norm_backward(op, block, grad + first, grad_x + first, sums);
  for (int j = 1; j < op.taps; ++j) {
    int reaching[kRows], count = 0;
    for (int r = 0; r < block.rows; ++r) {
      reaching[count] = r;
      count += block.before[r] >= j;
    }
    const float* x = op.x + first - j * size;
    float* to = grad_x + first - j * size;
    for_lanes(op.size, [&](int i, auto m) {
      Vec tap = load(sums + j * size + i, m);
      const Vec weight = load(op.weights + j * size + i, m);
      for (int n = 0; n < count; ++n) {
        const std::int64_t at = reaching[n] * size + i;
        const Vec mixed = load(block.normal + at, m);
        store(to + at, fma(mixed, weight, load(to + at, m)), m);
        tap = fma(mixed, load(x + at, m), tap);
      }
      store(sums + j * size + i, tap, m);
    });
  }
}

}  // namespace

void local_path_forward(const LocalPath& op, float* y) {
  const std::int64_t size = op.size;
  parallel_for(num_tiles(op), [&](std::int64_t tile) {
    for_blocks(op, tile, [&](const Block& block) {
      for (int r = 0; r < block.rows; ++r) {
        float* to = y + (block.begin + r) * size;
        const float* normal = block.normal + r * size;
        for_lanes(op.size, [&](int i, auto m) {
          store(to + i, fma(load(op.norm_w + i, m), load(normal + i, m), load(op.norm_b + i, m)), m);
        });
      }
    });
  });
}

void local_path_backward(const LocalPath& op, const float* grad, const LocalPathGradients& out) {
  Scratch scratch;
  const std::int64_t size = op.size, taps = op.taps * size;
  const GroupSums groups(num_tiles(op), taps + 2 * size, scratch);
  groups.run([&](std::int64_t tile, float* sums) {
    for_blocks(op, tile,
               [&](const Block& block) { backward_block(op, block, grad, out.x, sums); });
  });
  groups.add_up(0, taps, out.weights);
  groups.add_up(taps, size, out.norm_w);
  groups.add_up(taps + size, size, out.norm_b);
}

}  // namespace adarec
