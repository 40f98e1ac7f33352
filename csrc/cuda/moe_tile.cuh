// What the kernels of the gated aggregation share: rows of 16-byte words, a tile of rows and its
// (level, row) pairs, and a product of a tile in shared memory with a weight.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../moe_tile.h"
#include "moe_aggregate.h"

namespace adarec::cuda {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kRows = 16;      // rows of a tile
constexpr int kPairs = 64;     // (level, row) pairs of one product
constexpr int kColumns = 64;   // columns of one product
constexpr int kDepth = 32;     // of a weight's slice in shared memory
constexpr int kSliceLine = kColumns + 4;
constexpr unsigned kAll = 0xffffffffu;

struct BFloat16 {
  std::uint16_t bits;
};

__device__ __forceinline__ float widen(std::uint32_t word) { return __uint_as_float(word); }

// To nearest, ties to even; NaN stays NaN.
__device__ __forceinline__ std::uint32_t narrow(float x) {
  const std::uint32_t word = __float_as_uint(x);
  if ((word & 0x7fffffffu) > 0x7f800000u) return 0x7fc0u;
  return (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
}

// 16 bytes of a row: 4 float32 or 8 bfloat16.
template <typename T>
struct Word;

template <>
struct Word<float> {
  static constexpr int kSize = 4;
  static __device__ __forceinline__ void load(const float* from, float (&to)[kSize]) {
    const float4 w = *reinterpret_cast<const float4*>(from);
    to[0] = w.x, to[1] = w.y, to[2] = w.z, to[3] = w.w;
  }
  static __device__ __forceinline__ void store(float* to, const float (&from)[kSize]) {
    *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
  }
  static __device__ __forceinline__ void load4(const float* from, float (&to)[4]) {
    load(from, to);
  }
  static __device__ __forceinline__ void store4(float* to, const float (&from)[4]) {
    store(to, from);
  }
};

template <>
struct Word<BFloat16> {
  static constexpr int kSize = 8;
  static __device__ __forceinline__ std::uint32_t pair(float first, float second) {
    return narrow(first) | narrow(second) << 16;
  }
  static __device__ __forceinline__ void load(const BFloat16* from, float (&to)[kSize]) {
    const uint4 w = *reinterpret_cast<const uint4*>(from);
    const std::uint32_t part[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      to[2 * i] = widen(part[i] << 16);
      to[2 * i + 1] = widen(part[i] & 0xffff0000u);
    }
  }
  static __device__ __forceinline__ void store(BFloat16* to, const float (&from)[kSize]) {
    *reinterpret_cast<uint4*>(to) = make_uint4(pair(from[0], from[1]), pair(from[2], from[3]),
                                               pair(from[4], from[5]), pair(from[6], from[7]));
  }
  static __device__ __forceinline__ void load4(const BFloat16* from, float (&to)[4]) {
    const uint2 w = *reinterpret_cast<const uint2*>(from);
    to[0] = widen(w.x << 16), to[1] = widen(w.x & 0xffff0000u);
    to[2] = widen(w.y << 16), to[3] = widen(w.y & 0xffff0000u);
  }
  static __device__ __forceinline__ void store4(BFloat16* to, const float (&from)[4]) {
    *reinterpret_cast<uint2*>(to) = make_uint2(pair(from[0], from[1]), pair(from[2], from[3]));
  }
};

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// Length of a line of a tile in shared memory: whole slices, and 16 bytes against bank conflicts.
__host__ __device__ __forceinline__ int line_length(int size) {
  return (size + kDepth - 1) / kDepth * kDepth + 4;
}

// What a tile of rows keeps in shared memory.
struct Tile {
  float* lines;    // [lines, line]: operands of the products
  float* slice;    // [kDepth, kSliceLine]: of a weight
  float* gate;     // [kRows, K]: g
  float* mass;     // [kRows, K]: m
  float* logit;    // [kRows, K]: the slope of the router's logit (backward)
  int* pair;       // [kRows * K]: row * K + level of each pair, by row
  int* begin;      // [kRows + 1]: each row's first pair
  int line;        // length of a line
  std::int64_t first;  // row
  int rows, pairs;
};

// Bytes of shared memory for a tile of so many lines.
__host__ __device__ __forceinline__ std::size_t tile_bytes(int lines, int size, int levels) {
  return sizeof(float) * (static_cast<std::size_t>(lines) * line_length(size) +
                          kDepth * kSliceLine + 3 * kRows * levels) +
         sizeof(int) * (kRows * levels + kRows + 1);
}

// Lays a tile out and lists its pairs. Depths beyond the levels are cut: the device cannot raise.
__device__ __forceinline__ Tile make_tile(const MoEAggregate& op, float* memory, int lines,
                                          int size) {
  Tile t;
  t.line = line_length(size);
  t.lines = memory;
  t.slice = t.lines + lines * t.line;
  t.gate = t.slice + kDepth * kSliceLine;
  t.mass = t.gate + kRows * op.levels;
  t.logit = t.mass + kRows * op.levels;
  t.pair = reinterpret_cast<int*>(t.logit + kRows * op.levels);
  t.begin = t.pair + kRows * op.levels;
  t.first = static_cast<std::int64_t>(blockIdx.x) * kRows;
  const std::int64_t left = op.rows - t.first;
  t.rows = left < kRows ? static_cast<int>(left) : kRows;
  const int row = threadIdx.x;
  if (row < t.rows) {
    int begin = 0, count = 0;
    for (int r = 0; r <= row; ++r) {
      const std::int64_t depth = op.depth[t.first + r];
      begin += count;
      count = depth < 0 ? 0 : 1 + static_cast<int>(depth < op.levels ? depth : op.levels - 1);
    }
    t.begin[row] = begin;
    if (row == t.rows - 1) t.begin[t.rows] = begin + count;
    for (int k = 0; k < count; ++k) {
      t.pair[begin + k] = row * op.levels + k;
      t.mass[row * op.levels + k] = op.level_mass[k * op.rows + t.first + row];
    }
  }
  __syncthreads();
  t.pairs = t.begin[t.rows];
  return t;
}

// Where a pair lies in a [K, R, *] tensor, counted in rows.
__device__ __forceinline__ std::int64_t place(const Tile& t, const MoEAggregate& op, int pair) {
  const int at = t.pair[pair];
  return static_cast<std::int64_t>(at % op.levels) * op.rows + t.first + at / op.levels;
}

// Copies `count` rows of length `size` to lines, zeros behind their ends; source(i) is row i.
// Whole-block; the caller synchronises.
template <typename T, typename Source>
__device__ __forceinline__ void load_lines(const Tile& t, float* lines, int count, int size,
                                           Source source) {
  constexpr int kSize = Word<T>::kSize;
  const int words = (t.line - 4) / kSize;
  for (int at = threadIdx.x; at < count * words; at += kThreads) {
    const int row = at / words, column = at % words * kSize;
    float word[kSize] = {};
    // A hidden layer's size need not be a multiple of the word.
    if (column + kSize <= size) {
      Word<T>::load(source(row) + column, word);
    } else {
#pragma unroll
      for (int i = 0; i < kSize; ++i)
        if (column + i < size) {
          if constexpr (kSize == 4) word[i] = source(row)[column + i];
        }
    }
#pragma unroll
    for (int i = 0; i < kSize; i += 4)
      *reinterpret_cast<float4*>(lines + row * t.line + column + i) =
          make_float4(word[i], word[i + 1], word[i + 2], word[i + 3]);
  }
}

// total[i][j] = sum over d < depth of lines[row][d] * B[d][column], with row = threadIdx / 16 +
// 16 i and column = first + 4 (threadIdx % 16) + j. B[d][n] is weight[n * depth + d] if
// kTransposed, weight[d * columns + n] if not, and 0 for n >= columns. Whole-block; synchronises
// before and after it uses the slice.
template <int kRowsEach, bool kTransposed>
__device__ __forceinline__ void product(const Tile& t, const float* lines, int depth,
                                        const float* weight, int columns, int first,
                                        float (&total)[kRowsEach][4]) {
#pragma unroll
  for (int i = 0; i < kRowsEach; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) total[i][j] = 0.0f;
  const float* row = lines + threadIdx.x / 16 * t.line;
  const float* column = t.slice + threadIdx.x % 16 * 4;
  for (int from = 0; from < depth; from += kDepth) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kDepth * kColumns / kThreads; ++i) {
      const int at = threadIdx.x + i * kThreads;
      const int d = kTransposed ? at % kDepth : at / kColumns;
      const int n = kTransposed ? at / kDepth : at % kColumns;
      const bool inside = from + d < depth && first + n < columns;
      const std::int64_t place = kTransposed
                                     ? static_cast<std::int64_t>(first + n) * depth + from + d
                                     : static_cast<std::int64_t>(from + d) * columns + first + n;
      t.slice[d * kSliceLine + n] = inside ? weight[place] : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int d = 0; d < kDepth; d += 4) {
      float left[kRowsEach][4];
#pragma unroll
      for (int i = 0; i < kRowsEach; ++i)
        Word<float>::load(row + i * 16 * t.line + from + d, left[i]);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float right[4];
        Word<float>::load(column + (d + e) * kSliceLine, right);
#pragma unroll
        for (int i = 0; i < kRowsEach; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) total[i][j] = fmaf(left[i][e], right[j], total[i][j]);
      }
    }
  }
  __syncthreads();
}

// Sum over aligned groups of `lanes` lanes, a power of two; every lane gets it.
__device__ __forceinline__ float sum_lanes(float x, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
  return x;
}

// How a warp reads a row: as many lanes as it has words (a power of two up to 32) read one level,
// the others the levels beside it.
struct Lanes {
  int each;    // lanes a level
  int levels;  // levels at once
  int lane, group;
  __device__ __forceinline__ explicit Lanes(int words) : each(1) {
    while (each < words && each < 32) each *= 2;
    levels = 32 / each;
    lane = threadIdx.x % 32 % each;
    group = threadIdx.x % 32 / each;
  }
};

}  // namespace adarec::cuda
