// The gated aggregation's backward pass in three steps: a block a tile of rows computes every
// gradient of rows and leaves the slopes that meet weights; split products of those slopes give
// partial weight gradients; sums of the partials in a fixed order give the weight gradients.
#include "launch.cuh"
#include "moe_tile.cuh"
#include "weight_gradients.cuh"

namespace adarec::cuda {
namespace {

constexpr std::int64_t kShare = 512;  // rows of a partial product, at least
constexpr std::int64_t kShares = 16;  // and partials a level, at most

// The scratch, in elements from its start.
struct Layout {
  int hidden_line;   // H in whole 16-byte words
  int tiles, shares;
  std::int64_t gate_slope;    // [R, D]: of Eq. 10's logits
  std::int64_t level_logit;   // [tiles, K]: slopes of Eq. 7's logits, summed by level
  std::int64_t logit;         // [tiles]: and over the levels
  std::int64_t level_total;   // [K]: the sums of level_logit
  std::int64_t hidden_slope;  // [K, R, hidden_line]: of the router's hidden layer before SiLU
  std::int64_t w2;            // [tiles, H]
  std::int64_t gate_w, gate_b;            // [shares, D, D], [shares, D]
  std::int64_t router_w1, level_bias;     // [K * shares, H, D], [K * shares, H]
  std::int64_t total;

  explicit Layout(const MoEAggregate& op) {
    const std::int64_t rows = op.rows, dim = op.dim, hidden = op.hidden, levels = op.levels;
    hidden_line = static_cast<int>((hidden + 3) / 4 * 4);
    tiles = static_cast<int>((rows + kRows - 1) / kRows);
    const std::int64_t wanted = (rows + kShare - 1) / kShare;
    shares = static_cast<int>(wanted < 1 ? 1 : wanted < kShares ? wanted : kShares);
    const bool content = op.pooled != nullptr;
    total = 0;
    const auto part = [&](std::int64_t count) {
      const std::int64_t at = total;
      total += (count + 3) / 4 * 4;  // whole 16-byte words
      return at;
    };
    gate_slope = part(rows * dim);
    level_logit = part(tiles * levels);
    logit = part(tiles);
    level_total = part(levels);
    hidden_slope = part(content ? levels * rows * hidden_line : 0);
    w2 = part(content ? tiles * hidden : 0);
    gate_w = part(shares * dim * dim);
    gate_b = part(shares * dim);
    router_w1 = part(content ? levels * shares * hidden * dim : 0);
    level_bias = part(content ? levels * shares * hidden : 0);
  }
};

// The five operands of the fusion's backward pass lie in lines of kRows rows each.
enum Region { kCoarse, kFineSlope, kCoarseSlope, kGateSlope, kFine, kRegions };

// Eq. 10 and 11 backwards: the slopes of both averages, in shared memory.
template <typename T>
__device__ __forceinline__ void fusion_backward(const Tile& t, const MoEAggregate& op,
                                                const MoEAggregateGradients& grad,
                                                float* gate_slope) {
  const auto region = [&](int which) { return t.lines + which * kRows * t.line; };
  load_lines<float>(t, region(kCoarse), t.rows, op.dim,
                    [&](int i) { return grad.z_coarse + (t.first + i) * op.dim; });
  load_lines<float>(t, region(kFine), t.rows, op.dim,
                    [&](int i) { return grad.z_fine + (t.first + i) * op.dim; });
  // Lines behind the last row, and columns behind the last one, take part in the second product.
  for (int at = threadIdx.x; at < kRows * t.line; at += kThreads) region(kGateSlope)[at] = 0.0f;
  const int row = threadIdx.x / 16;
  const std::int64_t at = t.first + row;
  for (int first = 0; first < op.dim; first += kColumns) {
    float logit[1][4];
    product<1, true>(t, region(kCoarse), op.dim, op.gate_w, op.dim, first, logit);
    const int column = first + threadIdx.x % 16 * 4;
    if (row >= t.rows || column >= op.dim) continue;
    float upstream[4], slope[4];
    Word<T>::load4(static_cast<const T*>(grad.grad_user) + at * op.dim + column, upstream);
    const bool capacity = t.begin[row] == t.begin[row + 1];  // its upstream may be anything
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int place = row * t.line + column + j;
      const float gate = sigmoid(logit[0][j] + op.gate_b[column + j]);
      const auto g = moe::fuse_gradient(capacity ? 0.0f : upstream[j], gate, region(kFine)[place],
                                        region(kCoarse)[place]);
      region(kFineSlope)[place] = g.fine;
      region(kCoarseSlope)[place] = g.coarse;
      region(kGateSlope)[place] = slope[j] = g.logit;
    }
    Word<float>::store4(gate_slope + at * op.dim + column, slope);
  }
  for (int first = 0; first < op.dim; first += kColumns) {
    float through[1][4];
    product<1, false>(t, region(kGateSlope), op.dim, op.gate_w, op.dim, first, through);
    const int column = first + threadIdx.x % 16 * 4;
    if (row >= t.rows || column >= op.dim) continue;
#pragma unroll
    for (int j = 0; j < 4; ++j) region(kCoarseSlope)[row * t.line + column + j] += through[0][j];
  }
  __syncthreads();
}

// One 16-byte word of an expert's output backwards: writes scale * slope, returns
// slope . (output - average).
template <typename T>
__device__ __forceinline__ float word_backward(const T* output, T* gradient, const float* slope,
                                               const float* average, float scale) {
  constexpr int kSize = Word<T>::kSize;
  float value[kSize], result[kSize];
  Word<T>::load(output, value);
  float along = 0.0f;
#pragma unroll
  for (int i = 0; i < kSize; i += 4) {
    float s[4], mean[4];
    Word<float>::load(slope + i, s);
    Word<float>::load(average + i, mean);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      along = fmaf(s[j], value[i + j] - mean[j], along);
      result[i + j] = scale * s[j];
    }
  }
  Word<T>::store(gradient, result);
  return along;
}

