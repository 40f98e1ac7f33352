// Eq. 13: mean cross entropy over the catalogue, both gradients from the same logits.
//
// Everything is kept transposed: a tile of logits is [items, rows], so that a tile of the item
// embeddings is the plain operand of all three products and is never packed or transposed:
//   L = W H^T,   dH += P^T W,   dW = P H,   with P = softmax - one-hot.
// Rows come in panels and items in tiles, so that a tile of logits is made, exponentiated and
// multiplied in cache. dH needs no normaliser beforehand (it is rescaled as the running maximum
// rises); dW does, so its product is a second sweep, which reads the exponentials back, or makes
// them again where the catalogue is too large to keep them.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "catalogue.h"
#include "gemm.h"
#include "parallel.h"
#include "softmax_tile.h"
#include "vec.h"

namespace adarec {
namespace {

constexpr int kTile = 96;                 // items
constexpr int kBlock = 128;               // rows one pair of sweeps takes along
constexpr std::int64_t kGroups = 32;      // shares of the catalogue, whatever the thread count
constexpr std::int64_t kKept = 4 << 20;   // exponentials kept between the sweeps: 16 MiB

struct Block {
  const CrossEntropy& op;
  std::int64_t rows, panels, tiles, groups;
  bool keep;
  float* columns;       // H^T by panel, [panels, D, kPanel]
  float* lines;         // H, [panels * kPanel, D], 0 behind the last row
  float* exponentials;  // [panels, items, kPanel] if kept
  float* tile_maximum;  // [tiles, panels * kPanel]: what a kept exponential is relative to
  float* maximum;       // [groups, panels * kPanel]
  float* total;         // [groups, panels * kPanel]: sums of exponentials
  float* slope;         // [groups, panels * kPanel, D]: sums of exponential times embedding
  float* lse;           // [panels * kPanel]
  double* exact_lse;    // the same, before rounding

