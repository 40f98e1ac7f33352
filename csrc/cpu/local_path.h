// The local path of an encoder: LN(x_t + dropout(sum_j taps_j * x_{t-j})) inside each sequence.
#pragma once

#include <cstdint>

#include "seed.h"

namespace adarec {

// The call's arguments; sizes and values have been checked.
struct LocalPath {
  std::int64_t sequences;       // B
  int size, taps;               // D, k
  const float* x;               // [N, D]
  const std::int64_t* offsets;  // [B+1]
  const float* weights;         // [k, D], of the token itself first
  const float *norm_w, *norm_b; // [D]
  float eps;
  double dropout;
  bool seeded;                  // dropout is off without a seed
  Seed seed;
  std::uint32_t stream;
};

struct LocalPathGradients {
  float *x, *weights, *norm_w, *norm_b;
};

// y [N, D]; rows behind the last token stay as they are, in the gradient of x as well.
void local_path_forward(const LocalPath& op, float* y);
void local_path_backward(const LocalPath& op, const float* grad, const LocalPathGradients& out);

}  // namespace adarec
