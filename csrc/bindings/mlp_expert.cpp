#include "mlp_expert.h"

#include <tuple>

#include "common.h"
#include "kept.h"

namespace adarec::bindings::mlp_expert_op {
namespace {

#define ADAREC_MLP_PARAMETERS                                                                   \
  const Tensor &x, const Tensor &offsets, const std::optional<Tensor>&depth, const Tensor &w1,   \
      const Tensor &b1, const Tensor &w2, const Tensor &b2, const Tensor &ln_w,                  \
      const Tensor &ln_b, double eps, double hidden_dropout, const std::optional<Tensor>&seed,   \
      int64_t stream, bool residual, bool last_only
#define ADAREC_MLP_ARGUMENTS                                                                    \
  x, offsets, depth, w1, b1, w2, b2, ln_w, ln_b, eps, hidden_dropout, seed, stream, residual,    \
      last_only

int64_t rows_of(const MLPExpert& op) {
  return op.levels * (op.last_only ? op.sequences : op.tokens);
}

Tensor forward(ADAREC_MLP_PARAMETERS) {
  const MLPArguments a(ADAREC_MLP_ARGUMENTS);
  Tensor y = empty({a.op.levels, last_only ? a.op.sequences : a.op.tokens, a.op.size});
  if (a.op.levels > 0) mlp_expert_forward(a.op, out(y), nullptr);
  return like(y, x);
}

// The same, and what resume() needs.
std::tuple<Tensor, Tensor> keep(ADAREC_MLP_PARAMETERS) {
  const MLPArguments a(ADAREC_MLP_ARGUMENTS);
  Tensor y = empty({a.op.levels, last_only ? a.op.sequences : a.op.tokens, a.op.size});
  Tensor kept = empty({rows_of(a.op), mlp_expert_kept(a.op)});
  if (a.op.levels > 0) mlp_expert_forward(a.op, out(y), out(kept));
  return {like(y, x), kept};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients gradients(const Tensor& grad_y_in, const Tensor* kept, ADAREC_MLP_PARAMETERS) {
  const MLPArguments a(ADAREC_MLP_ARGUMENTS);
  const Tensor grad_y = as_float(grad_y_in, "grad_y");
  check_shape(grad_y, "grad_y", a.op.levels, last_only ? a.op.sequences : a.op.tokens, a.op.size);
  if (kept != nullptr) check_kept(*kept, rows_of(a.op), mlp_expert_kept(a.op));
  Tensor d_x = empty(a.x.sizes()), d_w1 = empty(a.w1.sizes()), d_b1 = empty(a.b1.sizes()),
         d_w2 = empty(a.w2.sizes()), d_b2 = empty(a.b2.sizes()), d_ln_w = empty(a.ln_w.sizes()),
         d_ln_b = empty(a.ln_b.sizes());
  mlp_expert_backward(a.op, data(grad_y), kept == nullptr ? nullptr : data(*kept),
                      {out(d_x), out(d_w1), out(d_b1), out(d_w2), out(d_b2), out(d_ln_w),
                       out(d_ln_b)});
  return {like(d_x, x),   like(d_w1, w1),     like(d_b1, b1),    like(d_w2, w2),
          like(d_b2, b2), like(d_ln_w, ln_w), like(d_ln_b, ln_b)};
}

Gradients backward(const Tensor& grad_y, ADAREC_MLP_PARAMETERS) {
  return gradients(grad_y, nullptr, ADAREC_MLP_ARGUMENTS);
}

Gradients resume(const Tensor& grad_y, const Tensor& kept, ADAREC_MLP_PARAMETERS) {
  return gradients(grad_y, &kept, ADAREC_MLP_ARGUMENTS);
}

TORCH_LIBRARY_FRAGMENT(adarec_fast_cpp, m) {
  m.def("mlp_expert_fwd", &forward);
  m.def("mlp_expert_bwd", &backward);
  m.def("mlp_expert_keep", &keep);
  m.def("mlp_expert_resume", &resume);
}

}  // namespace
}  // namespace adarec::bindings::mlp_expert_op
