// GELU of a tile's hidden layer. Several vectors go through the polynomials together: alone, one
// would wait for its own last multiply-add and read each coefficient from memory again.
#pragma once

#include <cstdint>

#include "vec.h"

namespace adarec {
namespace detail {

template <int U, typename Body>
inline __attribute__((always_inline)) void each(Body&& body) {
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) body(u);
}

// value[u] = the polynomial at x[u], the coefficient of the highest power first.
template <int U, int N>
inline __attribute__((always_inline)) void horner(const float (&coefficients)[N], const Vec (&x)[U],
                                                  Vec (&value)[U]) {
  each<U>([&](int u) { value[u] = set1(coefficients[0]); });
#pragma GCC unroll 16
  for (int k = 1; k < N; ++k) {
    const Vec next = set1(coefficients[k]);
    each<U>([&](int u) { value[u] = fma(value[u], x[u], next); });
  }
}

// The upper tail of the normal distribution, Phi(-a) for 0 <= a <= kTailEnd, as 2^q: log2 Phi(-a)
// is so smooth that a polynomial does, and an error of q matters less the smaller the tail.
constexpr float kTailEnd = 9.5f;  // Phi(-9.5) = 1e-21
constexpr float kLogTail[] = {-2.334948710e-06f, 3.373781333e-05f,  -1.612938231e-04f,
                              -1.917035685e-04f, 7.126865177e-03f,  -5.253361316e-02f,
                              -4.591982815e-01f, -1.151106042e+00f, -1.0f};
constexpr float kPower[] = {1.326472731e-03f, 9.671512991e-03f, 5.550733581e-02f,
                            2.402224243e-01f, 6.931470037e-01f, 1.0f};  // 2^r, |r| <= 1/2
// a phi(a) / Phi(-a) - 1.
constexpr float kHazard[] = {-2.537460991e-06f, 4.438261530e-05f,  -3.182779795e-04f,
                             1.057271235e-03f,  1.425056491e-04f,  -1.938820530e-02f,
                             1.091163912e-01f,  6.365975055e-01f,  7.978862406e-01f, -1.0f};

// With a = |x| and t = Phi(-a): GELU is max(x, 0) - a t, and its derivative Phi(x) + x phi(x) is
// 1/2 + sign(x) (1/2 + t (a phi(a) / t - 1)).
template <int U, bool kSlope>
inline __attribute__((always_inline)) void gelu(const Vec (&x)[U], Vec (&y)[U], Vec (&slope)[U]) {
  Vec a[U], rest[U], power[U], tail[U];
  each<U>([&](int u) { a[u] = min(set1(kTailEnd), abs(x[u])); });
  horner(kLogTail, a, rest);
  each<U>([&](int u) { rest[u] = rest[u] - split(rest[u], power[u]); });
  horner(kPower, rest, tail);
  each<U>([&](int u) { tail[u] = tail[u] * power[u]; });
  if constexpr (kSlope) {
    horner(kHazard, a, slope);
    each<U>([&](int u) {
      const Vec half = fma(tail[u], slope[u], set1(0.5f));
      slope[u] = set1(0.5f) + flip_sign(half, x[u]);
    });
  }
  each<U>([&](int u) { y[u] = fnma(a[u], tail[u], max(zero(), x[u])); });
}

template <int U, bool kSlope, typename M>
inline __attribute__((always_inline)) void gelu_vectors(const float* from, const float* bias,
                                                        float* to, float* slope, M m) {
  Vec x[U], y[U], d[U];
  each<U>([&](int u) { x[u] = load(from + u * kWidth, m) + load(bias + u * kWidth, m); });
  gelu<U, kSlope>(x, y, d);
  each<U>([&](int u) { store(to + u * kWidth, y[u], m); });
  if constexpr (kSlope) each<U>([&](int u) { store(slope + u * kWidth, d[u], m); });
}

template <bool kSlope>
inline void gelu_rows(int rows, int columns, const float* from, const float* bias, float* to,
                      float* slope) {
  constexpr int kTogether = 4;
  for (int r = 0; r < rows; ++r, from += columns, to += columns, slope += kSlope ? columns : 0) {
    int c = 0;
    for (; c + kTogether * kWidth <= columns; c += kTogether * kWidth)
      gelu_vectors<kTogether, kSlope>(from + c, bias + c, to + c, slope + c, All{});
    for_lanes(columns - c, [&](int i, auto m) {
      gelu_vectors<1, kSlope>(from + c + i, bias + c + i, to + c + i, slope + c + i, m);
    });
  }
}

}  // namespace detail

// to = GELU(from + bias), [rows, columns] with the bias a column, with the exact Gaussian
// distribution function; and its derivative, unless slope is null. to may be from.
inline void gelu_rows(int rows, int columns, const float* from, const float* bias, float* to,
                      float* slope) {
  if (slope == nullptr) {
    float none;
    detail::gelu_rows<false>(rows, columns, from, bias, to, &none);
  } else {
    detail::gelu_rows<true>(rows, columns, from, bias, to, slope);
  }
}

}  // namespace adarec
