// SIMD vectors of float: 16 lanes on AVX-512, 8 on AVX2 + FMA, 4 on any other processor (NEON on
// ARM), and the functions the ops need.
//
// Arithmetic (+ - * /) is the compiler's own on the vector types. Polynomial coefficients are
// minimax fits made for this file. Largest errors against double over 4 million points: exp 1.1
// units in the last place, log 0.9, tanh 1.3, sigmoid 2.5; sin and cos 9e-8 absolute.
#pragma once

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define ADAREC_AVX512 1
#define ADAREC_AVX2 0
#elif defined(__AVX2__) && defined(__FMA__)
#define ADAREC_AVX512 0
#define ADAREC_AVX2 1
#else
#define ADAREC_AVX512 0
#define ADAREC_AVX2 0
#endif

// Vector registers: 32 of them, or 16.
#if ADAREC_AVX512 || defined(__aarch64__)
#define ADAREC_MANY_REGISTERS 1
#else
#define ADAREC_MANY_REGISTERS 0
#endif

// Only where they are for: the generic back end does without, on x86 as well.
#if ADAREC_AVX512 || ADAREC_AVX2
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace adarec {

#if ADAREC_AVX512
constexpr int kWidth = 16;
using Vec = __m512;
using Mask = __mmask16;
typedef std::int32_t IVec __attribute__((vector_size(64)));
typedef std::uint32_t UVec __attribute__((vector_size(64)));
#elif ADAREC_AVX2
constexpr int kWidth = 8;
using Vec = __m256;
using Mask = __m256;  // all bits of a lane set or clear
typedef std::int32_t IVec __attribute__((vector_size(32)));
typedef std::uint32_t UVec __attribute__((vector_size(32)));
#else
constexpr int kWidth = 4;
typedef float Vec __attribute__((vector_size(16)));
typedef std::int32_t IVec __attribute__((vector_size(16)));
typedef std::uint32_t UVec __attribute__((vector_size(16)));
using Mask = IVec;  // all bits of a lane set or clear
#endif

// bfloat16 in memory; arithmetic is always float.
struct BFloat16 {
  std::uint16_t bits;
};

// A bit a lane of consecutive vectors; two vectors of four lanes share a byte.
using LaneBits = std::conditional_t<kWidth == 16, std::uint16_t, std::uint8_t>;
constexpr int kShared = kWidth == 4 ? 2 : 1;  // vectors a LaneBits
constexpr std::int64_t lane_bits(std::int64_t vectors) { return (vectors + kShared - 1) / kShared; }

inline int vectors(int n) { return (n + kWidth - 1) / kWidth; }

// As fma() of vectors rounds it below, so that sums in the same order are the same.
inline float fma(float a, float b, float c) {
#if ADAREC_AVX512 || ADAREC_AVX2
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// Keeps a vector that was loaded in a register.
inline void in_register(Vec& v) {
#if ADAREC_AVX512
  __asm__("" : "+v"(v));
#elif ADAREC_AVX2
  __asm__("" : "+x"(v));
#else
  static_cast<void>(v);
#endif
}

// Asks for the line at p, which is soon to be read.
inline void prefetch(const void* p) { __builtin_prefetch(p); }

#if !ADAREC_AVX512 && !ADAREC_AVX2
}  // namespace adarec
#include "vec_generic.h"
namespace adarec {
#elif ADAREC_AVX512

inline Vec set1(float x) { return _mm512_set1_ps(x); }
inline Vec zero() { return _mm512_setzero_ps(); }
inline UVec set1u(std::uint32_t x) { return (UVec)_mm512_set1_epi32(static_cast<int>(x)); }
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
// Past the caches, to an aligned address: a line that is not to be read soon is not fetched first.
// Before another thread may read, streamed().
inline void stream(float* p, Vec v) { _mm512_stream_ps(p, v); }
inline void streamed() { _mm_sfence(); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec fnma(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a * b
inline Vec sqrt(Vec a) { return _mm512_sqrt_ps(a); }
inline Vec round(Vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT); }
// As x86 does it: where either is NaN the second operand comes back.
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec to_float(IVec a) { return _mm512_cvtepi32_ps((__m512i)a); }
inline IVec to_int(Vec a) { return (IVec)_mm512_cvtps_epi32(a); }  // to nearest
inline Mask less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
inline Mask at_most(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
inline Mask odd(UVec a) { return _mm512_test_epi32_mask((__m512i)a, _mm512_set1_epi32(1)); }
inline Mask at_least(UVec a, UVec b) { return _mm512_cmpge_epu32_mask((__m512i)a, (__m512i)b); }
inline Vec select(Mask m, Vec yes, Vec no) { return _mm512_mask_blend_ps(m, no, yes); }
inline Vec keep(Mask m, Vec v) { return _mm512_maskz_mov_ps(m, v); }  // 0 where not kept
inline std::uint32_t bits(Mask m) { return m; }
inline Mask from_bits(std::uint32_t b) { return static_cast<Mask>(b); }
inline Mask first(int n) {  // the first n lanes, 0 <= n <= kWidth
  return static_cast<Mask>((1u << n) - 1u);
}
inline Vec load(const float* p, Mask m) { return _mm512_maskz_loadu_ps(m, p); }
inline void store(float* p, Vec v, Mask m) { _mm512_mask_storeu_ps(p, m, v); }
inline float sum(Vec v) { return _mm512_reduce_add_ps(v); }
inline float largest(Vec v) { return _mm512_reduce_max_ps(v); }

#else

inline Vec set1(float x) { return _mm256_set1_ps(x); }
inline Vec zero() { return _mm256_setzero_ps(); }
inline UVec set1u(std::uint32_t x) { return (UVec)_mm256_set1_epi32(static_cast<int>(x)); }
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
inline void stream(float* p, Vec v) { _mm256_stream_ps(p, v); }
inline void streamed() { _mm_sfence(); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec fnma(Vec a, Vec b, Vec c) { return _mm256_fnmadd_ps(a, b, c); }
inline Vec sqrt(Vec a) { return _mm256_sqrt_ps(a); }
inline Vec round(Vec a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec to_float(IVec a) { return _mm256_cvtepi32_ps((__m256i)a); }
inline IVec to_int(Vec a) { return (IVec)_mm256_cvtps_epi32(a); }
inline Mask less(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
inline Mask at_most(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_LE_OQ); }
inline Mask odd(UVec a) { return (Mask)(a << 31); }  // for select(), which reads the sign bit only
inline Mask at_least(UVec a, UVec b) {
  return _mm256_castsi256_ps(
      _mm256_cmpeq_epi32(_mm256_max_epu32((__m256i)a, (__m256i)b), (__m256i)a));
}
inline Vec select(Mask m, Vec yes, Vec no) { return _mm256_blendv_ps(no, yes, m); }
inline Vec keep(Mask m, Vec v) { return _mm256_and_ps(m, v); }
inline std::uint32_t bits(Mask m) { return static_cast<std::uint32_t>(_mm256_movemask_ps(m)); }
inline Mask from_bits(std::uint32_t b) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(b)), lane);
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane));
}
inline Mask first(int n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane));
}
inline Vec load(const float* p, Mask m) { return _mm256_maskload_ps(p, _mm256_castps_si256(m)); }
inline void store(float* p, Vec v, Mask m) {
  _mm256_maskstore_ps(p, _mm256_castps_si256(m), v);
}
inline float sum(Vec v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float largest(Vec v) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

#endif

#if ADAREC_AVX512 || ADAREC_AVX2
// sum + the products of a lane's two int8 (2 kWidth of them, a lane's side by side) and the two int16
// of `pair`, the first in its low half.
inline IVec add_products(IVec sum, const std::int8_t* codes, std::int32_t pair) {
#if ADAREC_AVX512
  const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
  return sum + (IVec)_mm512_madd_epi16(_mm512_cvtepi8_epi16(narrow), _mm512_set1_epi32(pair));
#else
  const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
  return sum + (IVec)_mm256_madd_epi16(_mm256_cvtepi8_epi16(narrow), _mm256_set1_epi32(pair));
#endif
}
#endif

// The mask of the vector-th vector, written in the order of vectors.
inline void put_bits(LaneBits* to, std::int64_t vector, Mask m) {
  LaneBits& word = to[vector / kShared];
  const int shift = static_cast<int>(vector % kShared) * kWidth;
  word = static_cast<LaneBits>((shift == 0 ? 0 : word) | bits(m) << shift);
}
inline Mask get_bits(const LaneBits* from, std::int64_t vector) {
  return from_bits(std::uint32_t{from[vector / kShared]} >> vector % kShared * kWidth);
}

inline UVec as_bits(Vec v) { return (UVec)v; }
inline Vec as_float(UVec v) { return (Vec)v; }
inline Vec abs(Vec v) { return as_float(as_bits(v) & set1u(0x7fffffffu)); }
inline Vec negate(Vec v) { return as_float(as_bits(v) ^ set1u(0x80000000u)); }
inline Vec flip_sign(Vec v, Vec sign) {  // -v where the sign is negative
  return as_float(as_bits(v) ^ (as_bits(sign) & set1u(0x80000000u)));
}
inline Vec with_sign_of(Vec magnitude, Vec sign) {
  return as_float(as_bits(magnitude) | (as_bits(sign) & set1u(0x80000000u)));
}

// rows[i] lane j <-> rows[j] lane i.
inline void transpose_lanes(Vec (&rows)[kWidth]) {
#if ADAREC_AVX512
  __m512 a[16], b[16];
  for (int i = 0; i < 16; i += 4) {  // 4 x 4 blocks within 128 bits
    const __m512 s = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
    const __m512 t = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    const __m512 u = _mm512_unpacklo_ps(rows[i + 2], rows[i + 3]);
    const __m512 v = _mm512_unpackhi_ps(rows[i + 2], rows[i + 3]);
    a[i] = _mm512_shuffle_ps(s, u, 0x44);
    a[i + 1] = _mm512_shuffle_ps(s, u, 0xee);
    a[i + 2] = _mm512_shuffle_ps(t, v, 0x44);
    a[i + 3] = _mm512_shuffle_ps(t, v, 0xee);
  }
  for (int j = 0; j < 4; ++j) {  // then the blocks
    b[j] = _mm512_shuffle_f32x4(a[j], a[4 + j], 0x44);
    b[4 + j] = _mm512_shuffle_f32x4(a[j], a[4 + j], 0xee);
    b[8 + j] = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0x44);
    b[12 + j] = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0xee);
  }
  for (int j = 0; j < 4; ++j) {
    rows[j] = _mm512_shuffle_f32x4(b[j], b[8 + j], 0x88);
    rows[4 + j] = _mm512_shuffle_f32x4(b[j], b[8 + j], 0xdd);
    rows[8 + j] = _mm512_shuffle_f32x4(b[4 + j], b[12 + j], 0x88);
    rows[12 + j] = _mm512_shuffle_f32x4(b[4 + j], b[12 + j], 0xdd);
  }
