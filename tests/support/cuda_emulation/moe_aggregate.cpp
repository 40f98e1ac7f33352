// The kernels of csrc/cuda behind plain C functions, run on the CPU.
#include "cuda/moe_aggregate.cu"
#include "cuda/moe_aggregate_backward.cu"

using adarec::cuda::MoEAggregate;
using adarec::cuda::MoEAggregateGradients;
using adarec::cuda::MoEAggregateOut;

extern "C" {

void set_reversed(int reversed) { emulation::reversed = reversed != 0; }

std::int64_t scratch_size(const MoEAggregate* op) {
  return adarec::cuda::moe_aggregate_scratch(*op);
}

int forward(const MoEAggregate* op, const MoEAggregateOut* out) {
  return adarec::cuda::moe_aggregate_forward(*op, *out, nullptr);
}

int backward(const MoEAggregate* op, const MoEAggregateGradients* grad) {
  return adarec::cuda::moe_aggregate_backward(*op, *grad, nullptr);
}

}  // extern "C"