// Eq. 8 and 9 of one row backwards, by one warp.
template <typename T>
__device__ __forceinline__ void average_backward(const Tile& t, const MoEAggregate& op,
                                                 const MoEAggregateGradients& grad, int row) {
  constexpr int kSize = Word<T>::kSize;
  const auto line = [&](int which) { return t.lines + (which * kRows + row) * t.line; };
  const int levels = t.begin[row + 1] - t.begin[row];
  const float* gate = t.gate + row * op.levels;
  const float* mass = t.mass + row * op.levels;
  float fine_total = moe::kEpsilon, coarse_total = moe::kEpsilon;
  for (int k = 0; k < levels; ++k) {
    fine_total += moe::fine_weight(mass[k], gate[k]);
    coarse_total += moe::coarse_weight(mass[k], gate[k]);
  }
  const int words = op.dim / kSize;
  const Lanes lanes(words);
  const std::int64_t at = t.first + row;
  for (int from = 0; from < levels; from += lanes.levels) {
    const int k = from + lanes.group;
    const bool reached = k < levels;
    const std::int64_t place = k * op.rows + at;
    float fine_along = 0.0f, coarse_along = 0.0f;
    if (reached) {
      const float to_fine = moe::fine_weight(mass[k], gate[k]) / fine_total;
      const float to_coarse = moe::coarse_weight(mass[k], gate[k]) / coarse_total;
      for (int word = lanes.lane; word < words; word += lanes.each) {
        const int column = word * kSize;
        const std::int64_t element = place * op.dim + column;
        fine_along += word_backward(static_cast<const T*>(op.fine) + element,
                                    static_cast<T*>(grad.fine) + element,
                                    line(kFineSlope) + column, line(kFine) + column, to_fine);
        coarse_along +=
            word_backward(static_cast<const T*>(op.coarse) + element,
                          static_cast<T*>(grad.coarse) + element, line(kCoarseSlope) + column,
                          line(kCoarse) + column, to_coarse);
      }
    }
    fine_along = sum_lanes(fine_along, lanes.each);
    coarse_along = sum_lanes(coarse_along, lanes.each);
    if (reached && lanes.lane == 0) {
      const moe::LevelGradient g = moe::level_gradient(
          mass[k], gate[k], fine_along / fine_total, coarse_along / coarse_total);
      grad.level_mass[place] = g.mass;
      t.logit[row * op.levels + k] = g.logit;
    }
  }
  for (int k = levels + threadIdx.x % 32; k < op.levels; k += 32)
    grad.level_mass[k * op.rows + at] = 0.0f;
}

// The slopes of the router's logits, summed over a tile by level and in all. The caller
// synchronises before.
__device__ __forceinline__ void sum_logits(const Tile& t, const MoEAggregate& op, float* by_level,
                                           float* all) {
  for (int k = threadIdx.x; k < op.levels; k += kThreads) {
    float total = 0.0f;
    for (int row = 0; row < t.rows; ++row)
      if (k < t.begin[row + 1] - t.begin[row]) total += t.logit[row * op.levels + k];
    by_level[k] = total;
  }
  if (threadIdx.x / 32 == 1) {
    float total = 0.0f;
    for (int pair = threadIdx.x % 32; pair < t.pairs; pair += 32) total += t.logit[t.pair[pair]];
    total = sum_lanes(total, 32);
    if (threadIdx.x % 32 == 0) *all = total;
  }
}