#elif ADAREC_AVX2
  __m256 a[8];
  for (int i = 0; i < 8; i += 4) {
    const __m256 s = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    const __m256 t = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    const __m256 u = _mm256_unpacklo_ps(rows[i + 2], rows[i + 3]);
    const __m256 v = _mm256_unpackhi_ps(rows[i + 2], rows[i + 3]);
    a[i] = _mm256_shuffle_ps(s, u, 0x44);
    a[i + 1] = _mm256_shuffle_ps(s, u, 0xee);
    a[i + 2] = _mm256_shuffle_ps(t, v, 0x44);
    a[i + 3] = _mm256_shuffle_ps(t, v, 0xee);
  }
  for (int j = 0; j < 4; ++j) {
    rows[j] = _mm256_permute2f128_ps(a[j], a[4 + j], 0x20);
    rows[4 + j] = _mm256_permute2f128_ps(a[j], a[4 + j], 0x31);
  }
#else
  const Vec a = rows[0], b = rows[1], c = rows[2], d = rows[3];
  for (int i = 0; i < 4; ++i) rows[i] = Vec{a[i], b[i], c[i], d[i]};
#endif
}

// Stands for a full mask, at no cost: body of for_lanes may take `auto`.
struct All {
  operator Mask() const { return first(kWidth); }
};
inline Vec load(const float* p, All) { return load(p); }
inline void store(float* p, Vec v, All) { store(p, v); }

