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
  }

  // Elements index, index + 1, ..., index + kWidth - 1.
  Words operator()(std::uint64_t index, std::uint32_t group) const {
    Wide c0[2], c1[2], c2[2], c3[2];
    for (int half = 0; half < 2; ++half) {
      c0[half] = add(iota(half), set1w(index + base_));
      c1[half] = high(c0[half]);
      c2[half] = set1w(stream_);
      c3[half] = set1w(group);
    }
    const Wide m0 = set1w(0xD2511F53u), m1 = set1w(0xCD9E8D57u);
    for (int round = 0; round < kRounds; ++round) {
      const Wide k0 = set1w(key_[2 * round]), k1 = set1w(key_[2 * round + 1]);
      for (int half = 0; half < 2; ++half) {
        const Wide p0 = multiply(c0[half], m0), p1 = multiply(c2[half], m1);
        c0[half] = xor3(high(p1), c1[half], k0);
        c2[half] = xor3(high(p0), c3[half], k1);
        c1[half] = p1;
        c3[half] = p0;
      }
    }
    return {{pack(c0[0], c0[1]), pack(c1[0], c1[1]), pack(c2[0], c2[1]), pack(c3[0], c3[1])}};
  }

 private:
  static constexpr int kRounds = 10;
#if ADAREC_AVX512
  using Wide = __m512i;
  static Wide set1w(std::uint64_t x) { return _mm512_set1_epi64(static_cast<long long>(x)); }
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
  std::uint32_t key_[2 * kRounds];
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