// Eq. 7 backwards for all pairs of a tile: the hidden layer's slopes, w2's partial gradient, and
// the gradient of the pooled rows.
template <typename T>
__device__ __forceinline__ void router_backward(const Tile& t, const MoEAggregate& op,
                                                const MoEAggregateGradients& grad,
                                                const Layout& layout) {
  const T* pooled = static_cast<const T*>(op.pooled);
  float* hidden_slope = grad.scratch + layout.hidden_slope;
  float* w2 = grad.scratch + layout.w2 + static_cast<std::int64_t>(blockIdx.x) * op.hidden;
  for (int h = threadIdx.x; h < op.hidden; h += kThreads) w2[h] = 0.0f;
  for (int from = 0; from < t.pairs; from += kPairs) {
    const int count = t.pairs - from < kPairs ? t.pairs - from : kPairs;
    load_lines<T>(t, t.lines, count, op.dim,
                  [&](int i) { return pooled + place(t, op, from + i) * op.dim; });
    for (int first = 0; first < op.hidden; first += kColumns) {
      float before[4][4], active[4] = {};
      product<4, true>(t, t.lines, op.dim, op.router_w1, op.hidden, first, before);
      const int column = first + threadIdx.x % 16 * 4;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int pair = threadIdx.x / 16 + 16 * i;
        if (pair >= count) continue;
        const float logit = t.logit[t.pair[from + pair]];
        const float* bias = op.router_level_bias + t.pair[from + pair] % op.levels * op.hidden;
        float* slope = hidden_slope + place(t, op, from + pair) * layout.hidden_line;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (column + j >= op.hidden) continue;
          const float x = before[i][j] + bias[column + j], s = sigmoid(x);
          active[j] = fmaf(logit, x * s, active[j]);
          slope[column + j] = logit * op.router_w2[column + j] * fmaf(x * s, 1.0f - s, s);
        }
      }
      // Sixteen threads hold a column: two in every warp. The slice is free after a product.
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float both = active[j] + __shfl_xor_sync(kAll, active[j], 16);
        if (threadIdx.x % 32 < 16)
          t.slice[threadIdx.x / 32 * kColumns + threadIdx.x % 16 * 4 + j] = both;
      }
      __syncthreads();
      if (threadIdx.x < kColumns && first + static_cast<int>(threadIdx.x) < op.hidden) {
        float total = 0.0f;
        for (int warp = 0; warp < kWarps; ++warp) total += t.slice[warp * kColumns + threadIdx.x];
        w2[first + threadIdx.x] += total;
      }
    }
    __syncthreads();
    load_lines<float>(t, t.lines, count, op.hidden, [&](int i) {
      return hidden_slope + place(t, op, from + i) * layout.hidden_line;
    });
    for (int first = 0; first < op.dim; first += kColumns) {
      float total[4][4];
      product<4, false>(t, t.lines, op.hidden, op.router_w1, op.dim, first, total);
      const int column = first + threadIdx.x % 16 * 4;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int pair = threadIdx.x / 16 + 16 * i;
        if (pair >= count || column >= op.dim) continue;
        Word<T>::store4(static_cast<T*>(grad.pooled) + place(t, op, from + pair) * op.dim + column,
                        total[i]);
      }
    }
    __syncthreads();
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(MoEAggregate op, MoEAggregateGradients grad, Layout layout, int lines) {
  const int size = op.dim > op.hidden ? op.dim : op.hidden;
  const Tile t = make_tile(op, shared_memory(), lines, size);
  for (int at = threadIdx.x; at < t.rows * op.levels; at += kThreads) {
    const int row = at % t.rows, k = at / t.rows;
    t.gate[row * op.levels + k] = grad.gates[k * op.rows + t.first + row];
  }
  fusion_backward<T>(t, op, grad, grad.scratch + layout.gate_slope);
  for (int row = threadIdx.x / 32; row < t.rows; row += kWarps)
    average_backward<T>(t, op, grad, row);
  __syncthreads();
  sum_logits(t, op, grad.scratch + layout.level_logit + std::int64_t{blockIdx.x} * op.levels,
             grad.scratch + layout.logit + blockIdx.x);
  if (op.pooled != nullptr) router_backward<T>(t, op, grad, layout);
}

