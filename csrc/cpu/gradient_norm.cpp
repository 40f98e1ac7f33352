#include "gradient_norm.h"

#include <cmath>

#include "blocks.h"
#include "parallel.h"
#include "vec.h"

namespace adarec {

float gradient_norm(const std::vector<Elements>& tensors) {
  const auto count = static_cast<std::int64_t>(tensors.size());
  const std::vector<Block> blocks = blocks_of(count, [&](auto t) { return tensors[t].count; });
  const std::vector<std::int64_t> runs = runs_of(blocks);
  std::vector<float> squares(blocks.size());
  parallel_for(static_cast<std::int64_t>(runs.size()) - 1, [&](std::int64_t run) {
    for (std::int64_t b = runs[run]; b < runs[run + 1]; ++b) {
      const float* from = tensors[blocks[b].tensor].data + blocks[b].begin;
      const int size = blocks[b].count;
      constexpr int kTogether = 8;  // sums that do not wait for each other
      Vec total[kTogether];
      for (Vec& t : total) t = zero();
      int i = 0;
      for (; i + kTogether * kWidth <= size; i += kTogether * kWidth)
#pragma GCC unroll 8
        for (int u = 0; u < kTogether; ++u) {
          const Vec v = load(from + i + u * kWidth);
          total[u] = fma(v, v, total[u]);
        }
      for_lanes(size - i, [&](int at, auto m) {
        const Vec v = load(from + i + at, m);
        total[0] = fma(v, v, total[0]);
      });
      for (int u = 1; u < kTogether; ++u) total[0] = total[0] + total[u];
      squares[b] = sum(total[0]);
    }
  });
  double all = 0.0;
  for (const float square : squares) all += square;
  return static_cast<float>(std::sqrt(all));
}

}  // namespace adarec
