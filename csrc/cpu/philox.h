// The noise contract (adarec_fast/rng.py): Philox4x32-10 for kWidth consecutive element indices.
//
// A 64-bit lane holds one element's word in its low half; the high half may hold anything, since
// the 32 x 32 -> 64 bit multiplication reads the low half only. So a round needs no shuffle, and
// the index is a whole 64-bit number for free.
#pragma once

#include <cmath>

#include "seed.h"
#include "vec.h"

namespace adarec {

constexpr int kLanes = 4;  // levels served by one call

// Vectors to ask for at once where rows are padded to 16 elements.
constexpr int kDrawn = kWidth == 16 ? 1 : 2;

// Four words of kWidth elements; word j belongs to level 4 * group + j.
struct Words {
  UVec word[kLanes];
};

class Philox {
 public:
  // width: elements a token, by which the tokens before those at hand count.
  Philox(const Seed& seed, std::uint32_t stream, std::int64_t width)
      : stream_(stream), base_(static_cast<std::uint64_t>(seed.first_token * width)) {
    auto k0 = static_cast<std::uint32_t>(seed.key);
    auto k1 = static_cast<std::uint32_t>(static_cast<std::uint64_t>(seed.key) >> 32);
    for (int round = 0; round < kRounds; ++round) {
      key_[2 * round] = k0;
      key_[2 * round + 1] = k1;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    // Of the first two rounds only what the low word of an index has a part in is left to do.
    high_ = static_cast<std::uint32_t>(base_ >> 32);
    const std::uint64_t p1 = std::uint64_t{stream_} * kM1;
    const std::uint32_t c0 = static_cast<std::uint32_t>(p1 >> 32) ^ high_ ^ key_[0];
    const std::uint64_t p0 = std::uint64_t{c0} * kM0;
    known_[0] = static_cast<std::uint32_t>(p1) ^ key_[2];
    known_[1] = static_cast<std::uint32_t>(p0 >> 32) ^ key_[3];
    known_[2] = static_cast<std::uint32_t>(p0);
  }

  // Elements index, index + 1, ..., index + kWidth - 1.
  Words operator()(std::uint64_t index, std::uint32_t group) const {
    const auto end = run<true, 1>(index + base_, group);
    return {{end.word(0, 0), end.word(1, 0), end.word(2, 0), end.word(3, 0)}};
  }

  // The same of N vectors of elements, one behind the other. A round waits for its own products:
  // two vectors at a time take little more time than one.
  template <int N>
  void words(std::uint64_t index, std::uint32_t group, Words (&to)[N]) const {
    const auto end = run<true, N>(index + base_, group);
    for (int n = 0; n < N; ++n)
      for (int word = 0; word < kLanes; ++word) to[n].word[word] = end.word(word, n);
  }

  // Word 0 of them, that of level 4 * group.
  template <int N>
  void first(std::uint64_t index, std::uint32_t group, UVec (&to)[N]) const {
    const auto end = run<false, N>(index + base_, group);
    for (int n = 0; n < N; ++n) to[n] = end.word(0, n);
  }

 private:
  static constexpr int kRounds = 10;
  static constexpr std::uint32_t kM0 = 0xD2511F53u, kM1 = 0xCD9E8D57u;
#if ADAREC_AVX512
  using Wide = __m512i;
  static Wide set1w(std::uint64_t x) { return _mm512_set1_epi64(static_cast<long long>(x)); }
  static Wide repeat(std::uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
  static Wide iota(int half) {
    const long long b = half * 8;
    return _mm512_setr_epi64(b, b + 1, b + 2, b + 3, b + 4, b + 5, b + 6, b + 7);
  }
  static Wide add(Wide a, Wide b) { return _mm512_add_epi64(a, b); }
  static Wide multiply(Wide a, Wide b) { return _mm512_mul_epu32(a, b); }
  static Wide high(Wide a) { return _mm512_srli_epi64(a, 32); }
  static Wide xor3(Wide a, Wide b, Wide c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
  static UVec pack(Wide a, Wide b) {
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return (UVec)_mm512_permutex2var_epi32(a, even, b);
  }
#elif ADAREC_AVX2
  using Wide = __m256i;
  static Wide set1w(std::uint64_t x) { return _mm256_set1_epi64x(static_cast<long long>(x)); }
  static Wide repeat(std::uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
  static Wide iota(int half) {
    const long long b = half * 4;
    return _mm256_setr_epi64x(b, b + 1, b + 2, b + 3);
  }
  static Wide add(Wide a, Wide b) { return _mm256_add_epi64(a, b); }
  static Wide multiply(Wide a, Wide b) { return _mm256_mul_epu32(a, b); }
  static Wide high(Wide a) { return _mm256_srli_epi64(a, 32); }
  static Wide xor3(Wide a, Wide b, Wide c) {
    return _mm256_xor_si256(a, _mm256_xor_si256(b, c));
  }
  static UVec pack(Wide a, Wide b) {
    const __m256 even =
        _mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), 0x88);
    return (UVec)_mm256_permute4x64_epi64(_mm256_castps_si256(even), 0xD8);
  }
#else
  typedef std::uint64_t Wide __attribute__((vector_size(16)));
  static Wide set1w(std::uint64_t x) { return Wide{x, x}; }
  static Wide repeat(std::uint32_t x) { return set1w(x); }
  static Wide iota(int half) {
    const std::uint64_t b = half * 2;
    return Wide{b, b + 1};
  }
  static Wide add(Wide a, Wide b) { return a + b; }
  static Wide multiply(Wide a, Wide b) {
    const Wide low = set1w(0xffffffffu);
    return (a & low) * (b & low);
  }
  static Wide high(Wide a) { return a >> 32; }
  static Wide xor3(Wide a, Wide b, Wide c) { return a ^ b ^ c; }
  static UVec pack(Wide a, Wide b) {
    return UVec{static_cast<std::uint32_t>(a[0]), static_cast<std::uint32_t>(a[1]),
                static_cast<std::uint32_t>(b[0]), static_cast<std::uint32_t>(b[1])};
  }
#endif
  // A word of the counter a line, in two halves of the elements.
  template <int N>
  struct State {
    Wide c[kLanes][2 * N];
    UVec word(int i, int n) const { return pack(c[i][2 * n], c[i][2 * n + 1]); }
  };

  // kAll: all four words, else the first; of N vectors.
  template <bool kAll, int N>
  State<N> run(std::uint64_t first, std::uint32_t group) const {
    constexpr int kHalves = 2 * N;
    State<N> s;
    const Wide m0 = repeat(kM0), m1 = repeat(kM1);
    // Twice the same question: whether the last element has the high word that is known, too.
    if ((first >> 32) == high_ && ((first + N * kWidth - 1) >> 32) == high_) {
      const Wide k1 = repeat(group ^ key_[1]);
      for (int half = 0; half < kHalves; ++half) {
        const Wide p0 = multiply(add(iota(half), repeat(static_cast<std::uint32_t>(first))), m0);
        const Wide p1 = multiply(high(p0) ^ k1, m1);
        s.c[0][half] = high(p1) ^ repeat(known_[0]);
        s.c[1][half] = p1;
        s.c[2][half] = p0 ^ repeat(known_[1]);
        s.c[3][half] = repeat(known_[2]);
      }
    } else {
      for (int half = 0; half < kHalves; ++half) {
        s.c[0][half] = add(iota(half), set1w(first));
        s.c[1][half] = high(s.c[0][half]);
        s.c[2][half] = repeat(stream_);
        s.c[3][half] = repeat(group);
      }
      turn(s, 0, m0, m1);
      turn(s, 1, m0, m1);
    }
#pragma GCC unroll 8
    for (int round = 2; round < kRounds - 1; ++round) turn(s, round, m0, m1);
    turn<N, kAll>(s, kRounds - 1, m0, m1);
    return s;
  }

  template <int N, bool kAll = true>
  void turn(State<N>& s, int round, Wide m0, Wide m1) const {
    const Wide k0 = repeat(key_[2 * round]), k1 = repeat(key_[2 * round + 1]);
    for (int half = 0; half < 2 * N; ++half) {
      const Wide p1 = multiply(s.c[2][half], m1);
      if constexpr (kAll) {
        const Wide p0 = multiply(s.c[0][half], m0);
        s.c[2][half] = xor3(high(p0), s.c[3][half], k1);
        s.c[3][half] = p0;
      }
      s.c[0][half] = xor3(high(p1), s.c[1][half], k0);
      s.c[1][half] = p1;
    }
  }

  std::uint32_t key_[2 * kRounds];
  std::uint32_t known_[3], high_;  // of the first two rounds; of base_
  std::uint32_t stream_;
  std::uint64_t base_;
};

// Uniform in (0, 1): (word >> 9 + 1/2) * 2^-23, exact.
inline Vec uniform(UVec word) {
  return (to_float((IVec)(word >> 9)) + set1(0.5f)) * set1(1.1920928955078125e-7f);
}

// Two standard normals from two words.
inline void box_muller(UVec a, UVec b, Vec& cosine, Vec& sine) {
  const Vec radius = sqrt(set1(-2.0f) * log(uniform(a)));
  sincos_turns(uniform(b), sine, cosine);
  cosine = cosine * radius;
  sine = sine * radius;
}

// Inverted dropout with probability p: which words keep their element, and what kept ones are
// multiplied by.
class Dropout {
 public:
  explicit Dropout(double p)
      : threshold_(static_cast<std::uint64_t>(std::nearbyint(p * 4294967296.0))),
        scale_(static_cast<float>(1.0 / (1.0 - p))) {}

  Mask kept(UVec word) const {
    if (threshold_ >> 32) return first(0);
    return at_least(word, set1u(static_cast<std::uint32_t>(threshold_)));
  }
  Vec apply(UVec word, Vec value) const { return keep(kept(word), value * set1(scale_)); }
  float scale() const { return scale_; }

 private:
  std::uint64_t threshold_;
  float scale_;
};

}  // namespace adarec
