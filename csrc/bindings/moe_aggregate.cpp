#include "../cpu/moe_aggregate.h"

#include <tuple>

#include "common.h"
#include "kept.h"

namespace adarec::bindings::moe_aggregate_op {
namespace {

using Maybe = std::optional<Tensor>;

// bfloat16 rows are read and written by the kernel itself.
Tensor as_rows(const Tensor& t, const char* name) {
  const bool direct = t.device().is_cpu() && t.scalar_type() == at::kBFloat16;
  return direct ? t.contiguous() : as_float(t, name);
}

Rows rows(const Tensor& t) {
  return {const_cast<void*>(t.const_data_ptr()), t.scalar_type() == at::kBFloat16};
}

// The checked arguments, and the tensors whose memory they point into.
struct Call {
  MoEAggregate op{};
  Tensor fine, coarse, pooled, depth, mass, w1, bias, w2, b2, gate_w, gate_b;
};

Call checked(const Tensor& fine, const Tensor& coarse, const Maybe& pooled, const Tensor& depth,
             const Tensor& level_mass, const Tensor& router_w1, const Tensor& router_level_bias,
             const Tensor& router_w2, const Tensor& router_b2, const Tensor& gate_w,
             const Tensor& gate_b) {
  Call call{.fine = as_rows(fine, "fine"),
            .coarse = as_rows(coarse, "coarse"),
            .depth = as_index(depth, "depth"),
            .mass = as_float(level_mass, "level_mass"),
            .w1 = as_float(router_w1, "router_w1"),
            .bias = as_float(router_level_bias, "router_level_bias"),
            .w2 = as_float(router_w2, "router_w2"),
            .b2 = as_float(router_b2, "router_b2"),
            .gate_w = as_float(gate_w, "gate_w"),
            .gate_b = as_float(gate_b, "gate_b")};
  MoEAggregate& op = call.op;
  TORCH_CHECK_VALUE(fine.dim() == 3 && fine.size(0) >= 1, "fine has shape ", fine.sizes(),
                    "; it must be [K, R, D] with K >= 1");
  op.levels = fine.size(0);
  op.rows = fine.size(1);
  op.dim = fine.size(2);
  TORCH_CHECK_VALUE(router_w2.dim() == 1, "router_w2 has shape ", router_w2.sizes(),
                    "; it must be [H]");
  op.hidden = router_w2.size(0);
  check_shape(coarse, "coarse", op.levels, op.rows, op.dim);
  check_depth(call.depth, op.rows, op.levels, -1);
  check_shape(level_mass, "level_mass", op.levels, op.rows);
  check_shape(router_w1, "router_w1", op.hidden, op.dim);
  check_shape(router_level_bias, "router_level_bias", op.levels, op.hidden);
  check_shape(router_b2, "router_b2", 1);
  check_shape(gate_w, "gate_w", op.dim, op.dim);
  check_shape(gate_b, "gate_b", op.dim);
  op.fine = rows(call.fine);
  op.coarse = rows(call.coarse);
  if (pooled) {
    check_shape(*pooled, "pooled", op.levels, op.rows, op.dim);
    call.pooled = as_rows(*pooled, "pooled");
    op.pooled = rows(call.pooled);
  }
  op.depth = call.depth.const_data_ptr<int64_t>();
  op.level_mass = data(call.mass);
  op.router_w1 = data(call.w1);
  op.router_level_bias = data(call.bias);
  op.router_w2 = data(call.w2);
  op.router_b2 = data(call.b2);
  op.gate_w = data(call.gate_w);
  op.gate_b = data(call.gate_b);
  return call;
}

#define ADAREC_MOE_PARAMETERS                                                                  \
  const Tensor &fine, const Tensor &coarse, const Maybe &pooled, const Tensor &depth,          \
      const Tensor &level_mass, const Tensor &router_w1, const Tensor &router_level_bias,      \
      const Tensor &router_w2, const Tensor &router_b2, const Tensor &gate_w,                  \
      const Tensor &gate_b
#define ADAREC_MOE_ARGUMENTS                                                                   \
  fine, coarse, pooled, depth, level_mass, router_w1, router_level_bias, router_w2, router_b2, \
      gate_w, gate_b

// What the forward pass returns.
struct Made {
  Tensor user, gates, z_fine, z_coarse;