// Calls body(offset, mask of valid lanes) over [0, n); only the last may be a true mask.
template <typename Body>
inline void for_lanes(int n, Body&& body) {
  int i = 0;
  for (; i + kWidth <= n; i += kWidth) body(i, All{});
  if (i < n) body(i, first(n - i));
}

namespace detail {
// The integer nearest to x, and 2 to its power (0 for -127); x lies in [-127, 127.4].
inline Vec split(Vec x, Vec& power) {
  const Vec magic = set1(12583039.0f);  // 1.5 * 2^23 + 127: the integer, biased, in the low bits
  const Vec sum = x + magic;
  power = as_float(as_bits(sum) << 23);
  return sum - magic;
}
}  // namespace detail

// e^x; below float32's range 0, NaN stays NaN. Beyond the range infinity on AVX-512, on AVX2 a
// number above 2e38.
inline Vec exp(Vec x) {
#if ADAREC_AVX512
  // The bounds lie a little outside the finite range: the scaling overflows to 0 or infinity.
  x = min(set1(89.0f), max(set1(-105.0f), x));
  const Vec n = round(x * set1(1.44269504089f));
#else
  x = min(set1(88.37f), max(set1(-88.0f), x));
  Vec power;
  const Vec n = detail::split(x * set1(1.44269504089f), power);
#endif
  Vec r = fnma(n, set1(0.693145751953125f), x);
  r = fnma(n, set1(1.42860682030941723e-6f), r);
  Vec p = set1(1.395047875e-3f);
  p = fma(p, r, set1(8.368882351e-3f));
  p = fma(p, r, set1(4.166620597e-2f));
  p = fma(p, r, set1(1.666651964e-1f));
  p = fma(p, r, set1(0.5f));
  p = fma(p * r, r, r) + set1(1.0f);
#if ADAREC_AVX512
  return _mm512_scalef_ps(p, n);
#else
  return p * power;
#endif
}

