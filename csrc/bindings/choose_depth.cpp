// Logarithms, softmax and argmax are ATen's, so that a sample is the one that plain PyTorch draws,
// to the last bit.
#include "../cpu/choose_depth.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_softmax_backward_data.h>
#include <ATen/ops/argmax.h>
#include <ATen/ops/cumsum.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/softmax.h>

#include <optional>
#include <tuple>

#include "common.h"

namespace adarec::bindings::choose_depth_op {
namespace {

using Optional = std::optional<Tensor>;

// The place of a seed in this op counts sequences.
Seed seed_of_choices(const Tensor& seed) {
  const Tensor given = as_index(seed, "seed");
  TORCH_CHECK_VALUE(given.numel() == 3, "seed has shape ", given.sizes(), "; it must be [3]");
  const int64_t* at = given.const_data_ptr<int64_t>();
  return {at[0], at[2]};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& logits_in, const Optional& seed, const Optional& offsets_in, double temperature,
    bool all_levels, int64_t rows) {
  const at::NoGradGuard no_grad;
  const Tensor logits = as_float(logits_in, "logits");
  TORCH_CHECK_VALUE(logits.dim() == 2, "logits has shape ", logits.sizes(),
                    "; it must be [B, T+1]");
  const int64_t batch = logits.size(0), choices = logits.size(1);
  Tensor soft = empty({0, choices});
  if (seed) {
    Tensor noise = empty(logits.sizes());
    choice_uniforms(noise.numel(), choices, seed_of_choices(*seed), out(noise));
    noise.log_().neg_().log_().neg_();
    soft = at::softmax(noise.add_(logits).div_(temperature), -1);
  }
  const Tensor depth = at::argmax(seed ? soft : logits, -1);
  const Tensor computed =
      all_levels ? at::full_like(depth, choices - 1) : empty({0}, at::kLong);
  Tensor offsets, row_depth = empty({offsets_in ? rows : 0}, at::kLong);
  const int64_t* bounds = nullptr;
  if (offsets_in) {
    offsets = as_index(*offsets_in, "offsets");
    check_shape(offsets, "offsets", batch + 1);
    check_offsets(offsets, rows, true);
    bounds = offsets.const_data_ptr<int64_t>();
  }
  Tensor mass = empty({choices, bounds ? rows : batch});
  const Tensor& deepest = all_levels ? computed : depth;
  level_mass(batch, choices, depth.const_data_ptr<int64_t>(), bounds, mass.size(1),
             deepest.const_data_ptr<int64_t>(), out(mass), row_depth.data_ptr<int64_t>());
  return {depth, computed, row_depth, like(mass, logits_in), soft};
}

Tensor backward(const Tensor& grad_mass, const Tensor& soft, const Optional& offsets_in,
                double temperature) {
  const at::NoGradGuard no_grad;
  const int64_t batch = soft.size(0), choices = soft.size(1);
  Tensor grad = as_float(grad_mass, "grad_mass");
  if (offsets_in) {
    const int64_t rows = grad.size(1);
    check_shape(grad, "grad_mass", choices, rows);
    const Tensor offsets = as_index(*offsets_in, "offsets");
    check_shape(offsets, "offsets", batch + 1);
    check_offsets(offsets, rows, true);
    Tensor sums = empty({choices, batch});
    sum_of_tokens(batch, choices, offsets.const_data_ptr<int64_t>(), rows, data(grad), out(sums));
    grad = sums;
  }
  check_shape(grad, "grad_mass", choices, batch);
  // y_i counts in every m_k with k <= i.
  const Tensor d_soft = at::cumsum(grad.t(), -1);
  const Tensor d_logits = at::_softmax_backward_data(d_soft, soft, -1, at::kFloat);
  return like(d_logits.div(temperature), grad_mass);
}

TORCH_LIBRARY_FRAGMENT(adarec_fast_cpp, m) {
  m.def("choose_depth_fwd", &forward);
  m.def("choose_depth_bwd", &backward);
}

}  // namespace
}  // namespace adarec::bindings::choose_depth_op
