// The norm of many tensors as one vector.
#pragma once

#include <cstdint>
#include <vector>

namespace adarec {

struct Elements {
  const float* data;
  std::int64_t count;
};

// The square root of the sum of all squares. Sums of fixed blocks are added in order, so the
// number of threads changes no bit.
float gradient_norm(const std::vector<Elements>& tensors);

}  // namespace adarec
