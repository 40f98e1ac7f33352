// Adam's update (Kingma and Ba 2015) of many tensors.
#pragma once

#include <cstdint>
#include <vector>

namespace adarec {

// A tensor to be updated; step is what it has taken so far, and one more afterwards.
struct AdamTensor {
  std::int64_t count;
  float* parameter;
  const float* gradient;
  float *first, *second, *step;
};

// scale multiplies the gradients, which stay as they are; weight decay is added to them.
struct AdamOptions {
  double rate, beta1, beta2, epsilon, weight_decay, scale;
};

void adam(const std::vector<AdamTensor>& tensors, const AdamOptions& options);

}  // namespace adarec
