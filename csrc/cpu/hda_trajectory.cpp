// The trajectory of a tile of tokens: every level is noised, denoised and reconstructed while the
// tile lies in L2; only x0 and the error leave it. The backward pass reads back what the forward
// pass has kept, or computes each level again.
//
// Without noise (epsilon = 0) level k's hidden layer is SiLU(sqrt(alpha_bar_k) W1 E + bias_k):
// one product with W1 serves all levels, and in the backward pass its gradient as well.
#include "hda_trajectory.h"

#include <cmath>
#include <cstring>

#include "gemm.h"
#include "parallel.h"
#include "philox.h"
#include "token_tiles.h"
#include "vec.h"

namespace adarec {
namespace {

constexpr int kStreamNoise = 0;

struct Level {
  float signal, spread, ratio;  // sqrt(alpha_bar), sqrt(1 - alpha_bar), spread / signal
};

Level level_of(const HDATrajectory& op, int k) {
  const double alpha = op.alpha_bar[k];
  return {static_cast<float>(std::sqrt(alpha)), static_cast<float>(std::sqrt(1.0 - alpha)),
          static_cast<float>(std::sqrt((1.0 - alpha) / alpha))};
}

// Rows a tile: its scratch should stay well inside L2.
std::int32_t tile_rows(const HDATrajectory& op) { return op.size <= 128 ? 96 : 48; }

// What all tiles share.
struct Shared {
  const HDATrajectory& op;
  TokenTiles tiles;
  const float *w1_t, *w2_t;  // [D, H], [H, D]
  Philox philox;
  bool noisy;

  Shared(const HDATrajectory& o, const HDATrajectoryWeights& weights, Scratch& scratch)
      : op(o),
        tiles(make_token_tiles(o.sequences, o.offsets, o.depth, o.levels, false, tile_rows(o),
                               scratch)),
        w1_t(weights.w1_t),
        w2_t(weights.w2_t),
        philox(o.seed, kStreamNoise, o.size),
        noisy(o.noise != nullptr || o.seeded) {}
};

// One tile: its rows of E, and what a level leaves behind for its backward pass.
class Tile {
 public:
  // kept: of the whole call, or null.
  Tile(const Shared& shared, std::int64_t index, bool backward, float* kept, Scratch& scratch)
      : s_(shared),
        op_(shared.op),
        index_(index),
        rows_(shared.tiles.rows + shared.tiles.begin(index)),
        count_(shared.tiles.size(index)) {
    const std::int64_t narrow = std::int64_t{count_} * op_.size;
    const std::int64_t wide = std::int64_t{count_} * op_.hidden;
    e = scratch.take(narrow);
    epsilon_ = s_.noisy ? scratch.take(kLanes * narrow) : nullptr;
    shared_hidden = s_.noisy ? nullptr : scratch.take(wide);
    hidden = scratch.take(wide);
    slope = backward ? scratch.take(wide) : nullptr;
    if (kept != nullptr) {
      kept_ = kept + s_.tiles.begin(index) * (op_.levels - 1) * hda_trajectory_kept(op_);
    } else {
      noisy = s_.noisy ? scratch.take(narrow) : e;
      before_ = hidden;
      miss = scratch.take(narrow);
    }
    for (int r = 0; r < count_; ++r)
      std::memcpy(e + r * op_.size, op_.embeddings + rows_[r].token * op_.size,
                  sizeof(float) * op_.size);
    if (!s_.noisy && reaching(1) > 0)
      gemm_nn(reaching(1), op_.hidden, op_.size, e, op_.size, s_.w1_t, op_.hidden, shared_hidden,
              op_.hidden, 0);
  }

  int reaching(int k) const { return s_.tiles.reaching(index_, k); }
  int deepest() const { return rows_[0].depth; }
  std::int64_t token(int r) const { return rows_[r].token; }
  int count() const { return count_; }

