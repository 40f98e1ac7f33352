#include "../cpu/local_path.h"

#include <tuple>

#include "common.h"

namespace adarec::bindings::local_path_op {
namespace {

// The arguments as the kernel takes them, checked, with the tensors that own the memory.
struct Arguments {
  Tensor x, offsets, taps, norm_weight, norm_bias;
  LocalPath op{};

  Arguments(const Tensor& x_in, const Tensor& offsets_in, const Tensor& taps_in,
            const Tensor& norm_weight_in, const Tensor& norm_bias_in, double eps, double p,
            const std::optional<Tensor>& seed, int64_t stream)
      : x(as_float(x_in, "x")),
        offsets(as_index(offsets_in, "offsets")),
        taps(as_float(taps_in, "taps")),
        norm_weight(as_float(norm_weight_in, "norm_weight")),
        norm_bias(as_float(norm_bias_in, "norm_bias")) {
    TORCH_CHECK_VALUE(x.dim() == 2 && x.size(1) > 0 && x.size(1) <= kLargest, "x has shape ",
                      x.sizes(), "; it must be [N, D], D at most ", kLargest);
    const int64_t size = x.size(1);
    TORCH_CHECK_VALUE(taps.dim() == 2 && taps.size(0) >= 1 && taps.size(0) <= kLargest,
                      "taps has shape ", taps.sizes(), "; it must be [k, D]");
    check_shape(taps, "taps", taps.size(0), size);
    check_shape(norm_weight, "norm_weight", size);
    check_shape(norm_bias, "norm_bias", size);
    check_probability(p, "p");
    op.sequences = check_offsets(offsets, x.size(0), true);
    op.size = static_cast<int>(size);
    op.taps = static_cast<int>(taps.size(0));
    op.x = data(x);
    op.offsets = offsets.const_data_ptr<int64_t>();
    op.weights = data(taps);
    op.norm_w = data(norm_weight);
    op.norm_b = data(norm_bias);
    op.eps = static_cast<float>(eps);
    op.dropout = p;
    op.stream = static_cast<std::uint32_t>(stream);
    if (seed.has_value()) {
      op.seeded = true;
      op.seed = seed_value(*seed);
    }
  }

  static constexpr int64_t kLargest = 1 << 16;
};

Tensor forward(const Tensor& x, const Tensor& offsets, const Tensor& taps,
               const Tensor& norm_weight, const Tensor& norm_bias, double eps, double p,
               const std::optional<Tensor>& seed, int64_t stream) {
  const Arguments a(x, offsets, taps, norm_weight, norm_bias, eps, p, seed, stream);
  Tensor y = empty(a.x.sizes());
  local_path_forward(a.op, out(y));
  return like(y, x);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad_in, const Tensor& x, const Tensor& offsets, const Tensor& taps,
    const Tensor& norm_weight, const Tensor& norm_bias, double eps, double p,
    const std::optional<Tensor>& seed, int64_t stream) {
  const Arguments a(x, offsets, taps, norm_weight, norm_bias, eps, p, seed, stream);
  const Tensor grad = as_float(grad_in, "grad");
  check_shape(grad, "grad", a.x.size(0), a.x.size(1));
  Tensor d_x = empty(a.x.sizes()), d_taps = empty(a.taps.sizes()),
         d_weight = empty(a.norm_weight.sizes()), d_bias = empty(a.norm_bias.sizes());
  local_path_backward(a.op, data(grad), {out(d_x), out(d_taps), out(d_weight), out(d_bias)});
  return {like(d_x, x), like(d_taps, taps), like(d_weight, norm_weight), like(d_bias, norm_bias)};
}

TORCH_LIBRARY_FRAGMENT(adarec_fast_cpp, m) {
  m.def("local_path_fwd", &forward);
  m.def("local_path_bwd", &backward);
}

}  // namespace
}  // namespace adarec::bindings::local_path_op
