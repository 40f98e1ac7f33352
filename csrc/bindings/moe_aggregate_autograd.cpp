// Autograd of moe_aggregate for eager calls: what ops/moe_aggregate.py says in Python, without its
// cost, which at a few hundred rows is a seventh of forward and backward together. Both ask
// adarec_fast::moe_aggregate_fwd and _bwd, or _keep and _resume, for the work, so modes, fakes and
// profilers see the same.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include <string_view>
#include <tuple>

#include "common.h"

namespace adarec::bindings::moe_aggregate_autograd_op {
namespace {

using Maybe = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr std::string_view kBackend = "cpp";

#define ADAREC_MOE_TENSORS(T)                                                              \
  T fine, T coarse, const Maybe &pooled, T depth, T level_mass, T router_w1,               \
      T router_level_bias, T router_w2, T router_b2, T gate_w, T gate_b

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Forward = Outputs(ADAREC_MOE_TENSORS(const Tensor&), std::string_view backend);
using Keep = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>(ADAREC_MOE_TENSORS(const Tensor&),
                                                                std::string_view backend);
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                             Tensor, Tensor>;
using Backward = Gradients(const Tensor& grad_user, const Tensor& gates, const Tensor& z_fine,
                           const Tensor& z_coarse, ADAREC_MOE_TENSORS(const Tensor&),
                           std::string_view backend);
using Resume = Gradients(const Tensor& grad_user, const Tensor& gates, const Tensor& z_fine,
                         const Tensor& z_coarse, const Tensor& kept,
                         ADAREC_MOE_TENSORS(const Tensor&), std::string_view backend);

template <typename Signature>
c10::TypedOperatorHandle<Signature> op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

struct MoEAggregateFunction : torch::autograd::Function<MoEAggregateFunction> {
  static variable_list forward(AutogradContext* ctx, ADAREC_MOE_TENSORS(const Tensor&),
                               bool keeps) {
    at::AutoDispatchBelowADInplaceOrView below;
    Tensor user, gates, z_fine, z_coarse, kept;
    if (keeps) {
      static const auto run = op<Keep>("adarec_fast::moe_aggregate_keep");
      std::tie(user, gates, z_fine, z_coarse, kept) =
          run.call(fine, coarse, pooled, depth, level_mass, router_w1, router_level_bias,
                   router_w2, router_b2, gate_w, gate_b, kBackend);
    } else {
      static const auto run = op<Forward>("adarec_fast::moe_aggregate_fwd");
      std::tie(user, gates, z_fine, z_coarse) =
          run.call(fine, coarse, pooled, depth, level_mass, router_w1, router_level_bias,
                   router_w2, router_b2, gate_w, gate_b, kBackend);
    }
    ctx->save_for_backward({gates, z_fine, z_coarse, fine, coarse, pooled.value_or(Tensor()), depth,
                            level_mass, router_w1, router_level_bias, router_w2, router_b2, gate_w,
                            gate_b, kept});
    ctx->mark_non_differentiable({gates, z_fine, z_coarse});
    ctx->set_materialize_grads(false);
    return {user, gates, z_fine, z_coarse};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list found(12);  // an input each
    if (!grads[0].defined()) return found;
    const variable_list s = ctx->get_saved_variables();
    const Maybe pooled = s[5].defined() ? Maybe(s[5]) : std::nullopt;
    const Tensor grad = grads[0].contiguous();
    Gradients made;
    if (s[14].defined()) {
      static const auto run = op<Resume>("adarec_fast::moe_aggregate_resume");
      made = run.call(grad, s[0], s[1], s[2], s[14], s[3], s[4], pooled, s[6], s[7], s[8], s[9],
                      s[10], s[11], s[12], s[13], kBackend);
    } else {
      static const auto run = op<Backward>("adarec_fast::moe_aggregate_bwd");
      made = run.call(grad, s[0], s[1], s[2], s[3], s[4], pooled, s[6], s[7], s[8], s[9], s[10],
                      s[11], s[12], s[13], kBackend);
    }
    auto [d_fine, d_coarse, d_pooled, d_mass, d_w1, d_bias, d_w2, d_b2, d_gate_w, d_gate_b] = made;
    found = {d_fine, d_coarse, pooled ? d_pooled : Tensor(), Tensor(), d_mass, d_w1, d_bias,
             d_w2, d_b2, d_gate_w, d_gate_b, Tensor()};
    return found;
  }
};

Outputs moe_aggregate(ADAREC_MOE_TENSORS(const Tensor&), bool keeps) {
  const variable_list out =
      MoEAggregateFunction::apply(fine, coarse, pooled, depth, level_mass, router_w1,
                                  router_level_bias, router_w2, router_b2, gate_w, gate_b, keeps);
  return {out[0], out[1], out[2], out[3]};
}

TORCH_LIBRARY_FRAGMENT(adarec_fast_cpp, m) { m.def("moe_aggregate", &moe_aggregate); }

}  // namespace
}  // namespace adarec::bindings::moe_aggregate_autograd_op
