// Eq. 12 of its parts, and the means that a training log shows.
#pragma once

#include <cstdint>

namespace adarec {

// Sum of error [0, tokens).
double total_error(std::int64_t tokens, const float* error);

// Sum over the rows of logits [rows, choices] of sum p log p, p = softmax(row).
double total_negentropy(std::int64_t rows, std::int64_t choices, const float* logits);

// slope [rows, choices] = scale times the gradient of that sum.
void negentropy_slope(std::int64_t rows, std::int64_t choices, const float* logits, float scale,
                      float* slope);

// mean [levels] of gates [levels, rows] over the rows with depth >= level; nan where there is none.
void mean_gates(std::int64_t levels, std::int64_t rows, const float* gates,
                const std::int64_t* depth, float* mean);

}  // namespace adarec
