// Gradients of weights in two steps that give the same bits every time: partial products over fixed
// shares of the rows, and sums of the partials in a fixed order.
#pragma once

#include "moe_tile.cuh"

namespace adarec::cuda {

constexpr int kBatch = 32;  // pairs that a partial product takes at once

// A partial of slope^T x and of the slopes' column sums over a share of one level's rows.
// slope [levels, rows, slope_line], x [levels, rows, columns]; rows not reached are left out.
// Blocks: x over 64 slopes, y over 64 columns of x, z over levels * shares.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    partial_kernel(std::int64_t rows, int slopes, int slope_line, int columns, int shares,
                   const float* slope, const T* x, const std::int64_t* depth, float* product_out,
                   float* sum_out) {
  __shared__ int list[kThreads];
  __shared__ int warp_count[kWarps];
  alignas(16) __shared__ float left[kBatch * kSliceLine];
  alignas(16) __shared__ float right[kBatch * kSliceLine];
  const int level = static_cast<int>(blockIdx.z) / shares;
  const std::int64_t share = static_cast<int>(blockIdx.z) % shares;
  const std::int64_t begin = rows * share / shares, end = rows * (share + 1) / shares;
  const int first_slope = static_cast<int>(blockIdx.x) * kColumns;
  const int first_column = static_cast<int>(blockIdx.y) * kColumns;
  const std::int64_t base = static_cast<std::int64_t>(level) * rows;
  float total[4][4] = {};
  float column_sum = 0.0f;
  for (std::int64_t from = begin; from < end; from += kThreads) {
    // The rows of these that reach the level, in their order.
    const std::int64_t row = from + threadIdx.x;
    const bool reached = row < end && (depth == nullptr || depth[row] >= level);
    const unsigned votes = __ballot_sync(kAll, reached);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 0) warp_count[warp] = __popc(votes);
    __syncthreads();
    int before = 0, count = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) before += warp_count[w];
      count += warp_count[w];
    }
    if (reached) list[before + __popc(votes & ((1u << lane) - 1u))] = static_cast<int>(row - from);
    __syncthreads();
    for (int batch = 0; batch < count; batch += kBatch) {
      // Four neighbouring columns a thread: 16 threads a row, 16 rows at once.
#pragma unroll
      for (int i = 0; i < kBatch; i += kThreads / 16) {
        const int pair = i + threadIdx.x / 16, part = threadIdx.x % 16 * 4;
        float a[4] = {}, b[4] = {};
        if (batch + pair < count) {
          const std::int64_t at = base + from + list[batch + pair];
          if (first_slope + part < slope_line)
            Word<float>::load(slope + at * slope_line + first_slope + part, a);
          if (first_column + part < columns)
            Word<T>::load4(x + at * columns + first_column + part, b);
        }
        Word<float>::store(left + pair * kSliceLine + part, a);
        Word<float>::store(right + pair * kSliceLine + part, b);
      }
      __syncthreads();
#pragma unroll 4
      for (int pair = 0; pair < kBatch; ++pair) {
        float a[4], b[4];
        Word<float>::load(left + pair * kSliceLine + threadIdx.x / 16 * 4, a);
        Word<float>::load(right + pair * kSliceLine + threadIdx.x % 16 * 4, b);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) total[i][j] = fmaf(a[i], b[j], total[i][j]);
      }
      if (threadIdx.x < kColumns)
        for (int pair = 0; pair < kBatch; ++pair)
          column_sum += left[pair * kSliceLine + threadIdx.x];
      __syncthreads();
    }
  }
  float* to = product_out + static_cast<std::int64_t>(blockIdx.z) * slopes * columns;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int out = first_slope + threadIdx.x / 16 * 4 + i;
    const int in = first_column + threadIdx.x % 16 * 4;
    if (out < slopes && in < columns)
      Word<float>::store(to + static_cast<std::int64_t>(out) * columns + in, total[i]);
  }
  if (blockIdx.y == 0 && threadIdx.x < kColumns &&
      first_slope + static_cast<int>(threadIdx.x) < slopes)
    sum_out[static_cast<std::int64_t>(blockIdx.z) * slopes + first_slope + threadIdx.x] =
        column_sum;
}

// out[set][i] = sum over p < count of partials[set][p][i], in a fixed order.
struct Sum {
  const float* partials;
  float* out;
  std::int64_t size, sets;
  int count;
};

constexpr int kMaxSums = 6;
struct Sums {
  Sum job[kMaxSums];
  int count;

  void add(const float* partials, float* out, std::int64_t size, int parts, std::int64_t sets = 1) {
    job[count++] = {partials, out, size, sets, parts};
  }
};

// Blocks: x over 32 elements, y over jobs. Eight threads share an element's partials.
__global__ void __launch_bounds__(kThreads) sum_kernel(Sums sums) {
  __shared__ float part[kWarps][32];
  const Sum job = sums.job[blockIdx.y];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * 32 + lane;
  const bool mine = at < job.sets * job.size;
  float total = 0.0f;
  if (mine) {
    const float* from = job.partials + at / job.size * job.count * job.size + at % job.size;
#pragma unroll 8
    for (int p = warp; p < job.count; p += kWarps) total += from[p * job.size];
  }
  part[warp][lane] = total;
  __syncthreads();
  if (warp != 0 || !mine) return;
  total = 0.0f;
  for (int w = 0; w < kWarps; ++w) total += part[w][lane];
  job.out[at] = total;
}

}  // namespace adarec::cuda
