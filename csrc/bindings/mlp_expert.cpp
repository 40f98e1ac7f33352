#include "../cpu/mlp_expert.h"

#include <tuple>

#include "common.h"
#include "kept.h"

namespace adarec::bindings::mlp_expert_op {
namespace {

// The arguments as the kernel takes them, checked, with the tensors that own the memory.
struct Arguments {
  Tensor x, offsets, depth, w1, b1, w2, b2, ln_w, ln_b;
  MLPExpert op{};

  Arguments(const Tensor& x_in, const Tensor& offsets_in, const std::optional<Tensor>& depth_in,
            const Tensor& w1_in, const Tensor& b1_in, const Tensor& w2_in, const Tensor& b2_in,
            const Tensor& ln_w_in, const Tensor& ln_b_in, double eps, double hidden_dropout,
            const std::optional<Tensor>& seed, int64_t stream, bool residual, bool last_only)
      : x(as_float(x_in, "x")),
        offsets(as_index(offsets_in, "offsets")),
        w1(as_float(w1_in, "w1")),
        b1(as_float(b1_in, "b1")),
        w2(as_float(w2_in, "w2")),
        b2(as_float(b2_in, "b2")),
        ln_w(as_float(ln_w_in, "ln_w")),
        ln_b(as_float(ln_b_in, "ln_b")) {
    TORCH_CHECK_VALUE(x.dim() == 3 && x.size(2) > 0, "x has shape ", x.sizes(),
                      "; it must be [K, N, D]");
    TORCH_CHECK_VALUE(w1.dim() == 2 && w1.size(0) > 0, "w1 has shape ", w1.sizes(),
                      "; it must be [H, D]");
    const int64_t size = x.size(2), hidden = w1.size(0);
    TORCH_CHECK_VALUE(size <= kLargest && hidden <= kLargest, "w1 has shape ", w1.sizes(),
                      "; neither size may exceed ", kLargest);
    op.levels = x.size(0);
    op.tokens = x.size(1);
    check_shape(w1, "w1", hidden, size);
    check_shape(b1, "b1", hidden);
    check_shape(w2, "w2", size, hidden);
    check_shape(b2, "b2", size);
    check_shape(ln_w, "ln_w", size);
    check_shape(ln_b, "ln_b", size);
    op.sequences = check_offsets(offsets, op.tokens, !last_only);
    if (depth_in.has_value()) {
      depth = as_index(*depth_in, "depth");
      check_depth(depth, op.sequences, op.levels);
      op.depth = depth.const_data_ptr<int64_t>();
    }
    check_probability(hidden_dropout, "hidden_dropout");
    op.size = static_cast<int>(size);
    op.hidden = static_cast<int>(hidden);
    op.x = data(x);
    op.offsets = offsets.const_data_ptr<int64_t>();
    op.w1 = data(w1);
    op.b1 = data(b1);
    op.w2 = data(w2);
    op.b2 = data(b2);
    op.ln_w = data(ln_w);
    op.ln_b = data(ln_b);
    op.eps = static_cast<float>(eps);
    op.dropout = hidden_dropout;
    op.residual = residual;
    op.last_only = last_only;
    op.stream = static_cast<std::uint32_t>(stream);
    if (seed.has_value()) {
      op.seeded = true;
      op.seed = seed_value(*seed);
    }
  }

  static constexpr int64_t kLargest = 1 << 14;  // a tile's offsets fit an int
};

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
  const Arguments a(ADAREC_MLP_ARGUMENTS);
  Tensor y = empty({a.op.levels, last_only ? a.op.sequences : a.op.tokens, a.op.size});
  if (a.op.levels > 0) mlp_expert_forward(a.op, out(y), nullptr);
  return like(y, x);
}

// The same, and what resume() needs.
std::tuple<Tensor, Tensor> keep(ADAREC_MLP_PARAMETERS) {
  const Arguments a(ADAREC_MLP_ARGUMENTS);
  Tensor y = empty({a.op.levels, last_only ? a.op.sequences : a.op.tokens, a.op.size});
  Tensor kept = empty({rows_of(a.op), mlp_expert_kept(a.op)});
  if (a.op.levels > 0) mlp_expert_forward(a.op, out(y), out(kept));
  return {like(y, x), kept};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients gradients(const Tensor& grad_y_in, const Tensor* kept, ADAREC_MLP_PARAMETERS) {
  const Arguments a(ADAREC_MLP_ARGUMENTS);
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
