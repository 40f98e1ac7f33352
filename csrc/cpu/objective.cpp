#include "objective.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "vec.h"

namespace adarec {
namespace {

// Of a row: its largest logit, log sum exp(logit - largest), and sum p (logit - largest).
struct Row {
  Vec largest;
  float log_sum, mean;
};

Row read(std::int64_t choices, const float* logits) {
  const int n = static_cast<int>(choices);
  float top = -std::numeric_limits<float>::infinity();
  for (int i = 0; i < n; ++i) top = std::max(top, logits[i]);
  const Vec largest = set1(top);
  Vec sums = zero(), products = zero();
  for_lanes(n, [&](int i, auto m) {
    const Vec x = load(logits + i, m) - largest;
    const Vec mass = keep(m, exp(x));
    sums = sums + mass;
    products = fma(mass, x, products);
  });
  const float total = sum(sums);
  return {largest, std::log(total), sum(products) / total};
}

}  // namespace

double total_error(std::int64_t tokens, const float* error) {
  double sums[4] = {};  // that do not wait for each other
  std::int64_t n = 0;
  for (; n + 4 <= tokens; n += 4)
    for (int u = 0; u < 4; ++u) sums[u] += error[n + u];
  for (; n < tokens; ++n) sums[0] += error[n];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

double total_negentropy(std::int64_t rows, std::int64_t choices, const float* logits) {
  double total = 0.0;
  for (std::int64_t r = 0; r < rows; ++r) {
    const Row row = read(choices, logits + r * choices);
    total += row.mean - row.log_sum;
  }
  return total;
}

void negentropy_slope(std::int64_t rows, std::int64_t choices, const float* logits, float scale,
                      float* slope) {
  for (std::int64_t r = 0; r < rows; ++r, logits += choices, slope += choices) {
    const Row row = read(choices, logits);
    const Vec log_sum = set1(row.log_sum), mean = set1(row.mean), times = set1(scale);
    for_lanes(static_cast<int>(choices), [&](int i, auto m) {
      const Vec x = load(logits + i, m) - row.largest;
      store(slope + i, times * exp(x - log_sum) * (x - mean), m);
    });
  }
}

void mean_gates(std::int64_t levels, std::int64_t rows, const float* gates,
                const std::int64_t* depth, float* mean) {
  for (std::int64_t k = 0; k < levels; ++k) {
    double total = 0.0;
    std::int64_t reached = 0;
    for (std::int64_t r = 0; r < rows; ++r) {
      if (depth[r] < k) continue;
      total += gates[k * rows + r];
      ++reached;
    }
    mean[k] = reached == 0 ? std::numeric_limits<float>::quiet_NaN()
                           : static_cast<float>(total / static_cast<double>(reached));
  }
}

}  // namespace adarec
