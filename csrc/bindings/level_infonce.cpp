#include "../cpu/level_infonce.h"

#include <tuple>

#include "common.h"
#include "kept.h"

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

#define ADAREC_INFONCE_PARAMETERS \
  const Tensor &z, const Tensor &depth, const Tensor &targets, double temperature
#define ADAREC_INFONCE_ARGUMENTS z, depth, targets, temperature

std::tuple<Tensor, Tensor> forward(ADAREC_INFONCE_PARAMETERS) {
  const Call call = checked(ADAREC_INFONCE_ARGUMENTS);
  Tensor loss = empty({}), softmax = empty({2, call.op.levels - 1, call.op.users});
  *out(loss) = static_cast<float>(level_infonce_forward(call.op, out(softmax), nullptr));
  return {loss, softmax};
}

// The same, and what resume() needs.
std::tuple<Tensor, Tensor, Tensor> keep(ADAREC_INFONCE_PARAMETERS) {
  const Call call = checked(ADAREC_INFONCE_ARGUMENTS);
  const int64_t floats = level_infonce_kept(call.op);
  TORCH_CHECK_VALUE(floats >= 0, "z has ", call.op.users, " users; at most 1024 users' pairs are kept");
  Tensor loss = empty({}), softmax = empty({2, call.op.levels - 1, call.op.users});
  Tensor kept = empty({1, floats});
  *out(loss) = static_cast<float>(level_infonce_forward(call.op, out(softmax), out(kept)));
  return {loss, softmax, kept};
}

Tensor gradient(const Tensor& grad_loss, const Tensor& softmax_in, const Tensor* kept,
                ADAREC_INFONCE_PARAMETERS) {
  const Call call = checked(ADAREC_INFONCE_ARGUMENTS);
  const Tensor grad = as_float(grad_loss, "grad_loss"), softmax = as_float(softmax_in, "saved");
  TORCH_CHECK_VALUE(grad.numel() == 1, "grad_loss has shape ", grad.sizes(),
                    "; it must be a scalar");
  check_shape(softmax, "saved", 2, call.op.levels - 1, call.op.users);
  if (kept != nullptr) check_kept(*kept, 1, level_infonce_kept(call.op));
  Tensor d_z = empty(call.z.sizes());
  level_infonce_backward(call.op, data(softmax), kept == nullptr ? nullptr : data(*kept),
                         *data(grad), out(d_z));
  return like(d_z, z);
}

Tensor backward(const Tensor& grad_loss, const Tensor& softmax, ADAREC_INFONCE_PARAMETERS) {
  return gradient(grad_loss, softmax, nullptr, ADAREC_INFONCE_ARGUMENTS);
}

Tensor resume(const Tensor& grad_loss, const Tensor& softmax, const Tensor& kept,
              ADAREC_INFONCE_PARAMETERS) {
  return gradient(grad_loss, softmax, &kept, ADAREC_INFONCE_ARGUMENTS);
}

TORCH_LIBRARY_FRAGMENT(adarec_fast_cpp, m) {
  m.def("level_infonce_fwd", &forward);
  m.def("level_infonce_bwd", &backward);
  m.def("level_infonce_keep", &keep);
  m.def("level_infonce_resume", &resume);
}

}  // namespace
}  // namespace adarec::bindings::level_infonce_op
