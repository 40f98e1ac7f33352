// Register-blocked float32 products of row-major matrices for tiles that live in L1 and L2.
//
// A block of C of kRows rows by up to four vectors of columns stays in registers over the whole of
// K: with AVX-512 and NEON 6 x 4 vectors use 24 accumulators, 4 registers for a row of B and one
// for A; with AVX2 and SSE 6 x 2. K is summed in order, in runs that begin at zero and are then
// added to C: rounding errors grow with a run's length and not with K, nor with what C has gathered
// before. An element of C does not depend on M, on its row, or on how the caller cut the rows into
// tiles. Nothing allocates.
//
// On a core of an AMD EPYC (Zen 4), 96 rows, K and N of 64 to 512: 107 to 112 GFLOP/s, where
// torch.mm with a given output reaches 79 to 98, and it would need its operands in tensors. On one
// of Zen 5, 160 rows, K and N of 64 to 256: 221 to 226 of the 245 that registers alone reach.
#pragma once

#include "vec.h"

namespace adarec {

// What gemm_nn calls at every step of K of every block: nothing.
struct Nothing {
  void operator()() const {}
};

namespace detail {

constexpr int kRows = 6;
constexpr int kColumns = ADAREC_MANY_REGISTERS ? 4 : 2;  // vectors
constexpr int kRun = 128;

// C[R, V vectors] = beta * C + A B. A's element (m, k) is a[m * row + k * col]; with kTransposed
// row is 1 (A is read down its columns), otherwise col is 1. beta is 0 or 1.
template <int R, int V, bool kTail, bool kTransposed, typename Meanwhile>
inline __attribute__((always_inline)) void block(int depth, const float* __restrict a,
                                                 std::int64_t lda, const float* __restrict b,
                                                 std::int64_t ldb, float* __restrict c,
                                                 std::int64_t ldc, bool accumulate, Mask tail,
                                                 Meanwhile& meanwhile) {
  const std::int64_t row = kTransposed ? 1 : lda, col = kTransposed ? lda : 1;
  do {
    Vec sum[R][V];
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) sum[r][v] = zero();
    const int run = depth < kRun ? depth : kRun;
    for (int k = 0; k < run; ++k) {
      Vec right[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v)
        right[v] = kTail && v == V - 1 ? load(b + v * kWidth, tail) : load(b + v * kWidth);
      // Else a compiler may load B again for every row, and loads, not sums, set the pace.
      if constexpr (R > 1 && R < kRows)
        for (int v = 0; v < V; ++v) in_register(right[v]);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        const Vec left = set1(a[r * row]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[r][v] = fma(left, right[v], sum[r][v]);
      }
      a += col;
      b += ldb;
      meanwhile();
    }
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) {
        float* at = c + r * ldc + v * kWidth;
        if (kTail && v == V - 1)
          store(at, accumulate ? load(at, tail) + sum[r][v] : sum[r][v], tail);
        else
          store(at, accumulate ? load(at) + sum[r][v] : sum[r][v]);
      }
    accumulate = true;
    depth -= run;
  } while (depth > 0);
}

// All rows of one panel of columns.
template <int V, bool kTail, bool kTransposed, typename Meanwhile>
__attribute__((noinline)) void panel(int rows, int depth, const float* a, std::int64_t lda,
                                     const float* b, std::int64_t ldb, float* c, std::int64_t ldc,
                                     bool accumulate, Mask tail, Meanwhile& meanwhile) {
  const std::int64_t row = kTransposed ? 1 : lda;
  int m = 0;
#define ADAREC_BLOCK(R)                                                                       \
  block<R, V, kTail, kTransposed>(depth, a + m * row, lda, b, ldb, c + m * ldc, ldc, accumulate, \
                                  tail, meanwhile)
  // Seven and eight rows are two blocks of alike size: a small one does not keep the sums busy.
  for (; rows - m >= kRows && rows - m != 7 && rows - m != 8; m += kRows) ADAREC_BLOCK(kRows);
  if (rows - m >= kRows) {
    ADAREC_BLOCK(4);
    m += 4;
  }
  switch (rows - m) {
    case 5: ADAREC_BLOCK(5); break;
    case 4: ADAREC_BLOCK(4); break;
    case 3: ADAREC_BLOCK(3); break;
    case 2: ADAREC_BLOCK(2); break;
    case 1: ADAREC_BLOCK(1); break;
    default: break;
  }
#undef ADAREC_BLOCK
}

