#include "dropout.h"

#include <algorithm>

#include "parallel.h"
#include "philox.h"
#include "vec.h"

namespace adarec {

void dropout_forward(std::int64_t count, std::int64_t size, const float* x, double p,
                     const Seed& seed, std::uint32_t stream, float* y) {
  constexpr std::int64_t kChunk = 16384;
  const Philox philox(seed, stream, size);
  const Dropout dropout(p);
  parallel_for((count + kChunk - 1) / kChunk, [&](std::int64_t chunk) {
    const std::int64_t begin = chunk * kChunk;
    for_lanes(static_cast<int>(std::min(kChunk, count - begin)), [&](int i, auto m) {
      const std::int64_t at = begin + i;
      UVec word[1];
      philox.first(static_cast<std::uint64_t>(at), 0, word);
      store(y + at, dropout.apply(word[0], load(x + at, m)), m);
    });
  });
}

}  // namespace adarec
