#include "../cpu/length_bias.h"

#include <tuple>

#include "common.h"

namespace adarec::bindings::length_bias_op {
namespace {

struct Arguments {
  Tensor offsets, w1, b1, w2, b2, w_v, b_ih;
  LengthBias op{};

  Arguments(const Tensor& offsets_in, const Tensor& w1_in, const Tensor& b1_in,
            const Tensor& w2_in, const Tensor& b2_in, const Tensor& w_v_in,
            const Tensor& b_ih_in, int64_t max_length)
      : offsets(as_index(offsets_in, "offsets")), w1(as_float(w1_in, "w1")),
        b1(as_float(b1_in, "b1")), w2(as_float(w2_in, "w2")), b2(as_float(b2_in, "b2")),
        w_v(as_float(w_v_in, "w_v")), b_ih(as_float(b_ih_in, "b_ih")) {
    TORCH_CHECK_VALUE(b1.dim() == 1, "b1 has shape ", b1.sizes(), "; it must be [D]");
    TORCH_CHECK_VALUE(b_ih.dim() == 1, "b_ih has shape ", b_ih.sizes(), "; it must be [3G]");
    TORCH_CHECK_VALUE(max_length >= 1, "max_length=", max_length, " must be at least 1");
    const int64_t size = b1.size(0);
    check_shape(w1, "w1", size, 1);
    check_shape(w2, "w2", size, size);
    check_shape(b2, "b2", size);
    check_shape(w_v, "w_v", b_ih.size(0), size);
    const int64_t batch = check_offsets(offsets, std::numeric_limits<int64_t>::max(), true);
    op = {batch, static_cast<int>(size), static_cast<int>(b_ih.size(0)), max_length,
          offsets.const_data_ptr<int64_t>(), data(w1), data(b1), data(w2), data(b2), data(w_v),
          data(b_ih)};
  }
};

std::tuple<Tensor, Tensor> forward(const Tensor& offsets, const Tensor& w1, const Tensor& b1,
                                   const Tensor& w2, const Tensor& b2, const Tensor& w_v,
                                   const Tensor& b_ih, int64_t max_length) {
  const Arguments a(offsets, w1, b1, w2, b2, w_v, b_ih, max_length);
  Tensor bias = empty({a.op.batch, a.op.wide}), v = empty({a.op.batch, a.op.size});
  length_bias_forward(a.op, out(bias), out(v));
  return {like(bias, w1), like(v, w1)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad_bias_in, const Tensor& v_in, const Tensor& offsets, const Tensor& w1,
    const Tensor& b1, const Tensor& w2, const Tensor& b2, const Tensor& w_v, const Tensor& b_ih,
    int64_t max_length) {
  const Arguments a(offsets, w1, b1, w2, b2, w_v, b_ih, max_length);
  const Tensor grad_bias = as_float(grad_bias_in, "grad_bias"), v = as_float(v_in, "v");
  check_shape(grad_bias, "grad_bias", a.op.batch, a.op.wide);
  check_shape(v, "v", a.op.batch, a.op.size);
  Tensor d_w1 = empty(w1.sizes()), d_b1 = empty(b1.sizes()), d_w2 = empty(w2.sizes()),
         d_b2 = empty(b2.sizes()), d_w_v = empty(w_v.sizes()), d_b_ih = empty(b_ih.sizes());
  length_bias_backward(a.op, data(grad_bias), data(v),
                       {out(d_w1), out(d_b1), out(d_w2), out(d_b2), out(d_w_v), out(d_b_ih)});
  return {like(d_w1, w1), like(d_b1, b1),   like(d_w2, w2),
          like(d_b2, b2), like(d_w_v, w_v), like(d_b_ih, b_ih)};
}

TORCH_LIBRARY_FRAGMENT(adarec_fast_cpp, m) {
  m.def("length_bias_fwd", &forward);
  m.def("length_bias_bwd", &backward);
}

}  // namespace
}  // namespace adarec::bindings::length_bias_op