// R rows of as many whole panels of V vectors as there are columns for; returns how many these had.
template <int R, int V, typename Meanwhile>
__attribute__((noinline)) int wide_panels(int columns, int depth, const float* a, std::int64_t lda,
                                          const float* b, std::int64_t ldb, float* c,
                                          std::int64_t ldc, bool accumulate, Meanwhile& meanwhile) {
  int n = 0;
  for (; n + V * kWidth <= columns; n += V * kWidth)
    block<R, V, false, false>(depth, a, lda, b + n, ldb, c + n, ldc, accumulate, first(kWidth),
                              meanwhile);
  return n;
}

template <bool kTransposed, typename Meanwhile>
inline void product(int rows, int columns, int depth, const float* a, std::int64_t lda,
                    const float* b, std::int64_t ldb, float* c, std::int64_t ldc,
                    bool accumulate, Meanwhile& meanwhile) {
  constexpr int kPanel = kColumns * kWidth;
  const Mask full = first(kWidth);
  int n = 0;
  if constexpr (!kTransposed) {
    // So few rows would wait for their own last additions: more columns at a time.
    if (rows == 1)
      n = wide_panels<1, 4>(columns, depth, a, lda, b, ldb, c, ldc, accumulate, meanwhile);
    else if (rows == 2)
      n = wide_panels<2, 4>(columns, depth, a, lda, b, ldb, c, ldc, accumulate, meanwhile);
  }
  for (; n + kPanel <= columns; n += kPanel)
    panel<kColumns, false, kTransposed>(rows, depth, a, lda, b + n, ldb, c + n, ldc, accumulate,
                                        full, meanwhile);
  if (n == columns) return;
  const int rest = columns - n;
  const int lanes = rest % kWidth;
  const Mask tail = lanes ? first(lanes) : full;
#define ADAREC_PANEL(V)                                                                        \
  if (lanes)                                                                                   \
    panel<V, true, kTransposed>(rows, depth, a, lda, b + n, ldb, c + n, ldc, accumulate, tail, \
                                meanwhile);                                                    \
  else                                                                                         \
    panel<V, false, kTransposed>(rows, depth, a, lda, b + n, ldb, c + n, ldc, accumulate, tail, \
                                 meanwhile)
  switch (vectors(rest)) {
    case 1: ADAREC_PANEL(1); break;
    case 2: ADAREC_PANEL(2); break;
#if ADAREC_MANY_REGISTERS
    case 3: ADAREC_PANEL(3); break;
    case 4: ADAREC_PANEL(4); break;
#endif
    default: break;
  }
#undef ADAREC_PANEL
}

}  // namespace detail

// C[M, N] = beta * C + A[M, K] B[K, N], beta 0 or 1 (with 0 the old C is not read). meanwhile()
// is called K times a block of rows and columns: what asks for memory there costs next to nothing.
template <typename Meanwhile = Nothing>
inline void gemm_nn(int M, int N, int K, const float* A, std::int64_t lda, const float* B,
                    std::int64_t ldb, float* C, std::int64_t ldc, int beta,
                    Meanwhile&& meanwhile = {}) {
  detail::product<false>(M, N, K, A, lda, B, ldb, C, ldc, beta != 0, meanwhile);
}

// C[M, N] += A[K, M]^T B[K, N]: the gradient of a weight.
inline void gemm_tn(int M, int N, int K, const float* A, std::int64_t lda, const float* B,
                    std::int64_t ldb, float* C, std::int64_t ldc) {
  Nothing nothing;
  detail::product<true>(M, N, K, A, lda, B, ldb, C, ldc, true, nothing);
}

// dst[cols, rows] = src[rows, cols]^T, so that an [out, in] weight can stand on the right.
inline void transpose(int rows, int cols, const float* src, float* dst) {
  for (int r0 = 0; r0 < rows; r0 += 16)
    for (int c = 0; c < cols; ++c)
      for (int r = r0; r < rows && r < r0 + 16; ++r)
        dst[static_cast<std::int64_t>(c) * rows + r] = src[static_cast<std::int64_t>(r) * cols + c];
}

// sums[N] += column sums of A[M, N]: the gradient of a bias.
inline void add_columns(int M, int N, const float* A, std::int64_t lda, float* sums) {
  for_lanes(N, [&](int i, auto m) {
    Vec total = zero();
    for (int r = 0; r < M; ++r) total = total + load(A + r * lda + i, m);
    store(sums + i, load(sums + i, m) + total, m);
  });
}

}  // namespace adarec
