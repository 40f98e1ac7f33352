// Dropout of packed tokens with a mask of the noise contract.
#pragma once

#include <cstdint>

#include "seed.h"

namespace adarec {

// x [N, size], count = N * size: y[i] = x[i] / (1 - p) where the contract keeps element i (its level 0), else 0.
void dropout_forward(std::int64_t count, std::int64_t size, const float* x, double p,
                     const Seed& seed, std::uint32_t stream, float* y);

}  // namespace adarec
