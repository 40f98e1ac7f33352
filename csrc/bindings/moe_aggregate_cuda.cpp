#include "../cuda/moe_aggregate.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

namespace adarec::bindings {
namespace {

using at::Tensor;
using Maybe = std::optional<Tensor>;

// Before all else: the guard takes no other device.
void check_cuda(const Tensor& fine) {
  TORCH_CHECK_VALUE(fine.is_cuda(), "fine is on ", fine.device(), "; backend cuda runs on cuda");
}

void check_place(const Tensor& t, const char* name, const Tensor& like) {
  TORCH_CHECK_VALUE(t.device() == like.device(), name, " is on ", t.device(), ", fine on ",
                    like.device());
}

template <typename... Sizes>
void check_shape(const Tensor& t, const char* name, Sizes... sizes) {
  const int64_t want[] = {static_cast<int64_t>(sizes)...};
  TORCH_CHECK_VALUE(t.sizes() == at::IntArrayRef(want), name, " has shape ", t.sizes(),
                    "; it must be ", at::IntArrayRef(want));
}

// Rows in fine's dtype, contiguous and at a 16-byte boundary.
Tensor as_rows(const Tensor& t, const char* name, const Tensor& fine) {
  check_place(t, name, fine);
  TORCH_CHECK_VALUE(t.is_floating_point(), name, " has dtype ", t.scalar_type());
  const Tensor rows = t.to(fine.scalar_type()).contiguous();
  const bool aligned = reinterpret_cast<std::uintptr_t>(rows.const_data_ptr()) % 16 == 0;
  return aligned ? rows : rows.clone();
}

Tensor as_float(const Tensor& t, const char* name, const Tensor& fine) {
  check_place(t, name, fine);
  TORCH_CHECK_VALUE(t.is_floating_point(), name, " has dtype ", t.scalar_type());
  const Tensor values = t.to(at::kFloat).contiguous();
  const bool aligned = reinterpret_cast<std::uintptr_t>(values.const_data_ptr()) % 16 == 0;
  return aligned ? values : values.clone();
}

const float* data(const Tensor& t) { return t.const_data_ptr<float>(); }
float* out(Tensor& t) { return t.mutable_data_ptr<float>(); }
Tensor like(const Tensor& result, const Tensor& input) { return result.to(input.scalar_type()); }

// The checked arguments, and the tensors whose memory they point into. Depths are not read here:
// that would wait for the device; the kernels keep within the levels whatever they hold.
struct Call {
  cuda::MoEAggregate op{};
  Tensor fine, coarse, pooled, depth, mass, w1, bias, w2, b2, gate_w, gate_b;

