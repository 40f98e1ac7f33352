// One pass over the memory: what bounds it is reading gradients, parameters and moments, and
// writing all but the gradients.
#include "adam.h"

#include <cmath>

#include "blocks.h"
#include "parallel.h"
#include "vec.h"

namespace adarec {
namespace {

// rate m / bias1 / (sqrt(v / bias2) + epsilon) with one division an element:
// (rate sqrt(bias2) / bias1) m / (sqrt(v) + epsilon sqrt(bias2)).
struct Step {
  float rate, epsilon;
};

Step step_of(const AdamOptions& o, double number) {
  const double root = std::sqrt(1.0 - std::pow(o.beta2, number));
  return {static_cast<float>(o.rate * root / (1.0 - std::pow(o.beta1, number))),
          static_cast<float>(o.epsilon * root)};
}

template <bool kDecay>
void update(const AdamTensor& tensor, const Block& block, const Step& step,
            const AdamOptions& o) {
  const Vec scale = set1(static_cast<float>(o.scale));
  const Vec decay = set1(static_cast<float>(o.weight_decay));
  const Vec beta1 = set1(static_cast<float>(o.beta1)), beta2 = set1(static_cast<float>(o.beta2));
  const Vec rest1 = set1(static_cast<float>(1.0 - o.beta1)),
            rest2 = set1(static_cast<float>(1.0 - o.beta2));
  const Vec rate = set1(step.rate), epsilon = set1(step.epsilon);
  for_lanes(block.count, [&](int i, auto m) {
    const std::int64_t at = block.begin + i;
    const Vec p = load(tensor.parameter + at, m);
    Vec g = load(tensor.gradient + at, m) * scale;
    if constexpr (kDecay) g = fma(decay, p, g);
    const Vec first = fma(rest1, g, beta1 * load(tensor.first + at, m));
    const Vec second = fma(rest2 * g, g, beta2 * load(tensor.second + at, m));
    store(tensor.first + at, first, m);
    store(tensor.second + at, second, m);
    store(tensor.parameter + at, fnma(rate, first / (sqrt(second) + epsilon), p), m);
  });
}

}  // namespace

void adam(const std::vector<AdamTensor>& tensors, const AdamOptions& options) {
  const auto count = static_cast<std::int64_t>(tensors.size());
  const std::vector<Block> blocks = blocks_of(count, [&](auto t) { return tensors[t].count; });
  const std::vector<std::int64_t> runs = runs_of(blocks);
  std::vector<Step> steps;
  steps.reserve(tensors.size());
  // Most have taken as many steps as the one before; a power takes as long as 20 elements.
  float number = -1.0f;
  for (const AdamTensor& tensor : tensors) {
    if (*tensor.step + 1.0f == number) {
      steps.push_back(steps.back());
    } else {
      number = *tensor.step + 1.0f;
      steps.push_back(step_of(options, number));
    }
  }
  parallel_for(static_cast<std::int64_t>(runs.size()) - 1, [&](std::int64_t run) {
    for (std::int64_t b = runs[run]; b < runs[run + 1]; ++b) {
      const std::int64_t t = blocks[b].tensor;
      if (options.weight_decay != 0.0)
        update<true>(tensors[t], blocks[b], steps[t], options);
      else
        update<false>(tensors[t], blocks[b], steps[t], options);
    }
  });
  for (const AdamTensor& tensor : tensors) *tensor.step += 1.0f;
}

}  // namespace adarec
