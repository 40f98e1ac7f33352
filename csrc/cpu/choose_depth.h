// Eq. 3, as far as it is no plain tensor arithmetic: the noise, and what follows from a depth.
#pragma once

#include <cstdint>

#include "seed.h"

namespace adarec {

// What the Gumbel noise of element i of [B, T+1] is made of: uniform in (0, 1), count = B (T+1).
// The seed's place counts sequences.
void choice_uniforms(std::int64_t count, std::int64_t choices, const Seed& seed, float* uniform);

// row_mass [choices, rows], 1 up to depth [batch] and 0 beyond. A row is a sequence; with offsets
// it is a token, and what lies behind the last is 0 and has row_depth -1 instead of the deepest
// level of its sequence (deepest is null where a row is a sequence).
void level_mass(std::int64_t batch, std::int64_t choices, const std::int64_t* depth,
                const std::int64_t* offsets, std::int64_t rows, const std::int64_t* deepest,
                float* row_mass, std::int64_t* row_depth);

// Sums over the tokens of every sequence: row_mass [choices, rows] to mass [choices, batch].
void sum_of_tokens(std::int64_t batch, std::int64_t choices, const std::int64_t* offsets,
                   std::int64_t rows, const float* row_mass, float* mass);

}  // namespace adarec
