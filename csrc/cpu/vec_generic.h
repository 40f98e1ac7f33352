// The third back end of vec.h, for processors without AVX2: four lanes of the compiler's own vector
// types, which become NEON on ARM and SSE on x86. Included by vec.h alone.
#pragma once

#include <cstdint>
#include <cstring>

namespace adarec {

inline Vec set1(float x) { return Vec{x, x, x, x}; }
inline Vec zero() { return set1(0.0f); }
inline UVec set1u(std::uint32_t x) { return UVec{x, x, x, x}; }
inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
// By way of the caches: there is no common way around them.
inline void stream(float* p, Vec v) { store(p, v); }
inline void streamed() {}
// One rounding where the processor has a fused multiply-add (ARM), else two.
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec fnma(Vec a, Vec b, Vec c) { return c - a * b; }
inline Vec sqrt(Vec a) {
  for (int i = 0; i < kWidth; ++i) a[i] = __builtin_sqrtf(a[i]);
  return a;
}
// Where either is NaN the comparison fails and the second operand comes back, as on x86.
inline Mask less(Vec a, Vec b) { return (Mask)(a < b); }
inline Mask at_most(Vec a, Vec b) { return (Mask)(a <= b); }
inline Mask at_least(UVec a, UVec b) { return (Mask)(a >= b); }
inline Mask odd(UVec a) { return (Mask)(a << 31) >> 31; }
inline Vec select(Mask m, Vec yes, Vec no) { return (Vec)(((Mask)yes & m) | ((Mask)no & ~m)); }
inline Vec keep(Mask m, Vec v) { return (Vec)((Mask)v & m); }
inline Vec max(Vec a, Vec b) { return select(less(b, a), a, b); }
inline Vec min(Vec a, Vec b) { return select(less(a, b), a, b); }
// To the nearest integer, ties to even: from 2^23 on floats are integers.
inline Vec round(Vec a) {
  const Vec sign = (Vec)((UVec)a & set1u(0x80000000u));
  const Vec size = (Vec)((UVec)a & set1u(0x7fffffffu));
  const Vec whole = set1(8388608.0f);
  const Vec rounded = (Vec)((UVec)((size + whole) - whole) | (UVec)sign);
  return select(less(size, whole), rounded, a);
}
inline Vec to_float(IVec a) { return __builtin_convertvector(a, Vec); }
inline IVec to_int(Vec a) { return __builtin_convertvector(round(a), IVec); }
inline IVec add_products(IVec sum, const std::int8_t* codes, std::int32_t pair) {
  const std::int32_t low = static_cast<std::int16_t>(pair & 0xffff), high = pair >> 16;
  return sum + IVec{codes[0], codes[2], codes[4], codes[6]} * low +
         IVec{codes[1], codes[3], codes[5], codes[7]} * high;
}
inline std::uint32_t bits(Mask m) {
  return static_cast<std::uint32_t>((m[0] & 1) | (m[1] & 2) | (m[2] & 4) | (m[3] & 8));
}
inline Mask from_bits(std::uint32_t b) {
  const Mask lane = {1, 2, 4, 8};
  const auto word = static_cast<std::int32_t>(b);
  return (Mask)((Mask{word, word, word, word} & lane) == lane);
}
inline Mask first(int n) { return (Mask)(Mask{0, 1, 2, 3} < Mask{n, n, n, n}); }
inline Vec load(const float* p, Mask m) {
  Vec v = zero();
  for (int i = 0; i < kWidth; ++i)
    if (m[i]) v[i] = p[i];
  return v;
}
inline void store(float* p, Vec v, Mask m) {
  for (int i = 0; i < kWidth; ++i)
    if (m[i]) p[i] = v[i];
}
inline float sum(Vec v) { return (v[0] + v[2]) + (v[1] + v[3]); }
inline float largest(Vec v) {
  const float a = v[0] > v[2] ? v[0] : v[2], b = v[1] > v[3] ? v[1] : v[3];
  return a > b ? a : b;
}

}  // namespace adarec
