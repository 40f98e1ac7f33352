#include "../cpu/dropout.h"

#include "common.h"

namespace adarec::bindings::dropout_op {
namespace {

Tensor forward(const Tensor& x_in, const Tensor& seed, double p, int64_t stream) {
  const Tensor x = as_float(x_in, "x");
  TORCH_CHECK_VALUE(x.dim() == 2, "x has shape ", x.sizes(), "; it must be [N, D]");
  check_probability(p, "p");
  Tensor y = empty(x.sizes());
  dropout_forward(x.numel(), x.size(1), data(x), p, seed_value(seed),
                  static_cast<std::uint32_t>(stream), out(y));
  return like(y, x_in);
}

TORCH_LIBRARY_FRAGMENT(adarec_fast_cpp, m) { m.def("dropout_fwd", &forward); }

}  // namespace
}  // namespace adarec::bindings::dropout_op
