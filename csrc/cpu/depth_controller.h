// depth_controller: jagged GRU, mean pool and logits over the depths (Eq. 1, 2).
#pragma once

#include <cstdint>

namespace adarec {

class Scratch;

// The call's arguments; sizes and values have been checked. Gates in torch.nn.GRU's order.
struct DepthController {
  int64_t tokens, sequences, size, hidden, depths;  // N, B, D, G, T + 1
  const float* embeddings;                          // [N, D]
  const int64_t* offsets;                           // [B + 1], no sequence is empty
  const float* sequence_bias;                       // [B, 3G]
  const float *w_ih, *w_hh, *b_hh;                  // [3G, D], [3G, G], [3G]
  const float *w_out, *b_out;                       // [T + 1, G], [T + 1]
};

struct DepthControllerGradients {
  float *embeddings, *sequence_bias, *w_ih, *w_hh, *b_hh, *w_out, *b_out;
};

// The weights as the forward pass reads them, packed into the scratch they are taken from.
struct DepthControllerWeights {
  const float *w_ih_t, *b_hh, *w_hh_t, *w_out_t, *b_out;
};
DepthControllerWeights depth_controller_pack(const DepthController& op, Scratch& scratch);

// Floats a token that the forward pass can leave for the backward pass.
int64_t depth_controller_kept(const DepthController& op);

// logits [B, T + 1] and the hidden state behind every token, [N, G]. kept: [N,
// depth_controller_kept(op)], or null: the backward pass computes what it needs again. Both ways
// have the same bits.
void depth_controller_forward(const DepthController& op, float* logits, float* hidden,
                              float* kept);
// The same on packed weights; those of op are not read.
void depth_controller_forward(const DepthController& op, const DepthControllerWeights& weights,
                              float* logits, float* hidden, float* kept);
void depth_controller_backward(const DepthController& op, const float* grad_logits,
                               const float* hidden, const float* kept,
                               const DepthControllerGradients& out);

}  // namespace adarec
