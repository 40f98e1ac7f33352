#include "../cpu/depth_controller.h"

#include <tuple>

#include "common.h"
#include "kept.h"

namespace adarec::bindings::depth_controller_op {
namespace {

// The checked arguments, and the tensors whose memory they point into.
struct Call {
  DepthController op;
  Tensor embeddings, offsets, sequence_bias, w_ih, w_hh, b_hh, w_out, b_out;
};

Call checked(const Tensor& embeddings, const Tensor& offsets, const Tensor& sequence_bias,
             const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_hh, const Tensor& w_out,
             const Tensor& b_out, int64_t max_length) {
  Call call;
  DepthController& op = call.op;
  call.embeddings = as_float(embeddings, "embeddings");
  TORCH_CHECK_VALUE(embeddings.dim() == 2, "embeddings has shape ", embeddings.sizes(),
                    "; it must be [N, D]");
  TORCH_CHECK_VALUE(w_hh.dim() == 2, "w_hh has shape ", w_hh.sizes(), "; it must be [3G, G]");
  TORCH_CHECK_VALUE(b_out.dim() == 1, "b_out has shape ", b_out.sizes(), "; it must be [T+1]");
  op.tokens = embeddings.size(0);
  op.size = embeddings.size(1);
  op.hidden = w_hh.size(1);
  op.depths = b_out.size(0);
  call.offsets = as_index(offsets, "offsets");
  op.sequences = check_offsets(call.offsets, op.tokens, false);
  op.offsets = call.offsets.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < op.sequences; ++b)
    TORCH_CHECK_VALUE(op.offsets[b + 1] - op.offsets[b] <= max_length, "offsets: sequence ", b,
                      " has ", op.offsets[b + 1] - op.offsets[b], " items, more than max_length=",
                      max_length);
  check_shape(sequence_bias, "sequence_bias", op.sequences, 3 * op.hidden);
  check_shape(w_ih, "w_ih", 3 * op.hidden, op.size);
  check_shape(w_hh, "w_hh", 3 * op.hidden, op.hidden);
  check_shape(b_hh, "b_hh", 3 * op.hidden);
  check_shape(w_out, "w_out", op.depths, op.hidden);
  call.sequence_bias = as_float(sequence_bias, "sequence_bias");
  call.w_ih = as_float(w_ih, "w_ih");
  call.w_hh = as_float(w_hh, "w_hh");
  call.b_hh = as_float(b_hh, "b_hh");
  call.w_out = as_float(w_out, "w_out");
  call.b_out = as_float(b_out, "b_out");
  op.embeddings = data(call.embeddings);
  op.sequence_bias = data(call.sequence_bias);
  op.w_ih = data(call.w_ih);
  op.w_hh = data(call.w_hh);
  op.b_hh = data(call.b_hh);
  op.w_out = data(call.w_out);
  op.b_out = data(call.b_out);
  return call;
}

#define ADAREC_DEPTH_PARAMETERS                                                                \
  const Tensor &embeddings, const Tensor &offsets, const Tensor &sequence_bias,                \
      const Tensor &w_ih, const Tensor &w_hh, const Tensor &b_hh, const Tensor &w_out,         \
      const Tensor &b_out, int64_t max_length
#define ADAREC_DEPTH_ARGUMENTS \
  embeddings, offsets, sequence_bias, w_ih, w_hh, b_hh, w_out, b_out, max_length

std::tuple<Tensor, Tensor> forward(ADAREC_DEPTH_PARAMETERS) {
  const Call call = checked(ADAREC_DEPTH_ARGUMENTS);
  Tensor logits = empty({call.op.sequences, call.op.depths});
  Tensor hidden = empty({call.op.tokens, call.op.hidden});
  depth_controller_forward(call.op, out(logits), out(hidden), nullptr);
  return {like(logits, embeddings), like(hidden, embeddings)};
}

// The same, and what resume() needs.
std::tuple<Tensor, Tensor, Tensor> keep(ADAREC_DEPTH_PARAMETERS) {
  const Call call = checked(ADAREC_DEPTH_ARGUMENTS);
  Tensor logits = empty({call.op.sequences, call.op.depths});
  Tensor hidden = empty({call.op.tokens, call.op.hidden});
  Tensor kept = empty({call.op.tokens, depth_controller_kept(call.op)});
  depth_controller_forward(call.op, out(logits), out(hidden), out(kept));
  return {like(logits, embeddings), like(hidden, embeddings), kept};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients gradients(const Tensor& grad_logits, const Tensor& hidden, const Tensor* kept,
                    ADAREC_DEPTH_PARAMETERS) {
  const Call call = checked(ADAREC_DEPTH_ARGUMENTS);
  const DepthController& op = call.op;
  check_shape(grad_logits, "grad_logits", op.sequences, op.depths);
  check_shape(hidden, "hidden", op.tokens, op.hidden);
  if (kept != nullptr) check_kept(*kept, op.tokens, depth_controller_kept(op));
  const Tensor grad = as_float(grad_logits, "grad_logits");
  const Tensor states = as_float(hidden, "hidden");
  const Tensor inputs[] = {embeddings, sequence_bias, w_ih, w_hh, b_hh, w_out, b_out};
  Tensor g[7];
  for (int i = 0; i < 7; ++i) g[i] = empty(inputs[i].sizes());
  depth_controller_backward(
      op, data(grad), data(states), kept == nullptr ? nullptr : data(*kept),
      {out(g[0]), out(g[1]), out(g[2]), out(g[3]), out(g[4]), out(g[5]), out(g[6])});
  for (int i = 0; i < 7; ++i) g[i] = like(g[i], inputs[i]);
  return {g[0], g[1], g[2], g[3], g[4], g[5], g[6]};
}

Gradients backward(const Tensor& grad_logits, const Tensor& hidden, ADAREC_DEPTH_PARAMETERS) {
  return gradients(grad_logits, hidden, nullptr, ADAREC_DEPTH_ARGUMENTS);
}

Gradients resume(const Tensor& grad_logits, const Tensor& hidden, const Tensor& kept,
                 ADAREC_DEPTH_PARAMETERS) {
  return gradients(grad_logits, hidden, &kept, ADAREC_DEPTH_ARGUMENTS);
}

TORCH_LIBRARY_FRAGMENT(adarec_fast_cpp, m) {
  m.def("depth_controller_fwd", &forward);
  m.def("depth_controller_bwd", &backward);
  m.def("depth_controller_keep", &keep);
  m.def("depth_controller_resume", &resume);
}

}  // namespace
}  // namespace adarec::bindings::depth_controller_op
