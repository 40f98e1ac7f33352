#include "choose_depth.h"

#include <algorithm>

#include "parallel.h"
#include "philox.h"
#include "vec.h"

namespace adarec {

namespace {
constexpr std::uint32_t kGumbelStream = 1;  // rng.STREAM_GUMBEL
}

void choice_uniforms(std::int64_t count, std::int64_t choices, const Seed& seed, float* out) {
  constexpr std::int64_t kChunk = 4096;
  const Philox philox(seed, kGumbelStream, choices);
  parallel_for((count + kChunk - 1) / kChunk, [&](std::int64_t chunk) {
    const std::int64_t begin = chunk * kChunk;
    for_lanes(static_cast<int>(std::min(kChunk, count - begin)), [&](int i, auto m) {
      const std::int64_t at = begin + i;
      store(out + at, uniform(philox(static_cast<std::uint64_t>(at), 0).word[0]), m);
    });
  });
}

void level_mass(std::int64_t batch, std::int64_t choices, const std::int64_t* depth,
                const std::int64_t* offsets, std::int64_t rows, const std::int64_t* deepest,
                float* row_mass, std::int64_t* row_depth) {
  for (std::int64_t k = 0; k < choices; ++k) {
    float* line = row_mass + k * rows;
    for (std::int64_t b = 0; b < batch; ++b) {
      const std::int64_t begin = offsets ? offsets[b] : b, end = offsets ? offsets[b + 1] : b + 1;
      std::fill(line + begin, line + end, k <= depth[b] ? 1.0f : 0.0f);
    }
    if (offsets) std::fill(line + offsets[batch], line + rows, 0.0f);
  }
  if (!offsets) return;
  for (std::int64_t b = 0; b < batch; ++b)
    std::fill(row_depth + offsets[b], row_depth + offsets[b + 1], deepest[b]);
  std::fill(row_depth + offsets[batch], row_depth + rows, std::int64_t{-1});
}

void sum_of_tokens(std::int64_t batch, std::int64_t choices, const std::int64_t* offsets,
                   std::int64_t rows, const float* row_mass, float* mass) {
  for (std::int64_t k = 0; k < choices; ++k)
    for (std::int64_t b = 0; b < batch; ++b) {
      float sum = 0.0f;
      for (std::int64_t token = offsets[b]; token < offsets[b + 1]; ++token)
        sum += row_mass[k * rows + token];
      mass[k * batch + b] = sum;
    }
}

}  // namespace adarec
