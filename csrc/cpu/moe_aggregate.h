// Eq. 7 to 11: routing and gated fusion of both experts over ragged levels.
#pragma once

#include <cstdint>

namespace adarec {

class Scratch;

// Rows of float32, or of bfloat16.
struct Rows {
  void* data;
  bool bf16;
};

struct MoEAggregate {
  std::int64_t levels, rows, dim, hidden;  // K, R, D, H
  Rows fine, coarse;                       // [K, R, D]
  Rows pooled;                             // [K, R, D], or null data
  const std::int64_t* depth;               // [R] in -1..K-1; -1: capacity
  const float* level_mass;                 // [K, R]
  const float* router_w1;                  // [H, D]
  const float* router_level_bias;          // [K, H]
  const float* router_w2;                  // [H]
  const float* router_b2;                  // [1]
  const float* gate_w;                     // [D, D]
  const float* gate_b;                     // [D]
};

struct MoEAggregateOut {
  Rows user;       // [R, D]
  float* gates;    // [K, R], 0 where not reached
  float* z_fine;   // [R, D]
  float* z_coarse; // [R, D]
};

struct MoEAggregateGradients {
  Rows grad_user;                      // [R, D], in
  const float *gates, *z_fine, *z_coarse;  // as the forward pass left them
  Rows fine, coarse, pooled;           // [K, R, D], levels not reached are not written
  float* level_mass;                   // [K, R], 0 where not reached
  float *router_w1, *router_level_bias, *router_w2, *router_b2, *gate_w, *gate_b;
};

// The weights as both passes read them, packed into the scratch they are taken from, and a gate a
// level [K] where there is no content.
struct MoEAggregateWeights {
  const float *router_t, *gate_t, *level_gate;  // [D, H], [D, D]
};
MoEAggregateWeights moe_aggregate_pack(const MoEAggregate& op, Scratch& scratch);

// Floats that the forward pass can leave for the backward pass: the final gates [R, D] and, where
// there is content, the router's hidden layer and the slope of its SiLU, [K, R, 2, H].
inline std::int64_t moe_aggregate_kept(const MoEAggregate& op) {
  return op.rows * op.dim + (op.pooled.data == nullptr ? 0 : 2 * op.levels * op.rows * op.hidden);
}

// kept: [moe_aggregate_kept(op)], or null: the backward pass computes what it needs again. Both
// ways have the same bits.
void moe_aggregate_forward(const MoEAggregate& op, const MoEAggregateOut& out, float* kept);
// The same on packed weights; router_w1 and gate_w of op are not read.
void moe_aggregate_forward(const MoEAggregate& op, const MoEAggregateWeights& weights,
                           const MoEAggregateOut& out, float* kept);
void moe_aggregate_backward(const MoEAggregate& op, const MoEAggregateGradients& grad,
                            const float* kept);

}  // namespace adarec
