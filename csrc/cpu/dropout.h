// Dropout of packed tokens with a mask of the noise contract.
#pragma once

#include <cstdint>

namespace adarec {

// y[i] = x[i] / (1 - p) where the contract keeps element i (its level 0), else 0.
void dropout_forward(std::int64_t count, const float* x, double p, std::int64_t seed,
                     std::uint32_t stream, float* y);

}  // namespace adarec
