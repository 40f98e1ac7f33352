// Rows of tensors in float32 or bfloat16, to and from padded float32 rows of scratch; weights
// padded to whole vectors, as they stand or transposed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "parallel.h"
#include "vec.h"

namespace adarec {

// Columns of a padded row: a multiple of the widest vector.
inline int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

// Rows are short: a call of memcpy would take as long as the copy.
inline void copy_row(const float* from, int64_t columns, float* to) {
  for_lanes(static_cast<int>(columns), [&](int i, auto m) { store(to + i, load(from + i, m), m); });
}

// Row `row` of `source` [*, columns], padded with zeros.
inline void load_row(const void* source, bool bf16, int64_t row, int64_t columns, int64_t padded,
                     float* to) {
  if (bf16) {
    const BFloat16* from = static_cast<const BFloat16*>(source) + row * columns;
    for (int64_t c = 0; c < columns; ++c) {
      const std::uint32_t word = static_cast<std::uint32_t>(from[c].bits) << 16;
      std::memcpy(to + c, &word, sizeof word);
    }
  } else {
    copy_row(static_cast<const float*>(source) + row * columns, columns, to);
  }
  for (int64_t c = columns; c < padded; ++c) to[c] = 0.0f;
}

// bfloat16 rounds to nearest, ties to even; NaN stays NaN.
inline void store_row(const float* from, bool bf16, int64_t row, int64_t columns, void* target) {
  if (!bf16) {
    copy_row(from, columns, static_cast<float*>(target) + row * columns);
    return;
  }
  BFloat16* to = static_cast<BFloat16*>(target) + row * columns;
  for (int64_t c = 0; c < columns; ++c) {
    std::uint32_t word;
    std::memcpy(&word, from + c, sizeof word);
    const std::uint32_t rounded = (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
    const bool nan = (word & 0x7fffffffu) > 0x7f800000u;
    to[c].bits = static_cast<std::uint16_t>(nan ? 0x7fc0u : rounded);
  }
}

// Every row of to [rows, ld] becomes `row`.
inline void set_rows(int64_t rows, int64_t columns, const float* row, float* to, int64_t ld) {
  for (int64_t r = 0; r < rows; ++r) copy_row(row, columns, to + r * ld);
}

// dst [columns, ld_dst] = src [rows, ld_src]^T: 4 x 4 blocks in registers, 16 columns at a time so
// that the lines of dst stay in L1.
inline void transpose_rows(int64_t rows, int64_t columns, const float* src, int64_t ld_src,
                           float* dst, int64_t ld_dst) {
  for (int64_t c0 = 0; c0 < columns; c0 += 16) {
    const int64_t c1 = std::min(c0 + 16, columns);
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) {
      const float* from = src + r * ld_src;
      float* to = dst + r;
      int64_t c = c0;
      for (; c + 4 <= c1; c += 4) {
#if ADAREC_AVX512 || ADAREC_AVX2
        __m128 a = _mm_loadu_ps(from + c), b = _mm_loadu_ps(from + ld_src + c);
        __m128 d = _mm_loadu_ps(from + 2 * ld_src + c), e = _mm_loadu_ps(from + 3 * ld_src + c);
        _MM_TRANSPOSE4_PS(a, b, d, e);
        _mm_storeu_ps(to + c * ld_dst, a);
        _mm_storeu_ps(to + (c + 1) * ld_dst, b);
        _mm_storeu_ps(to + (c + 2) * ld_dst, d);
        _mm_storeu_ps(to + (c + 3) * ld_dst, e);
#else
        Vec square[kWidth];
        for (int i = 0; i < kWidth; ++i) square[i] = load(from + i * ld_src + c);
        transpose_lanes(square);
        for (int i = 0; i < kWidth; ++i) store(to + (c + i) * ld_dst, square[i]);
#endif
      }
      for (; c < c1; ++c)
        for (int i = 0; i < 4; ++i) to[c * ld_dst + i] = from[i * ld_src + c];
    }
    for (; r < rows; ++r)
      for (int64_t c = c0; c < c1; ++c) dst[c * ld_dst + r] = src[r * ld_src + c];
  }
}

// A weight [parts * out, in] as [in, parts * padded(out)], padding zero.
inline float* pack_transposed(const float* src, int64_t parts, int64_t out, int64_t in,
                              Scratch& scratch) {
  const int64_t wide = padded(out), ld = parts * wide;
  float* dst = wide == out ? scratch.take(in * ld) : scratch.zeros(in * ld);
  for (int64_t part = 0; part < parts; ++part)
    transpose_rows(out, in, src + part * out * in, in, dst + part * wide, ld);
  return dst;
}

// A weight [parts * out, in] as [parts * out_rows, padded(in)], padding zero; itself where nothing
// is to be padded.
inline const float* pack_rows(const float* src, int64_t parts, int64_t out, int64_t in,
                              int64_t out_rows, Scratch& scratch) {
  const int64_t wide = padded(in);
  if (out == out_rows && in == wide) return src;
  float* dst = scratch.zeros(parts * out_rows * wide);
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t o = 0; o < out; ++o)
      copy_row(src + (part * out + o) * in, in, dst + (part * out_rows + o) * wide);
  return dst;
}

}  // namespace adarec
