// encoder_layer: a post-LN Transformer layer, causal or not, over levels x jagged sequences.
#pragma once

#include <cstdint>

#include "seed.h"

namespace adarec {

// The call's arguments; sizes and values have been checked. Weights are [out, in].
struct EncoderLayer {
  int64_t levels, tokens, sequences, size, inner, heads;  // K, N, B, D, F, H
  bool bf16;             // x, y and their gradients are bfloat16 instead of float32
  const void* x;         // [K, N, D]
  const int64_t* offsets;
  const int64_t* depth;  // [B], or null: every sequence has all levels
  const float *qkv_w, *qkv_b, *out_w, *out_b, *ln1_w, *ln1_b, *ff1_w, *ff1_b, *ff2_w, *ff2_b,
      *ln2_w, *ln2_b;
  float eps;
  double attention_dropout, hidden_dropout;
  bool seeded;           // dropout is off without a seed
  Seed seed;
  uint32_t stream;
  bool last_only;
  bool causal;           // a token sees those before it and itself alone, or its whole sequence
};

// Gradients in the shapes of the inputs; x in its dtype, the rest float32.
struct EncoderLayerGradients {
  void* x;
  float *qkv_w, *qkv_b, *out_w, *out_b, *ln1_w, *ln1_b, *ff1_w, *ff1_b, *ff2_w, *ff2_b, *ln2_w,
      *ln2_b;
};

// Floats a row of y that the forward pass can leave for the backward pass.
int64_t encoder_layer_kept(const EncoderLayer& op);

// y [K, N, D], or [K, B, D] if last_only. Rows beyond a depth or the last offset stay untouched.
// kept, a float32 [rows of y, encoder_layer_kept(op)], or null: nothing is left, and the backward
// pass computes the layer again. Both ways have the same bits.
void encoder_layer_forward(const EncoderLayer& op, void* y, float* kept);
void encoder_layer_backward(const EncoderLayer& op, const void* grad_y, const float* kept,
                            const EncoderLayerGradients& out);

}  // namespace adarec
