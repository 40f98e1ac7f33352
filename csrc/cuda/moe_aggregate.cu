// The gated aggregation's forward pass. A block takes a tile of rows: the router's product over
// its (level, row) pairs, gathered by 64; then a warp a row sums both experts' levels, several of
// them in flight, every output read once in 16-byte words; then the final gate.
#include "launch.cuh"
#include "moe_tile.cuh"

namespace adarec::cuda {

// Eq. 7 for all pairs of a tile, into t.gate. `content` is lines for kPairs rows.
template <typename T>
__device__ __forceinline__ void route(const Tile& t, const MoEAggregate& op, float* content) {
  const T* pooled = static_cast<const T*>(op.pooled);
  for (int from = 0; from < t.pairs; from += kPairs) {
    const int count = t.pairs - from < kPairs ? t.pairs - from : kPairs;
    if (pooled != nullptr) {
      load_lines<T>(t, content, count, op.dim,
                    [&](int i) { return pooled + place(t, op, from + i) * op.dim; });
    }
    float logit[4] = {};
    for (int first = 0; first < op.hidden; first += kColumns) {
      float before[4][4] = {};
      if (pooled != nullptr)
        product<4, true>(t, content, op.dim, op.router_w1, op.hidden, first, before);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int pair = threadIdx.x / 16 + 16 * i;
        if (pair >= count) continue;
        const float* bias = op.router_level_bias + t.pair[from + pair] % op.levels * op.hidden;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int column = first + threadIdx.x % 16 * 4 + j;
          if (column >= op.hidden) continue;
          const float x = before[i][j] + bias[column];
          logit[i] = fmaf(x * sigmoid(x), op.router_w2[column], logit[i]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float total = sum_lanes(logit[i], 16);
      const int pair = threadIdx.x / 16 + 16 * i;
      if (pair < count && threadIdx.x % 16 == 0)
        t.gate[t.pair[from + pair]] = sigmoid(total + op.router_b2[0]);
    }
  }
  __syncthreads();
}

// Eq. 8 and 9 of one row by one warp, into lines and memory.
template <typename T>
__device__ __forceinline__ void average(const Tile& t, const MoEAggregate& op,
                                        const MoEAggregateOut& out, int row, float* z_fine,
                                        float* z_coarse) {
  constexpr int kSize = Word<T>::kSize;
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
  const T* fine = static_cast<const T*>(op.fine) + at * op.dim;
  const T* coarse = static_cast<const T*>(op.coarse) + at * op.dim;
  for (int from = 0; from < words; from += lanes.each) {
    const int word = from + lanes.lane;
    float fine_sum[kSize] = {}, coarse_sum[kSize] = {};
    if (word < words) {
#pragma unroll 2
      for (int k = lanes.group; k < levels; k += lanes.levels) {
        const std::int64_t place = k * op.rows * op.dim + word * kSize;
        float f[kSize], c[kSize];
        Word<T>::load(fine + place, f);
        Word<T>::load(coarse + place, c);
        const float to_fine = moe::fine_weight(mass[k], gate[k]);
        const float to_coarse = moe::coarse_weight(mass[k], gate[k]);
#pragma unroll
        for (int i = 0; i < kSize; ++i) {
          fine_sum[i] = fmaf(to_fine, f[i], fine_sum[i]);
          coarse_sum[i] = fmaf(to_coarse, c[i], coarse_sum[i]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kSize; ++i)
      for (int step = lanes.each; step < 32; step *= 2) {
        fine_sum[i] += __shfl_xor_sync(kAll, fine_sum[i], step);
        coarse_sum[i] += __shfl_xor_sync(kAll, coarse_sum[i], step);
      }
    if (word < words && lanes.group == 0) {
#pragma unroll
      for (int i = 0; i < kSize; i += 4) {
        const int column = word * kSize + i;
        const float4 f = make_float4(fine_sum[i] / fine_total, fine_sum[i + 1] / fine_total,
                                     fine_sum[i + 2] / fine_total, fine_sum[i + 3] / fine_total);
        const float4 c =
            make_float4(coarse_sum[i] / coarse_total, coarse_sum[i + 1] / coarse_total,
                        coarse_sum[i + 2] / coarse_total, coarse_sum[i + 3] / coarse_total);
        *reinterpret_cast<float4*>(z_fine + column) = f;
        *reinterpret_cast<float4*>(z_coarse + column) = c;
        *reinterpret_cast<float4*>(out.z_fine + at * op.dim + column) = f;
        *reinterpret_cast<float4*>(out.z_coarse + at * op.dim + column) = c;
      }
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) forward_kernel(MoEAggregate op, MoEAggregateOut out) {
  const Tile t = make_tile(op, shared_memory(), kPairs, op.dim);
  route<T>(t, op, t.lines);
  for (int at = threadIdx.x; at < t.rows * op.levels; at += kThreads) {
    const int row = at % t.rows, k = at / t.rows;
    const bool reached = k < t.begin[row + 1] - t.begin[row];
    out.gates[k * op.rows + t.first + row] = reached ? t.gate[row * op.levels + k] : 0.0f;
  }
  // The averages take the place of the pooled rows.
  float* z_fine = t.lines;
  float* z_coarse = t.lines + kRows * t.line;
  for (int at = threadIdx.x; at < 2 * kRows * t.line; at += kThreads) t.lines[at] = 0.0f;
  __syncthreads();
  for (int row = threadIdx.x / 32; row < t.rows; row += kWarps)
    average<T>(t, op, out, row, z_fine + row * t.line, z_coarse + row * t.line);
  for (int first = 0; first < op.dim; first += kColumns) {
    float logit[1][4];
    product<1, true>(t, z_coarse, op.dim, op.gate_w, op.dim, first, logit);  // Eq. 10
    const int row = threadIdx.x / 16, column = first + threadIdx.x % 16 * 4;
    if (row >= t.rows || column >= op.dim) continue;
    float user[4];
#pragma unroll
    for (int j = 0; j < 4; ++j)
      user[j] = moe::fuse(sigmoid(logit[0][j] + op.gate_b[column + j]),
                          z_fine[row * t.line + column + j], z_coarse[row * t.line + column + j]);
    Word<T>::store4(static_cast<T*>(out.user) + (t.first + row) * op.dim + column, user);
  }
}

cudaError_t moe_aggregate_forward(const MoEAggregate& op, const MoEAggregateOut& out,
                                  cudaStream_t stream) {
  if (op.rows == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>((op.rows + kRows - 1) / kRows);
  const std::size_t bytes = tile_bytes(kPairs, op.dim, op.levels);
  return op.bf16 ? launch(forward_kernel<BFloat16>, blocks, kThreads, bytes, stream, op, out)
                 : launch(forward_kernel<float>, blocks, kThreads, bytes, stream, op, out);
}

}  // namespace adarec::cuda