  // Level k >= 1 of its n rows: hidden = SiLU(W1 E_k + bias_k), miss = eps_theta - epsilon. Levels
  // come in order, since noise is made for four of them at once. The bounded eps_theta, spread E_k
  // + signal F, misses by signal (F + spread E - signal epsilon).
  void denoise(int k, int n) {
    const Level level = level_of(op_, k);
    const float* bias = op_.level_bias + std::int64_t{k - 1} * op_.hidden;
    place(k);
    if (s_.noisy) {
      if ((k - 1) % kLanes == 0) make_noise(k, n);
      add_noise(k, n, level);
      gemm_nn(n, op_.hidden, op_.size, noisy, op_.size, s_.w1_t, op_.hidden, before_, op_.hidden,
              0);
      activate(n, before_, 1.0f, bias);
    } else {
      activate(n, shared_hidden, level.signal, bias);
    }
    gemm_nn(n, op_.size, op_.hidden, hidden, op_.hidden, s_.w2_t, op_.size, miss, op_.size, 0);
    const float* epsilon = s_.noisy ? noise_of(k) : nullptr;
    const Vec signal = set1(level.signal), spread = set1(level.spread);
    for (int r = 0; r < n; ++r)
      for_lanes(op_.size, [&](int i, auto m) {
        const int at = r * op_.size + i;
        Vec v = load(miss + at, m) + load(op_.b2 + i, m);
        if (op_.bounded) {
          v = fma(spread, load(e + at, m), v);
          if (epsilon != nullptr) v = fnma(signal, load(epsilon + at, m), v);
          v = signal * v;
        } else if (epsilon != nullptr) {
          v = v - load(epsilon + at, m);
        }
        store(miss + at, v, m);
      });
  }

  // What denoise() leaves, from what a forward pass has kept.
  void denoise_again(int k, int n) {
    place(k);
    activate(n, before_, 1.0f, op_.level_bias + std::int64_t{k - 1} * op_.hidden);
  }

  float *e, *noisy, *hidden, *slope, *miss, *shared_hidden;

 private:
  // Where level k lies: the same places for all, or those of the memory that is kept.
  void place(int k) {
    if (kept_ == nullptr) return;
    before_ = kept_ + std::int64_t{k - 1} * count_ * hda_trajectory_kept(op_);
    noisy = before_ + std::int64_t{count_} * op_.hidden;
    miss = noisy + std::int64_t{count_} * op_.size;
  }

  float* noise_of(int k) const {
    return epsilon_ + std::int64_t{(k - 1) % kLanes} * count_ * op_.size;
  }

  // Epsilon of the levels k..k+3 for the n rows that reach level k.
  void make_noise(int k, int n) {
    const int size = op_.size;
    if (op_.noise != nullptr) {
      for (int level = k; level < k + kLanes && level < op_.levels; ++level)
        for (int r = 0; r < reaching(level); ++r)
          std::memcpy(noise_of(level) + r * size,
                      op_.noise + ((level - 1) * op_.tokens + token(r)) * size,
                      sizeof(float) * size);
      return;
    }
    const auto group = static_cast<std::uint32_t>((k - 1) / kLanes);
    float *first = noise_of(k), *second = noise_of(k + 1), *third = noise_of(k + 2),
          *fourth = noise_of(k + 3);
    // Rows that end at level k + 1 need one pair of normals only.
    const int deep = k + 2 < op_.levels ? reaching(k + 2) : 0;
    for (int r = 0; r < n; ++r) {
      const std::uint64_t element = static_cast<std::uint64_t>(token(r)) * size;
      for_lanes(size, [&](int i, auto m) {
        const Words words = s_.philox(element + i, group);
        Vec a, b;
        box_muller(words.word[0], words.word[1], a, b);
        store(first + r * size + i, a, m);
        store(second + r * size + i, b, m);
        if (r >= deep) return;
        box_muller(words.word[2], words.word[3], a, b);
        store(third + r * size + i, a, m);
        store(fourth + r * size + i, b, m);
      });
    }
  }

  void add_noise(int k, int n, const Level& level) {
    const float* epsilon = noise_of(k);
    const Vec signal = set1(level.signal), spread = set1(level.spread);
    for_lanes(n * op_.size, [&](int i, auto m) {
      store(noisy + i, fma(signal, load(e + i, m), spread * load(epsilon + i, m)), m);
    });
  }

  // hidden = SiLU(scale * from + bias), and its derivative where the backward pass wants it.
  void activate(int n, const float* from, float scale, const float* bias) {
    const Vec times = set1(scale);
    for (int r = 0; r < n; ++r) {
      const std::int64_t row = std::int64_t{r} * op_.hidden;
      for_lanes(op_.hidden, [&](int i, auto m) {
        const Vec x = fma(times, load(from + row + i, m), load(bias + i, m));
        if (slope == nullptr) {
          store(hidden + row + i, silu(x), m);
        } else {
          Vec derivative;
          store(hidden + row + i, silu(x, derivative), m);
          store(slope + row + i, derivative, m);
        }
      });
    }
  }

