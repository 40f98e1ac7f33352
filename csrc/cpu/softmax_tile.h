// Streaming softmax over tiles of logits that stand transposed: [items, kPanel rows].
#pragma once

#include <cstdint>

#include "vec.h"

namespace adarec {

constexpr int kPanel = 64;  // rows whose logits stand side by side in memory
constexpr int kVectors = kPanel / kWidth;

// Raises the running maxima of a panel to those of a tile of logits; what was summed relative to
// the old ones, total [kPanel] and slope [kPanel, dim] (or null), is brought down to the new.
inline void raise_maximum(const float* logits, int items, float* maximum, float* total,
                          float* slope, std::int64_t dim) {
  Vec top[kVectors];
  for (int v = 0; v < kVectors; ++v) top[v] = load(maximum + v * kWidth);
  for (int i = 0; i < items; ++i)
    for (int v = 0; v < kVectors; ++v)
      top[v] = max(load(logits + i * kPanel + v * kWidth), top[v]);
  alignas(64) float factor[kPanel];
  std::uint32_t raised[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const Vec old = load(maximum + v * kWidth);
    const Vec f = exp(old - top[v]);
    store(factor + v * kWidth, f);
    store(total + v * kWidth, load(total + v * kWidth) * f);
    store(maximum + v * kWidth, top[v]);
    raised[v] = bits(less(old, top[v]));
  }
  if (slope == nullptr) return;
  for (int v = 0; v < kVectors; ++v)
    for (std::uint32_t left = raised[v]; left != 0; left &= left - 1) {
      const int row = v * kWidth + __builtin_ctz(left);
      float* line = slope + row * dim;
      const Vec f = set1(factor[row]);
      for_lanes(static_cast<int>(dim),
                [&](int i, auto m) { store(line + i, load(line + i, m) * f, m); });
    }
}

// logits -> e^(logit - reference), their sums by column added to total if it is asked for.
inline void exponentiate(float* logits, int items, const float* reference, float* total) {
  Vec shift[kVectors], sum[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    shift[v] = load(reference + v * kWidth);
    sum[v] = zero();
  }
  for (int i = 0; i < items; ++i)
    for (int v = 0; v < kVectors; ++v) {
      float* at = logits + i * kPanel + v * kWidth;
      const Vec e = exp(load(at) - shift[v]);
      sum[v] = sum[v] + e;
      store(at, e);
    }
  if (total == nullptr) return;
  for (int v = 0; v < kVectors; ++v)
    store(total + v * kWidth, load(total + v * kWidth) + sum[v]);
}

}  // namespace adarec
