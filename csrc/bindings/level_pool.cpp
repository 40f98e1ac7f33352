#include "../cpu/level_pool.h"

#include <limits>

#include "common.h"

namespace adarec::bindings::level_pool_op {
namespace {

// The arguments as the kernel takes them, checked, with the tensors that own the memory.
struct Arguments {
  Tensor offsets, depth;
  LevelPool op{};

  Arguments(const Tensor& rows, const char* name, int64_t tokens, const Tensor& offsets_in,
            const std::optional<Tensor>& depth_in, bool causal)
      : offsets(as_index(offsets_in, "offsets")) {
    TORCH_CHECK_VALUE(rows.dim() == 3 && rows.size(2) <= std::numeric_limits<int>::max(), name,
                      " has shape ", rows.sizes(), "; it must be [K, N, D]");
    op.levels = rows.size(0);
    op.tokens = tokens;
    op.size = static_cast<int>(rows.size(2));
    op.sequences = check_offsets(offsets, tokens, true);
    op.offsets = offsets.const_data_ptr<int64_t>();
    if (depth_in.has_value()) {
      depth = as_index(*depth_in, "depth");
      check_depth(depth, op.sequences, op.levels);
      op.depth = depth.const_data_ptr<int64_t>();
    }
    op.causal = causal;
  }

  int64_t rows() const { return op.causal ? op.tokens : op.sequences; }
};

Tensor forward(const Tensor& x_in, const Tensor& offsets, const std::optional<Tensor>& depth,
               bool causal) {
  const Tensor x = as_float(x_in, "x");
  const Arguments a(x, "x", x.dim() == 3 ? x.size(1) : 0, offsets, depth, causal);
  Tensor pooled = empty({a.op.levels, a.rows(), a.op.size});
  level_pool_forward(a.op, data(x), out(pooled));
  return like(pooled, x_in);
}

Tensor backward(const Tensor& grad_in, const Tensor& offsets, const std::optional<Tensor>& depth,
                bool causal, int64_t tokens) {
  const Tensor grad = as_float(grad_in, "grad");
  const Arguments a(grad, "grad", tokens, offsets, depth, causal);
  check_shape(grad, "grad", a.op.levels, a.rows(), a.op.size);
  Tensor grad_x = empty({a.op.levels, tokens, a.op.size});
  level_pool_backward(a.op, data(grad), out(grad_x));
  return like(grad_x, grad_in);
}

TORCH_LIBRARY_FRAGMENT(adarec_fast_cpp, m) {
  m.def("level_pool_fwd", &forward);
  m.def("level_pool_bwd", &backward);
}

}  // namespace
}  // namespace adarec::bindings::level_pool_op