// ln x of positive, normal, finite x (what a uniform or a sum of exponentials is).
inline Vec log(Vec x) {
  const IVec raw = (IVec)x;
  const IVec exponent = (raw - 0x3f3504f3) >> 23;  // mantissa in [sqrt(1/2), sqrt(2))
  const Vec f = (Vec)(raw - (exponent << 23)) - set1(1.0f);
  const Vec e = to_float(exponent);
  Vec p = set1(6.746631861e-2f);
  p = fma(p, f, set1(-1.167564914e-1f));
  p = fma(p, f, set1(1.188816503e-1f));
  p = fma(p, f, set1(-1.240558922e-1f));
  p = fma(p, f, set1(1.421955228e-1f));
  p = fma(p, f, set1(-1.666799635e-1f));
  p = fma(p, f, set1(2.000211924e-1f));
  p = fma(p, f, set1(-2.500000894e-1f));
  p = fma(p, f, set1(3.333331347e-1f));
  const Vec square = f * f;
  Vec y = p * square * f;
  y = fma(e, set1(1.42860682030941723e-6f), y);
  y = fnma(square, set1(0.5f), y);
  return fma(e, set1(0.693145751953125f), f + y);
}

// sin and cos of 2 pi u, u in turns: the reduction is exact, no multiple of pi is ever rounded.
inline void sincos_turns(Vec u, Vec& sine, Vec& cosine) {
  const Vec q = round(u * set1(4.0f));
  const Vec r = fnma(q, set1(0.25f), u);
  const Vec s2 = r * r;
  Vec s = set1(-7.539365387e1f);
  s = fma(s, s2, set1(8.159235382e1f));
  s = fma(s, s2, set1(-4.134166336e1f));
  s = fma(s, s2, set1(6.283185482f)) * r;
  Vec c = set1(5.924596405e1f);
  c = fma(c, s2, set1(-8.544374084e1f));
  c = fma(c, s2, set1(6.493932343e1f));
  c = fma(c, s2, set1(-1.973920822e1f));
  c = fma(c, s2, set1(1.0f));
  const UVec quadrant = (UVec)to_int(q);
  const Vec a = select(odd(quadrant), c, s);
  const Vec b = select(odd(quadrant), s, c);
  sine = as_float(as_bits(a) ^ ((quadrant & 2u) << 30));
  cosine = as_float(as_bits(b) ^ (((quadrant + 1u) & 2u) << 30));
}

inline Vec sigmoid(Vec x) { return set1(1.0f) / (set1(1.0f) + exp(negate(x))); }

inline Vec tanh(Vec x) {
  const Vec a = abs(x);
  const Vec s = x * x;
  Vec p = set1(-5.515164696e-3f);
  p = fma(p, s, set1(2.046942152e-2f));
  p = fma(p, s, set1(-5.368802324e-2f));
  p = fma(p, s, set1(1.333083063e-1f));
  p = fma(p, s, set1(-3.333325982e-1f));
  const Vec small = fma(p * s, x, x);
  const Vec large = set1(1.0f) - set1(2.0f) / (exp(a + a) + set1(1.0f));
  return select(less(a, set1(0.625f)), small, with_sign_of(large, x));
}

inline Vec silu(Vec x) { return x * sigmoid(x); }
// SiLU and its derivative s + x s (1 - s).
inline Vec silu(Vec x, Vec& slope) {
  const Vec s = sigmoid(x);
  const Vec y = x * s;
  slope = fma(y, set1(1.0f) - s, s);
  return y;
}

}  // namespace adarec