  const Shared& s_;
  const HDATrajectory& op_;
  std::int64_t index_;
  const TokenRow* rows_;
  int count_;
  float *epsilon_, *before_, *kept_ = nullptr;  // before_: the hidden layer before bias and SiLU
};

void forward_tile(const Shared& shared, std::int64_t index, float* x0, float* error,
                  float* kept) {
  const HDATrajectory& op = shared.op;
  Scratch scratch;
  Tile tile(shared, index, false, kept, scratch);
  for (int r = 0; r < tile.count(); ++r) {
    std::memcpy(x0 + tile.token(r) * op.size, tile.e + r * op.size, sizeof(float) * op.size);
    error[tile.token(r)] = 0.0f;
  }
  for (int k = 1; k <= tile.deepest(); ++k) {
    const int n = tile.reaching(k);
    tile.denoise(k, n);
    const Vec ratio = set1(level_of(op, k).ratio);
    float* plane = x0 + k * op.tokens * op.size;
    for (int r = 0; r < n; ++r) {
      float* to = plane + tile.token(r) * op.size;
      Vec square = zero();
      for_lanes(op.size, [&](int i, auto m) {
        const Vec miss = load(tile.miss + r * op.size + i, m);
        square = fma(miss, miss, square);
        // Eq. 5 with Eq. 4 put in: x0 = E - sigma_k (eps_theta - epsilon).
        store(to + i, fnma(ratio, miss, load(tile.e + r * op.size + i, m)), m);
      });
      error[tile.token(r)] += sum(square);
    }
  }
}

// Where a group's sums keep each gradient.
struct Sums {
  std::int64_t w1, w2, b2, bias, floats;
  explicit Sums(const HDATrajectory& op) {
    const std::int64_t weight = std::int64_t{op.size} * op.hidden;
    w1 = 0;
    w2 = weight;
    b2 = 2 * weight;
    bias = b2 + op.size;
    floats = bias + (op.levels - 1) * op.hidden;
  }
};

void backward_tile(const Shared& shared, std::int64_t index, const float* grad_x0,
                   const float* grad_error, const float* kept, float* grad_e, const Sums& at,
                   float* sums) {
  const HDATrajectory& op = shared.op;
  const int size = op.size, hidden = op.hidden;
  Scratch scratch;
  Tile tile(shared, index, true, const_cast<float*>(kept), scratch);  // only read from here on
  const std::int64_t narrow = std::int64_t{tile.count()} * size;
  const std::int64_t wide = std::int64_t{tile.count()} * hidden;
  float* d_e = scratch.take(narrow);
  float* d_noisy = scratch.take(narrow);
  float* d_predicted = scratch.take(narrow);
  float* d_hidden = scratch.take(wide);
  float* d_shared = shared.noisy ? nullptr : scratch.zeros(wide);
  for (int r = 0; r < tile.count(); ++r)
    std::memcpy(d_e + r * size, grad_x0 + tile.token(r) * size, sizeof(float) * size);

  for (int k = 1; k <= tile.deepest(); ++k) {
    const int n = tile.reaching(k);
    if (kept != nullptr) tile.denoise_again(k, n);
    else tile.denoise(k, n);
    const Level level = level_of(op, k);
    const Vec ratio = set1(level.ratio), signal = set1(level.signal), spread = set1(level.spread);
    const float* plane = grad_x0 + k * op.tokens * size;
    // The gradient of F: that of eps_theta, 2 d_error miss - sigma_k d_x0, or signal
    // times it, and signal spread times it is E's.
    for (int r = 0; r < n; ++r) {
      const float* from = plane + tile.token(r) * size;
      const Vec twice = set1(2.0f * grad_error[tile.token(r)]);
      for_lanes(size, [&](int i, auto m) {
        const Vec g = load(from + i, m);
        float* d = d_e + r * size + i;
        Vec slope = fnma(ratio, g, twice * load(tile.miss + r * size + i, m));
        Vec own = load(d, m) + g;
        if (op.bounded) {
          slope = signal * slope;
          own = fma(spread, slope, own);
        }
        store(d, own, m);
        store(d_predicted + r * size + i, slope, m);
      });
    }
    gemm_tn(size, hidden, n, d_predicted, size, tile.hidden, hidden, sums + at.w2, hidden);
    add_columns(n, size, d_predicted, size, sums + at.b2);
    gemm_nn(n, hidden, size, d_predicted, size, op.w2, hidden, d_hidden, hidden, 0);
    for_lanes(n * hidden, [&](int i, auto m) {
      store(d_hidden + i, load(d_hidden + i, m) * load(tile.slope + i, m), m);
    });
    add_columns(n, hidden, d_hidden, hidden, sums + at.bias + std::int64_t{k - 1} * hidden);
    if (!shared.noisy) {
      for_lanes(n * hidden, [&](int i, auto m) {
        store(d_shared + i, fma(signal, load(d_hidden + i, m), load(d_shared + i, m)), m);
      });
      continue;
    }
    gemm_tn(hidden, size, n, d_hidden, hidden, tile.noisy, size, sums + at.w1, size);
    gemm_nn(n, size, hidden, d_hidden, hidden, op.w1, size, d_noisy, size, 0);
    for_lanes(n * size, [&](int i, auto m) {
      store(d_e + i, fma(signal, load(d_noisy + i, m), load(d_e + i, m)), m);
    });
  }
  const int n = tile.reaching(1);
  if (!shared.noisy && n > 0) {
    gemm_tn(hidden, size, n, d_shared, hidden, tile.e, size, sums + at.w1, size);
    gemm_nn(n, size, hidden, d_shared, hidden, op.w1, size, d_e, size, 1);
  }
  for (int r = 0; r < tile.count(); ++r)
    std::memcpy(grad_e + tile.token(r) * size, d_e + r * size, sizeof(float) * size);
}

}  // namespace

std::int64_t hda_trajectory_kept(const HDATrajectory& op) { return op.hidden + 2 * op.size; }

HDATrajectoryWeights hda_trajectory_pack(const HDATrajectory& op, Scratch& scratch) {
  float* w1_t = scratch.take(std::int64_t{op.size} * op.hidden);
  float* w2_t = scratch.take(std::int64_t{op.size} * op.hidden);
  transpose(op.hidden, op.size, op.w1, w1_t);
  transpose(op.size, op.hidden, op.w2, w2_t);
  return {w1_t, w2_t};
}

void hda_trajectory_forward(const HDATrajectory& op, float* x0, float* error, float* kept) {
  Scratch scratch;
  hda_trajectory_forward(op, hda_trajectory_pack(op, scratch), x0, error, kept);
}

void hda_trajectory_forward(const HDATrajectory& op, const HDATrajectoryWeights& weights,
                            float* x0, float* error, float* kept) {
  Scratch scratch;
  const Shared shared(op, weights, scratch);
  if (!shared.noisy) kept = nullptr;
  parallel_for(shared.tiles.tiles(),
               [&](std::int64_t t) { forward_tile(shared, t, x0, error, kept); });
  for (std::int64_t n = shared.tiles.count; n < op.tokens; ++n) error[n] = 0.0f;
}

void hda_trajectory_backward(const HDATrajectory& op, const float* grad_x0,
                             const float* grad_error, const float* kept,
                             const HDATrajectoryGradients& out) {
  Scratch scratch;
  const Shared shared(op, hda_trajectory_pack(op, scratch), scratch);
  if (!shared.noisy) kept = nullptr;
  const Sums at(op);
  const GroupSums groups(shared.tiles.tiles(), at.floats, scratch);
  groups.run([&](std::int64_t t, float* sums) {
    backward_tile(shared, t, grad_x0, grad_error, kept, out.embeddings, at, sums);
  });
  const std::int64_t weight = std::int64_t{op.size} * op.hidden;
  groups.add_up(at.w1, weight, out.w1);
  groups.add_up(at.w2, weight, out.w2);
  groups.add_up(at.b2, op.size, out.b2);
  groups.add_up(at.bias, (op.levels - 1) * op.hidden, out.level_bias);
  // Rows of capacity were not read: their gradient is 0.
  std::fill(out.embeddings + shared.tiles.count * op.size, out.embeddings + op.tokens * op.size,
            0.0f);
}

}  // namespace adarec