  Tensor empty(at::IntArrayRef sizes) const {
    return at::empty(sizes, fine.options().dtype(at::kFloat));
  }
  Tensor rows(at::IntArrayRef sizes) const { return at::empty(sizes, fine.options()); }
};

Call checked(const Tensor& fine, const Tensor& coarse, const Maybe& pooled, const Tensor& depth,
             const Tensor& level_mass, const Tensor& router_w1, const Tensor& router_level_bias,
             const Tensor& router_w2, const Tensor& router_b2, const Tensor& gate_w,
             const Tensor& gate_b) {
  TORCH_CHECK_VALUE(fine.scalar_type() == at::kFloat || fine.scalar_type() == at::kBFloat16,
                    "fine has dtype ", fine.scalar_type(),
                    "; backend cuda takes float32 or bfloat16 (backend packed takes others)");
  TORCH_CHECK_VALUE(fine.dim() == 3 && fine.size(0) >= 1, "fine has shape ", fine.sizes(),
                    "; it must be [K, R, D] with K >= 1");
  TORCH_CHECK_VALUE(router_w2.dim() == 1, "router_w2 has shape ", router_w2.sizes(),
                    "; it must be [H]");
  const int64_t levels = fine.size(0), rows = fine.size(1), dim = fine.size(2);
  const int64_t hidden = router_w2.size(0);
  const bool bf16 = fine.scalar_type() == at::kBFloat16;
  const int multiple = cuda::dim_multiple(bf16);
  TORCH_CHECK_VALUE(dim >= multiple && dim <= cuda::kMaxDim && dim % multiple == 0, "D=", dim,
                    " must be a multiple of ", multiple, " up to ", cuda::kMaxDim,
                    " for backend cuda in ", fine.scalar_type());
  TORCH_CHECK_VALUE(hidden >= 1 && hidden <= cuda::kMaxDim, "router_w2 has ", hidden,
                    " elements; backend cuda takes 1 to ", cuda::kMaxDim);
  check_shape(coarse, "coarse", levels, rows, dim);
  check_shape(depth, "depth", rows);
  check_shape(level_mass, "level_mass", levels, rows);
  check_shape(router_w1, "router_w1", hidden, dim);
  check_shape(router_level_bias, "router_level_bias", levels, hidden);
  check_shape(router_b2, "router_b2", 1);
  check_shape(gate_w, "gate_w", dim, dim);
  check_shape(gate_b, "gate_b", dim);
  check_place(depth, "depth", fine);
  TORCH_CHECK_VALUE(depth.scalar_type() == at::kLong, "depth has dtype ", depth.scalar_type(),
                    "; it must be torch.int64");
  Call call{.fine = as_rows(fine, "fine", fine),
            .coarse = as_rows(coarse, "coarse", fine),
            .depth = depth.contiguous(),
            .mass = as_float(level_mass, "level_mass", fine),
            .w1 = as_float(router_w1, "router_w1", fine),
            .bias = as_float(router_level_bias, "router_level_bias", fine),
            .w2 = as_float(router_w2, "router_w2", fine),
            .b2 = as_float(router_b2, "router_b2", fine),
            .gate_w = as_float(gate_w, "gate_w", fine),
            .gate_b = as_float(gate_b, "gate_b", fine)};
  cuda::MoEAggregate& op = call.op;
  op.rows = rows;
  op.levels = static_cast<int>(levels);
  op.dim = static_cast<int>(dim);
  op.hidden = static_cast<int>(hidden);
  op.bf16 = bf16;
  op.fine = call.fine.const_data_ptr();
  op.coarse = call.coarse.const_data_ptr();
  if (pooled) {
    check_shape(*pooled, "pooled", levels, rows, dim);
    call.pooled = as_rows(*pooled, "pooled", fine);
    op.pooled = call.pooled.const_data_ptr();
  }
  op.depth = call.depth.const_data_ptr<int64_t>();
  op.level_mass = data(call.mass);
  op.router_w1 = data(call.w1);
  op.router_level_bias = data(call.bias);
  op.router_w2 = data(call.w2);
  op.router_b2 = data(call.b2);
  op.gate_w = data(call.gate_w);
  op.gate_b = data(call.gate_b);
  return call;
}

#define ADAREC_MOE_PARAMETERS                                                                  \
  const Tensor &fine, const Tensor &coarse, const Maybe &pooled, const Tensor &depth,          \
      const Tensor &level_mass, const Tensor &router_w1, const Tensor &router_level_bias,      \
      const Tensor &router_w2, const Tensor &router_b2, const Tensor &gate_w,                  \
      const Tensor &gate_b
#define ADAREC_MOE_CHECKED                                                                     \
  checked(fine, coarse, pooled, depth, level_mass, router_w1, router_level_bias, router_w2,    \
          router_b2, gate_w, gate_b)

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(ADAREC_MOE_PARAMETERS) {
  check_cuda(fine);
  const c10::cuda::OptionalCUDAGuard guard(fine.device());
  const Call call = ADAREC_MOE_CHECKED;
  const int64_t levels = fine.size(0), rows = fine.size(1), dim = fine.size(2);
  Tensor user = call.rows({rows, dim}), gates = call.empty({levels, rows});
  Tensor z_fine = call.empty({rows, dim}), z_coarse = call.empty({rows, dim});
  C10_CUDA_CHECK(cuda::moe_aggregate_forward(
      call.op, {user.mutable_data_ptr(), out(gates), out(z_fine), out(z_coarse)},
      c10::cuda::getCurrentCUDAStream()));
  return {user, gates, z_fine, z_coarse};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                             Tensor, Tensor>;

Gradients backward(const Tensor& grad_user, const Tensor& gates, const Tensor& z_fine,
                   const Tensor& z_coarse, ADAREC_MOE_PARAMETERS) {
  check_cuda(fine);
  const c10::cuda::OptionalCUDAGuard guard(fine.device());
  const Call call = ADAREC_MOE_CHECKED;
  const int64_t levels = fine.size(0), rows = fine.size(1), dim = fine.size(2);
  check_shape(grad_user, "grad_user", rows, dim);
  check_shape(gates, "gates", levels, rows);
  check_shape(z_fine, "z_fine", rows, dim);
  check_shape(z_coarse, "z_coarse", rows, dim);
  const Tensor upstream = as_rows(grad_user, "grad_user", fine);
  const Tensor g = as_float(gates, "gates", fine), zf = as_float(z_fine, "z_fine", fine),
               zc = as_float(z_coarse, "z_coarse", fine);
  Tensor d_fine = call.rows(fine.sizes()), d_coarse = call.rows(fine.sizes());
  Tensor d_pooled = pooled ? call.rows(fine.sizes()) : call.rows({0});
  Tensor d_mass = call.empty(level_mass.sizes()), d_w1 = call.empty(router_w1.sizes()),
         d_bias = call.empty(router_level_bias.sizes()), d_w2 = call.empty(router_w2.sizes()),
         d_b2 = call.empty({1}), d_gate_w = call.empty(gate_w.sizes()),
         d_gate_b = call.empty(gate_b.sizes());
  Tensor scratch = call.empty({cuda::moe_aggregate_scratch(call.op)});
  C10_CUDA_CHECK(cuda::moe_aggregate_backward(
      call.op,
      {upstream.const_data_ptr(), data(g), data(zf), data(zc), d_fine.mutable_data_ptr(),
       d_coarse.mutable_data_ptr(), pooled ? d_pooled.mutable_data_ptr() : nullptr, out(d_mass),
       out(d_w1), out(d_bias), out(d_w2), out(d_b2), out(d_gate_w), out(d_gate_b), out(scratch)},
      c10::cuda::getCurrentCUDAStream()));
  return {d_fine, like(d_coarse, coarse), pooled ? like(d_pooled, *pooled) : d_pooled,
          like(d_mass, level_mass), like(d_w1, router_w1), like(d_bias, router_level_bias),
          like(d_w2, router_w2), like(d_b2, router_b2), like(d_gate_w, gate_w),
          like(d_gate_b, gate_b)};
}

TORCH_LIBRARY_FRAGMENT(adarec_fast_cuda, m) {
  m.def("moe_aggregate_fwd", &forward);
  m.def("moe_aggregate_bwd", &backward);
}

}  // namespace
}  // namespace adarec::bindings
