// Eq. 7 to 11 on the GPU: plain pointers and a stream, so that the kernels' translation unit needs
// no torch header. Nothing here waits for the device or reads its memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace adarec::cuda {

// All pointers are device memory; those to rows are 16-byte aligned. Rows hold float32, or
// bfloat16 where bf16 is set; everything else is float32.
struct MoEAggregate {
  std::int64_t rows;          // R
  int levels, dim, hidden;    // K, D, H
  bool bf16;
  const void *fine, *coarse;  // [K, R, D]; levels k > depth are not read
  const void* pooled;         // [K, R, D], or null: the router sees the level alone
  const std::int64_t* depth;  // [R] in -1..K-1; -1: capacity
  const float* level_mass;    // [K, R]
  const float* router_w1;     // [H, D]
  const float* router_level_bias;  // [K, H]
  const float* router_w2;     // [H]
  const float* router_b2;     // [1]
  const float* gate_w;        // [D, D]
  const float* gate_b;        // [D]
};

struct MoEAggregateOut {
  void* user;        // [R, D] rows
  float* gates;      // [K, R], 0 where not reached
  float* z_fine;     // [R, D]
  float* z_coarse;   // [R, D]
};

struct MoEAggregateGradients {
  const void* grad_user;                   // [R, D] rows, in
  const float *gates, *z_fine, *z_coarse;  // as the forward pass left them
  void *fine, *coarse, *pooled;            // [K, R, D] rows; levels k > depth are not written
  float* level_mass;                       // [K, R], 0 where not reached
  float *router_w1, *router_level_bias, *router_w2, *router_b2, *gate_w, *gate_b;
  float* scratch;                          // moe_aggregate_scratch() elements
};

// The largest D, and the multiple it must be of: 16 bytes of a row.
constexpr int kMaxDim = 256;
inline int dim_multiple(bool bf16) { return bf16 ? 8 : 4; }

std::int64_t moe_aggregate_scratch(const MoEAggregate& op);
cudaError_t moe_aggregate_forward(const MoEAggregate& op, const MoEAggregateOut& out,
                                  cudaStream_t stream);
cudaError_t moe_aggregate_backward(const MoEAggregate& op, const MoEAggregateGradients& grad,
                                   cudaStream_t stream);

}  // namespace adarec::cuda