  std::int64_t width() const { return panels * kPanel; }
  std::int64_t first_tile(std::int64_t group) const { return tiles * group / groups; }
};

void logits_of(const Block& b, std::int64_t item, int items, std::int64_t panel, float* logits) {
  const int dim = static_cast<int>(b.op.dim);
  gemm_nn(items, kPanel, dim, b.op.weight + (item + 1) * dim, dim,
          b.columns + panel * dim * kPanel, kPanel, logits, kPanel, 0);
}

// A share of the catalogue: maxima, sums of exponentials, and their part of dH.
void first_sweep(const Block& b, std::int64_t group) {
  const std::int64_t dim = b.op.dim, width = b.width();
  Scratch scratch;
  float* tile = scratch.take(kTile * kPanel);
  float* maximum = b.maximum + group * width;
  float* total = b.total + group * width;
  float* slope = b.slope == nullptr ? nullptr : b.slope + group * width * dim;
  std::fill_n(maximum, width, std::numeric_limits<float>::lowest());
  std::fill_n(total, width, 0.0f);
  if (slope != nullptr) std::fill_n(slope, width * dim, 0.0f);
  for (std::int64_t t = b.first_tile(group); t < b.first_tile(group + 1); ++t) {
    const std::int64_t item = t * kTile;
    const int items = static_cast<int>(std::min<std::int64_t>(kTile, b.op.items - item));
    for (std::int64_t panel = 0; panel < b.panels; ++panel) {
      const std::int64_t row = panel * kPanel;
      float* logits = b.keep ? b.exponentials + (panel * b.op.items + item) * kPanel : tile;
      float* line = slope == nullptr ? nullptr : slope + row * dim;
      logits_of(b, item, items, panel, logits);
      raise_maximum(logits, items, maximum + row, total + row, line, dim);
      exponentiate(logits, items, maximum + row, total + row);
      if (b.keep) std::copy_n(maximum + row, kPanel, b.tile_maximum + t * width + row);
      if (line != nullptr)
        gemm_tn(kPanel, static_cast<int>(dim), items, logits, kPanel,
                b.op.weight + (item + 1) * dim, dim, line, dim);
    }
  }
}

// The shares of a panel put together: its log-sum-exp and, but for the target's own part, dH.
void combine(const Block& b, std::int64_t panel, float* grad_lines) {
  const std::int64_t dim = b.op.dim, width = b.width();
  for (std::int64_t row = panel * kPanel; row < (panel + 1) * kPanel; ++row) {
    float top = b.maximum[row];
    for (std::int64_t g = 1; g < b.groups; ++g) top = std::max(top, b.maximum[g * width + row]);
    double total = 0;
    for (std::int64_t g = 0; g < b.groups; ++g)
      total += static_cast<double>(b.total[g * width + row]) *
               std::exp(static_cast<double>(b.maximum[g * width + row]) - top);
    b.exact_lse[row] = top + std::log(total);
    b.lse[row] = static_cast<float>(b.exact_lse[row]);
    if (b.slope == nullptr) continue;
    float* line = grad_lines + row * dim;
    std::fill_n(line, dim, 0.0f);
    for (std::int64_t g = 0; g < b.groups; ++g) {
      const float share = static_cast<float>(
          std::exp(static_cast<double>(b.maximum[g * width + row]) - top) / total);
      const float* part = b.slope + (g * width + row) * dim;
      for (std::int64_t d = 0; d < dim; ++d) line[d] += share * part[d];
    }
  }
}

// Asks for memory line by line while a product is made, every eighth time that it is called.
struct Ahead {
  const float* next;
  int calls = 0;
  void operator()() {
    if (++calls % 8 != 0) return;
    prefetch(next);
    next += 64 / sizeof(float);
  }
};

// A share of the catalogue: its rows of dW, but for the targets' own part.
void second_sweep(const Block& b, std::int64_t group, float share, bool accumulate) {
  const std::int64_t dim = b.op.dim, width = b.width();
  Scratch scratch;
  float* tile = scratch.take(kTile * kPanel);
  float* scaled = scratch.take(kPanel * dim);
  alignas(64) float factor[kPanel];
  for (std::int64_t t = b.first_tile(group); t < b.first_tile(group + 1); ++t) {
    const std::int64_t item = t * kTile;
    const int items = static_cast<int>(std::min<std::int64_t>(kTile, b.op.items - item));
    for (std::int64_t panel = 0; panel < b.panels; ++panel) {
      const std::int64_t row = panel * kPanel;
      float* mass = tile;
      if (b.keep) {
        mass = b.exponentials + (panel * b.op.items + item) * kPanel;
        for (int v = 0; v < kPanel; v += kWidth)
          store(factor + v, set1(share) * exp(load(b.tile_maximum + t * width + row + v) -
                                              load(b.lse + row + v)));
      } else {
        logits_of(b, item, items, panel, tile);
        exponentiate(tile, items, b.lse + row, nullptr);
        std::fill_n(factor, kPanel, share);
      }
      for (int r = 0; r < kPanel; ++r)
        for_lanes(static_cast<int>(dim), [&](int i, auto m) {
          store(scaled + r * dim + i, load(b.lines + (row + r) * dim + i, m) * set1(factor[r]), m);
        });
      gemm_nn(items, static_cast<int>(dim), kPanel, mass, kPanel, scaled, dim,
              b.op.grad_weight + (item + 1) * dim, dim, accumulate || panel > 0,
              Ahead{mass + items * kPanel});  // the panel's next tile, if it was kept
    }
  }
}

}  // namespace

double linear_cross_entropy(const CrossEntropy& op) {
  const std::int64_t dim = op.dim;
  const bool grad = op.grad_weight != nullptr;
  Scratch scratch;
  std::int64_t* counted = scratch.take<std::int64_t>(op.rows);
  std::int64_t count = 0;
  for (std::int64_t r = 0; r < op.rows; ++r)
    if (op.targets[r] > 0) counted[count++] = r;
  if (grad) {
    if (count < op.rows) std::fill_n(op.grad_hidden, op.rows * dim, 0.0f);
    std::fill_n(op.grad_weight, (count == 0 ? op.items + 1 : 1) * dim, 0.0f);
  }
  if (count == 0) return 0;

  const std::int64_t blocks = (count + kBlock - 1) / kBlock;
  const std::int64_t most = (count + blocks - 1) / blocks;  // rows a block
  Block b{op};
  b.panels = (most + kPanel - 1) / kPanel;
  b.tiles = (op.items + kTile - 1) / kTile;
  b.groups = std::min(b.tiles, kGroups);
  const std::int64_t width = b.width();
  b.keep = grad && op.items * width <= kKept;
  b.columns = scratch.take(width * dim);
  b.lines = scratch.take(width * dim);
  b.maximum = scratch.take(b.groups * width);
  b.total = scratch.take(b.groups * width);
  b.lse = scratch.take(width);
  b.exact_lse = scratch.take<double>(width);
  b.exponentials = b.keep ? scratch.take(op.items * width) : nullptr;
  b.tile_maximum = b.keep ? scratch.take(b.tiles * width) : nullptr;
  b.slope = grad ? scratch.take(b.groups * width * dim) : nullptr;
  float* grad_lines = grad ? scratch.take(width * dim) : nullptr;

  const float share = static_cast<float>(1.0 / static_cast<double>(count));
  double loss = 0;
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::int64_t* index = counted + count * block / blocks;
    b.rows = count * (block + 1) / blocks - count * block / blocks;
    for (std::int64_t r = 0; r < width; ++r) {
      float* line = b.lines + r * dim;
      if (r < b.rows) std::copy_n(op.hidden + index[r] * dim, dim, line);
      else std::fill_n(line, dim, 0.0f);
      float* column = b.columns + r / kPanel * kPanel * dim + r % kPanel;
      for (std::int64_t d = 0; d < dim; ++d) column[d * kPanel] = line[d];
    }
    parallel_for(b.groups, [&](std::int64_t group) { first_sweep(b, group); });
    parallel_for(b.panels, [&](std::int64_t panel) { combine(b, panel, grad_lines); });
    if (grad)
      parallel_for(b.groups, [&](std::int64_t g) { second_sweep(b, g, share, block > 0); });
    for (std::int64_t r = 0; r < b.rows; ++r) {
      const float* line = b.lines + r * dim;
      const float* embedding = op.weight + op.targets[index[r]] * dim;
      float logit = 0;  // in the order of the product, so that the two agree to the last bit
      for (std::int64_t d = 0; d < dim; ++d) logit = fma(embedding[d], line[d], logit);
      loss += b.exact_lse[r] - logit;
      if (!grad) continue;
      float* to_hidden = op.grad_hidden + index[r] * dim;
      float* to_weight = op.grad_weight + op.targets[index[r]] * dim;
      for (std::int64_t d = 0; d < dim; ++d) {
        to_hidden[d] = share * (grad_lines[r * dim + d] - embedding[d]);
        to_weight[d] -= share * line[d];
      }
    }
  }
  return loss / static_cast<double>(count);
}

}  // namespace adarec
