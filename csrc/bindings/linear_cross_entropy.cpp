#include <tuple>

#include "../cpu/catalogue.h"
#include "common.h"

namespace adarec::bindings::linear_cross_entropy_op {
namespace {

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& hidden_in, const Tensor& weight_in,
                                           const Tensor& targets_in, bool needs_grad) {
  const Tensor hidden = as_float(hidden_in, "hidden");
  const Tensor weight = as_float(weight_in, "weight");
  const Tensor targets = as_index(targets_in, "targets");
  TORCH_CHECK_VALUE(hidden.dim() == 2, "hidden has shape ", hidden.sizes(), "; it must be [R, D]");
  TORCH_CHECK_VALUE(weight.dim() == 2 && weight.size(0) >= 2, "weight has shape ", weight.sizes(),
                    "; it must be [V+1, D] with V >= 1");
  CrossEntropy op{};
  op.rows = hidden.size(0);
  op.items = weight.size(0) - 1;
  op.dim = hidden.size(1);
  check_shape(weight, "weight", op.items + 1, op.dim);
  check_shape(targets, "targets", op.rows);
  op.hidden = data(hidden);
  op.weight = data(weight);
  op.targets = targets.const_data_ptr<int64_t>();
  for (int64_t r = 0; r < op.rows; ++r)
    TORCH_CHECK_VALUE(op.targets[r] >= 0 && op.targets[r] <= op.items, "targets[", r, "]=",
                      op.targets[r], " must lie in 0..", op.items, " (0: the row does not count)");
  Tensor grad_hidden = needs_grad ? empty(hidden.sizes()) : empty({0});
  Tensor grad_weight = needs_grad ? empty(weight.sizes()) : empty({0});
  if (needs_grad) {
    op.grad_hidden = out(grad_hidden);
    op.grad_weight = out(grad_weight);
  }
  const double mean = linear_cross_entropy(op);
  Tensor loss = empty({});
  *out(loss) = static_cast<float>(mean);
  return {loss, like(grad_hidden, hidden_in), like(grad_weight, weight_in)};
}

TORCH_LIBRARY_FRAGMENT(adarec_fast_cpp, m) { m.def("linear_cross_entropy_fwd", &forward); }

}  // namespace
}  // namespace adarec::bindings::linear_cross_entropy_op