// Where the router sees the level alone: the gradients of w2 and of the level biases. One block.
__global__ void __launch_bounds__(kThreads)
    level_kernel(MoEAggregate op, const float* level_logit, MoEAggregateGradients grad) {
  for (int h = threadIdx.x; h < op.hidden; h += kThreads) {
    float total = 0.0f;
    for (int k = 0; k < op.levels; ++k) {
      const float x = op.router_level_bias[k * op.hidden + h], s = sigmoid(x);
      total = fmaf(level_logit[k], x * s, total);
      grad.router_level_bias[k * op.hidden + h] =
          level_logit[k] * op.router_w2[h] * fmaf(x * s, 1.0f - s, s);
    }
    grad.router_w2[h] = total;
  }
}

template <typename T>
cudaError_t backward(const MoEAggregate& op, const MoEAggregateGradients& grad,
                     cudaStream_t stream) {
  const Layout layout(op);
  float* scratch = grad.scratch;
  const bool content = op.pooled != nullptr;
  const int size = op.dim > op.hidden ? op.dim : op.hidden;
  const int lines = kRegions * kRows > kPairs ? kRegions * kRows : kPairs;
  const auto pieces = [](int count) {
    return static_cast<unsigned>((count + kColumns - 1) / kColumns);
  };
  cudaError_t error = cudaSuccess;
  const auto step = [&](auto&& run) {
    if (error == cudaSuccess) error = run();
  };
  if (op.rows > 0)
    step([&] {
      return launch(backward_kernel<T>, static_cast<unsigned>(layout.tiles), kThreads,
                    tile_bytes(lines, size, op.levels), stream, op, grad, layout, lines);
    });
  step([&] {
    return launch(partial_kernel<float>,
                  dim3(pieces(op.dim), pieces(op.dim), static_cast<unsigned>(layout.shares)),
                  kThreads, 0, stream, op.rows, op.dim, op.dim, op.dim, layout.shares,
                  static_cast<const float*>(scratch + layout.gate_slope), grad.z_coarse,
                  static_cast<const std::int64_t*>(nullptr), scratch + layout.gate_w,
                  scratch + layout.gate_b);
  });
  const std::int64_t w1_size = static_cast<std::int64_t>(op.hidden) * op.dim;
  Sums sums{};
  sums.add(scratch + layout.gate_w, grad.gate_w, static_cast<std::int64_t>(op.dim) * op.dim,
           layout.shares);
  sums.add(scratch + layout.gate_b, grad.gate_b, op.dim, layout.shares);
  sums.add(scratch + layout.logit, grad.router_b2, 1, layout.tiles);
  if (content) {
    step([&] {
      return launch(partial_kernel<T>,
                    dim3(pieces(op.hidden), pieces(op.dim),
                         static_cast<unsigned>(op.levels * layout.shares)),
                    kThreads, 0, stream, op.rows, op.hidden, layout.hidden_line, op.dim,
                    layout.shares, static_cast<const float*>(scratch + layout.hidden_slope),
                    static_cast<const T*>(op.pooled), op.depth, scratch + layout.router_w1,
                    scratch + layout.level_bias);
    });
    sums.add(scratch + layout.router_w1, grad.router_w1, w1_size, op.levels * layout.shares);
    sums.add(scratch + layout.level_bias, grad.router_level_bias, op.hidden, layout.shares,
             op.levels);
    sums.add(scratch + layout.w2, grad.router_w2, op.hidden, layout.tiles);
  } else {
    sums.add(scratch + layout.level_logit, scratch + layout.level_total, op.levels, layout.tiles);
    step([&] { return cudaMemsetAsync(grad.router_w1, 0, sizeof(float) * w1_size, stream); });
  }
  std::int64_t most = 0;
  for (int i = 0; i < sums.count; ++i)
    most = sums.job[i].sets * sums.job[i].size > most ? sums.job[i].sets * sums.job[i].size : most;
  step([&] {
    return launch(sum_kernel,
                  dim3(static_cast<unsigned>((most + 31) / 32), static_cast<unsigned>(sums.count)),
                  kThreads, 0, stream, sums);
  });
  if (!content)
    step([&] {
      return launch(level_kernel, 1u, kThreads, 0, stream, op,
                    static_cast<const float*>(scratch + layout.level_total), grad);
    });
  return error;
}

}  // namespace

std::int64_t moe_aggregate_scratch(const MoEAggregate& op) { return Layout(op).total; }

cudaError_t moe_aggregate_backward(const MoEAggregate& op, const MoEAggregateGradients& grad,
                                   cudaStream_t stream) {
  return op.bf16 ? backward<BFloat16>(op, grad, stream) : backward<float>(op, grad, stream);
}

}  // namespace adarec::cuda