  explicit Made(const Call& call)
      : user(empty({call.op.rows, call.op.dim}, call.fine.scalar_type())),
        gates(empty({call.op.levels, call.op.rows})),
        z_fine(empty({call.op.rows, call.op.dim})), z_coarse(empty({call.op.rows, call.op.dim})) {}
  void run(const MoEAggregate& op, float* kept) {
    moe_aggregate_forward(op, {rows(user), out(gates), out(z_fine), out(z_coarse)}, kept);
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(ADAREC_MOE_PARAMETERS) {
  const Call call = checked(ADAREC_MOE_ARGUMENTS);
  Made made(call);
  made.run(call.op, nullptr);
  return {made.user, made.gates, made.z_fine, made.z_coarse};
}

// The same, and what resume() needs.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> keep(ADAREC_MOE_PARAMETERS) {
  const Call call = checked(ADAREC_MOE_ARGUMENTS);
  Made made(call);
  Tensor kept = empty({1, moe_aggregate_kept(call.op)});
  made.run(call.op, out(kept));
  return {made.user, made.gates, made.z_fine, made.z_coarse, kept};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                             Tensor, Tensor>;

Gradients gradients(const Tensor& grad_user, const Tensor& gates, const Tensor& z_fine,
                    const Tensor& z_coarse, const Tensor* kept, ADAREC_MOE_PARAMETERS) {
  const Call call = checked(ADAREC_MOE_ARGUMENTS);
  const MoEAggregate& op = call.op;
  check_shape(grad_user, "grad_user", op.rows, op.dim);
  check_shape(gates, "gates", op.levels, op.rows);
  check_shape(z_fine, "z_fine", op.rows, op.dim);
  check_shape(z_coarse, "z_coarse", op.rows, op.dim);
  if (kept != nullptr) check_kept(*kept, 1, moe_aggregate_kept(op));
  const Tensor upstream = as_rows(grad_user, "grad_user"), g = as_float(gates, "gates"),
               zf = as_float(z_fine, "z_fine"), zc = as_float(z_coarse, "z_coarse");
  const auto same = [](const Tensor& t) { return empty(t.sizes(), t.scalar_type()); };
  Tensor d_fine = same(call.fine), d_coarse = same(call.coarse);
  Tensor d_pooled = pooled ? same(call.pooled) : empty({0}, fine.scalar_type());
  Tensor d_mass = empty(level_mass.sizes()), d_w1 = empty(router_w1.sizes()),
         d_bias = empty(router_level_bias.sizes()), d_w2 = empty(router_w2.sizes()),
         d_b2 = empty({1}), d_gate_w = empty(gate_w.sizes()), d_gate_b = empty(gate_b.sizes());
  moe_aggregate_backward(
      op, {rows(upstream), data(g), data(zf), data(zc), rows(d_fine), rows(d_coarse),
           pooled ? rows(d_pooled) : Rows{}, out(d_mass), out(d_w1), out(d_bias), out(d_w2),
           out(d_b2), out(d_gate_w), out(d_gate_b)},
      kept == nullptr ? nullptr : data(*kept));
  return {d_fine, d_coarse, d_pooled, like(d_mass, level_mass), like(d_w1, router_w1),
          like(d_bias, router_level_bias), like(d_w2, router_w2), like(d_b2, router_b2),
          like(d_gate_w, gate_w), like(d_gate_b, gate_b)};
}

Gradients backward(const Tensor& grad_user, const Tensor& gates, const Tensor& z_fine,
                   const Tensor& z_coarse, ADAREC_MOE_PARAMETERS) {
  return gradients(grad_user, gates, z_fine, z_coarse, nullptr, ADAREC_MOE_ARGUMENTS);
}

Gradients resume(const Tensor& grad_user, const Tensor& gates, const Tensor& z_fine,
                 const Tensor& z_coarse, const Tensor& kept, ADAREC_MOE_PARAMETERS) {
  return gradients(grad_user, gates, z_fine, z_coarse, &kept, ADAREC_MOE_ARGUMENTS);
}

TORCH_LIBRARY_FRAGMENT(adarec_fast_cpp, m) {
  m.def("moe_aggregate_fwd", &forward);
  m.def("moe_aggregate_bwd", &backward);
  m.def("moe_aggregate_keep", &keep);
  m.def("moe_aggregate_resume", &resume);
}

}  // namespace
}  // namespace adarec::bindings::moe_aggregate_op
