#include "../cpu/hda_trajectory.h"

#include <tuple>

#include "common.h"
#include "kept.h"

namespace adarec::bindings::hda_trajectory_op {
namespace {

// The arguments as the kernel takes them, checked, with the tensors that own the memory.
struct Arguments {
  Tensor embeddings, offsets, depth, alpha_bar, w1, level_bias, w2, b2, noise;
  HDATrajectory op{};

  Arguments(const Tensor& embeddings_in, const Tensor& offsets_in, const Tensor& depth_in,
            const Tensor& alpha_bar_in, const Tensor& w1_in, const Tensor& level_bias_in,
            const Tensor& w2_in, const Tensor& b2_in, const std::optional<Tensor>& seed,
            const std::optional<Tensor>& noise_in, bool bounded)
      : embeddings(as_float(embeddings_in, "embeddings")),
        offsets(as_index(offsets_in, "offsets")),
        depth(as_index(depth_in, "depth")),
        alpha_bar(as_float(alpha_bar_in, "alpha_bar")),
        w1(as_float(w1_in, "w1")),
        level_bias(as_float(level_bias_in, "level_bias")),
        w2(as_float(w2_in, "w2")),
        b2(as_float(b2_in, "b2")) {
    TORCH_CHECK_VALUE(embeddings.dim() == 2 && embeddings.size(1) > 0, "embeddings has shape ",
                      embeddings.sizes(), "; it must be [N, D]");
    TORCH_CHECK_VALUE(w1.dim() == 2 && w1.size(0) > 0, "w1 has shape ", w1.sizes(),
                      "; it must be [H, D]");
    TORCH_CHECK_VALUE(alpha_bar.dim() == 1 && alpha_bar.size(0) >= 1, "alpha_bar has shape ",
                      alpha_bar.sizes(), "; it must be [T+1]");
    op.tokens = embeddings.size(0);
    const int64_t size = embeddings.size(1), hidden = w1.size(0);
    TORCH_CHECK_VALUE(size <= kLargest && hidden <= kLargest, "w1 has shape ", w1.sizes(),
                      "; neither size may exceed ", kLargest);
    op.levels = alpha_bar.size(0);
    check_shape(w1, "w1", hidden, size);
    check_shape(level_bias, "level_bias", op.levels - 1, hidden);
    check_shape(w2, "w2", size, hidden);
    check_shape(b2, "b2", size);
    op.sequences = check_offsets(offsets, op.tokens, true);
    check_depth(depth, op.sequences, op.levels);
    op.size = static_cast<int>(size);
    op.hidden = static_cast<int>(hidden);
    op.embeddings = data(embeddings);
    op.offsets = offsets.const_data_ptr<int64_t>();
    op.depth = depth.const_data_ptr<int64_t>();
    op.alpha_bar = data(alpha_bar);
    op.w1 = data(w1);
    op.level_bias = data(level_bias);
    op.w2 = data(w2);
    op.b2 = data(b2);
    op.bounded = bounded;
    if (noise_in.has_value()) {
      noise = as_float(*noise_in, "noise");
      check_shape(noise, "noise", op.levels - 1, op.tokens, size);
      op.noise = data(noise);
    } else if (seed.has_value()) {
      op.seeded = true;
      op.seed = seed_value(*seed);
    }
  }

  static constexpr int64_t kLargest = 1 << 14;  // a tile's offsets fit an int
};

#define ADAREC_HDA_PARAMETERS                                                                    \
  const Tensor &embeddings, const Tensor &offsets, const Tensor &depth, const Tensor &alpha_bar,  \
      const Tensor &w1, const Tensor &level_bias, const Tensor &w2, const Tensor &b2,             \
      const std::optional<Tensor>&seed, const std::optional<Tensor>&noise, bool bounded
#define ADAREC_HDA_ARGUMENTS                                                                     \
  embeddings, offsets, depth, alpha_bar, w1, level_bias, w2, b2, seed, noise, bounded

int64_t rows_of(const HDATrajectory& op) { return (op.levels - 1) * op.tokens; }

std::tuple<Tensor, Tensor> forward(ADAREC_HDA_PARAMETERS) {
  const Arguments a(ADAREC_HDA_ARGUMENTS);
  Tensor x0 = empty({a.op.levels, a.op.tokens, a.op.size});
  Tensor error = empty({a.op.tokens});
  hda_trajectory_forward(a.op, out(x0), out(error), nullptr);
  return {like(x0, embeddings), error};
}

// The same, and what resume() needs.
std::tuple<Tensor, Tensor, Tensor> keep(ADAREC_HDA_PARAMETERS) {
  const Arguments a(ADAREC_HDA_ARGUMENTS);
  Tensor x0 = empty({a.op.levels, a.op.tokens, a.op.size});
  Tensor error = empty({a.op.tokens});
  Tensor kept = empty({rows_of(a.op), hda_trajectory_kept(a.op)});
  hda_trajectory_forward(a.op, out(x0), out(error), out(kept));
  return {like(x0, embeddings), error, kept};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients gradients(const Tensor& grad_x0_in, const Tensor& grad_error_in, const Tensor* kept,
                    ADAREC_HDA_PARAMETERS) {
  const Arguments a(ADAREC_HDA_ARGUMENTS);
  const Tensor grad_x0 = as_float(grad_x0_in, "grad_x0");
  const Tensor grad_error = as_float(grad_error_in, "grad_error");
  check_shape(grad_x0, "grad_x0", a.op.levels, a.op.tokens, a.op.size);
  check_shape(grad_error, "grad_error", a.op.tokens);
  if (kept != nullptr) check_kept(*kept, rows_of(a.op), hda_trajectory_kept(a.op));
  Tensor d_e = empty(a.embeddings.sizes()), d_w1 = empty(a.w1.sizes()),
         d_bias = empty(a.level_bias.sizes()), d_w2 = empty(a.w2.sizes()),
         d_b2 = empty(a.b2.sizes());
  hda_trajectory_backward(a.op, data(grad_x0), data(grad_error),
                          kept == nullptr ? nullptr : data(*kept),
                          {out(d_e), out(d_w1), out(d_bias), out(d_w2), out(d_b2)});
  return {like(d_e, embeddings), like(d_w1, w1), like(d_bias, level_bias), like(d_w2, w2),
          like(d_b2, b2)};
}

Gradients backward(const Tensor& grad_x0, const Tensor& grad_error, ADAREC_HDA_PARAMETERS) {
  return gradients(grad_x0, grad_error, nullptr, ADAREC_HDA_ARGUMENTS);
}

Gradients resume(const Tensor& grad_x0, const Tensor& grad_error, const Tensor& kept,
                 ADAREC_HDA_PARAMETERS) {
  return gradients(grad_x0, grad_error, &kept, ADAREC_HDA_ARGUMENTS);
}

TORCH_LIBRARY_FRAGMENT(adarec_fast_cpp, m) {
  m.def("hda_trajectory_fwd", &forward);
  m.def("hda_trajectory_bwd", &backward);
  m.def("hda_trajectory_keep", &keep);
  m.def("hda_trajectory_resume", &resume);
}

}  // namespace
}  // namespace adarec::bindings::hda_trajectory_op
