#include "../cpu/level_infonce.h"

#include <tuple>

#include "common.h"

namespace adarec::bindings::level_infonce_op {
namespace {

// The checked arguments, and the tensors whose memory they point into.
struct Call {
  LevelInfoNCE op{};
  Tensor z, depth, targets;
};

Call checked(const Tensor& z, const Tensor& depth, const Tensor& targets, double temperature) {
  Call call{.z = as_float(z, "z"),
            .depth = as_index(depth, "depth"),
            .targets = as_index(targets, "targets")};
  LevelInfoNCE& op = call.op;
  TORCH_CHECK_VALUE(z.dim() == 3 && z.size(0) >= 1, "z has shape ", z.sizes(),
                    "; it must be [K, B, D] with K >= 1");
  op.levels = z.size(0);
  op.users = z.size(1);
  op.dim = z.size(2);
  TORCH_CHECK_VALUE(op.users < (int64_t{1} << 31), "z has ", op.users,
                    " users; fewer than 2^31 are supported");
  check_depth(call.depth, op.users, op.levels);
  check_shape(targets, "targets", op.users);
  op.temperature = static_cast<float>(temperature);
  TORCH_CHECK_VALUE(op.temperature > 0, "temperature=", temperature, " must be greater than 0");
  op.z = data(call.z);
  op.depth = call.depth.const_data_ptr<int64_t>();
  op.targets = call.targets.const_data_ptr<int64_t>();
  return call;
}

std::tuple<Tensor, Tensor> forward(const Tensor& z, const Tensor& depth, const Tensor& targets,
                                   double temperature) {
  const Call call = checked(z, depth, targets, temperature);
  Tensor loss = empty({}), lse = empty({call.op.levels - 1, call.op.users});
  *out(loss) = static_cast<float>(level_infonce_forward(call.op, out(lse)));
  return {loss, lse};
}

Tensor backward(const Tensor& grad_loss, const Tensor& lse_in, const Tensor& z,
                const Tensor& depth, const Tensor& targets, double temperature) {
  const Call call = checked(z, depth, targets, temperature);
  const Tensor grad = as_float(grad_loss, "grad_loss"), lse = as_float(lse_in, "lse");
  TORCH_CHECK_VALUE(grad.numel() == 1, "grad_loss has shape ", grad.sizes(),
                    "; it must be a scalar");
  check_shape(lse, "lse", call.op.levels - 1, call.op.users);
  Tensor d_z = empty(call.z.sizes());
  level_infonce_backward(call.op, data(lse), *data(grad), out(d_z));
  return like(d_z, z);
}

TORCH_LIBRARY_FRAGMENT(adarec_fast_cpp, m) {
  m.def("level_infonce_fwd", &forward);
  m.def("level_infonce_bwd", &backward);
}

}  // namespace
}  // namespace adarec::bindings::level_infonce_op
