// The coarse expert's arguments, for the op itself and the one that pools its results.
#pragma once

#include "../cpu/mlp_expert.h"

#include <optional>

#include "common.h"

namespace adarec::bindings {

// The arguments as the kernel takes them, checked, with the tensors that own the memory.
struct MLPArguments {
  Tensor x, offsets, depth, w1, b1, w2, b2, ln_w, ln_b;
  MLPExpert op{};

  MLPArguments(const Tensor& x_in, const Tensor& offsets_in, const std::optional<Tensor>& depth_in,
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

}  // namespace adarec::bindings
