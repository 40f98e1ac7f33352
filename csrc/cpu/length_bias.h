// The length's share of the depth controller's input (Eq. 1).
#pragma once

#include <cstdint>

namespace adarec {

// W_v v + b_ih with v = W2 SiLU(W1 length / max_length + b1) + b2, W1 [size], W2 [size, size],
// W_v [wide, size].
struct LengthBias {
  std::int64_t batch;
  int size, wide;
  std::int64_t max_length;
  const std::int64_t* offsets;
  const float *w1, *b1, *w2, *b2, *w_v, *b_ih;
};

struct LengthBiasGradients {
  float *w1, *b1, *w2, *b2, *w_v, *b_ih;
};

// bias [batch, wide], v [batch, size].
void length_bias_forward(const LengthBias& op, float* bias, float* v);
void length_bias_backward(const LengthBias& op, const float* grad_bias, const float* v,
                          const LengthBiasGradients& out);

}  // namespace adarec
