#include "../cpu/encoder_layer.h"

#include <array>
#include <tuple>

#include "common.h"
#include "kept.h"

namespace adarec::bindings::encoder_layer_op {
namespace {

constexpr std::array kWeightNames{"qkv_w", "qkv_b", "out_w", "out_b", "ln1_w", "ln1_b",
                                  "ff1_w", "ff1_b", "ff2_w", "ff2_b", "ln2_w", "ln2_b"};
constexpr size_t kWeights = kWeightNames.size();

// The kernel reads and writes bfloat16 rows itself: no float32 copy of all levels is made.
Tensor as_rows(const Tensor& t, const char* name) {
  const bool direct = t.device().is_cpu() && t.scalar_type() == at::kBFloat16;
  return direct ? t.contiguous() : as_float(t, name);
}

// The checked arguments, and the tensors whose memory they point into.
struct Call {
  EncoderLayer op;
  Tensor x, offsets, depth;
  std::array<Tensor, kWeights> weights;
};

Call checked(const Tensor& x_in, const Tensor& offsets_in, const std::optional<Tensor>& depth_in,
             std::array<Tensor, kWeights> weights, int64_t heads, double eps,
             double attention_dropout, double hidden_dropout, const std::optional<Tensor>& seed,
             int64_t stream, bool last_only, int64_t max_length, bool causal) {
  Call call;
  EncoderLayer& op = call.op;
  call.x = as_rows(x_in, "x");
  TORCH_CHECK_VALUE(call.x.dim() == 3, "x has shape ", call.x.sizes(), "; it must be [K, N, D]");
  op.levels = call.x.size(0);
  op.tokens = call.x.size(1);
  op.size = call.x.size(2);
  op.bf16 = call.x.scalar_type() == at::kBFloat16;
  op.x = call.x.const_data_ptr();
  call.offsets = as_index(offsets_in, "offsets");
  op.sequences = check_offsets(call.offsets, op.tokens, false);
  op.offsets = call.offsets.const_data_ptr<int64_t>();
  // Attention's dropout index holds the key's position in 16 bits.
  TORCH_CHECK_VALUE(max_length <= 1 << 16, "max_length=", max_length, " exceeds ", 1 << 16);
  for (int64_t b = 0; b < op.sequences; ++b)
    TORCH_CHECK_VALUE(op.offsets[b + 1] - op.offsets[b] <= max_length, "offsets: sequence ", b,
                      " has ", op.offsets[b + 1] - op.offsets[b], " items, more than max_length=",
                      max_length);
  op.depth = nullptr;
  if (depth_in) {
    call.depth = as_index(*depth_in, "depth");
    check_depth(call.depth, op.sequences, op.levels);
    op.depth = call.depth.const_data_ptr<int64_t>();
  }
  TORCH_CHECK_VALUE(heads >= 1 && op.size >= 1 && op.size % heads == 0, "heads=", heads,
                    " does not divide the size D=", op.size);
  op.heads = heads;
  op.inner = weights[6].size(0);
  const int64_t d = op.size, f = op.inner;
  const int64_t rows[kWeights] = {3 * d, 3 * d, d, d, d, d, f, f, d, d, d, d};
  const int64_t columns[kWeights] = {d, 0, d, 0, 0, 0, d, 0, f, 0, 0, 0};
  const float** targets[kWeights] = {&op.qkv_w, &op.qkv_b, &op.out_w, &op.out_b,
                                     &op.ln1_w, &op.ln1_b, &op.ff1_w, &op.ff1_b,
                                     &op.ff2_w, &op.ff2_b, &op.ln2_w, &op.ln2_b};
  for (size_t i = 0; i < kWeights; ++i) {
    if (columns[i]) check_shape(weights[i], kWeightNames[i], rows[i], columns[i]);
    else check_shape(weights[i], kWeightNames[i], rows[i]);
    call.weights[i] = as_float(weights[i], kWeightNames[i]);
    *targets[i] = data(call.weights[i]);
  }
  check_probability(attention_dropout, "attention_dropout");
  check_probability(hidden_dropout, "hidden_dropout");
  op.eps = static_cast<float>(eps);
  op.attention_dropout = attention_dropout;
  op.hidden_dropout = hidden_dropout;
  op.seeded = seed.has_value();
  if (seed) op.seed = seed_value(*seed);
  op.stream = static_cast<uint32_t>(stream);
  op.last_only = last_only;
  op.causal = causal;
  return call;
}

#define ADAREC_LAYER_PARAMETERS                                                                 \
  const Tensor &x, const Tensor &offsets, const std::optional<Tensor>&depth,                    \
      const Tensor &qkv_w, const Tensor &qkv_b, const Tensor &out_w, const Tensor &out_b,       \
      const Tensor &ln1_w, const Tensor &ln1_b, const Tensor &ff1_w, const Tensor &ff1_b,       \
      const Tensor &ff2_w, const Tensor &ff2_b, const Tensor &ln2_w, const Tensor &ln2_b,       \
      int64_t heads, double eps, double attention_dropout, double hidden_dropout,               \
      const std::optional<Tensor>&seed, int64_t stream, bool last_only, int64_t max_length,     \
      bool causal
#define ADAREC_LAYER_CHECKED                                                                    \
  checked(x, offsets, depth,                                                                    \
          {qkv_w, qkv_b, out_w, out_b, ln1_w, ln1_b, ff1_w, ff1_b, ff2_w, ff2_b, ln2_w, ln2_b}, \
          heads, eps, attention_dropout, hidden_dropout, seed, stream, last_only, max_length,   \
          causal)

int64_t rows_of(const EncoderLayer& op) {
  return op.levels * (op.last_only ? op.sequences : op.tokens);
}

Tensor forward(ADAREC_LAYER_PARAMETERS) {
  const Call call = ADAREC_LAYER_CHECKED;
  const EncoderLayer& op = call.op;
  Tensor y = empty({op.levels, last_only ? op.sequences : op.tokens, op.size},
                   call.x.scalar_type());
  encoder_layer_forward(op, y.mutable_data_ptr(), nullptr);
  return y;
}

// The same, and what resume() needs.
std::tuple<Tensor, Tensor> keep(ADAREC_LAYER_PARAMETERS) {
  const Call call = ADAREC_LAYER_CHECKED;
  const EncoderLayer& op = call.op;
  Tensor y = empty({op.levels, last_only ? op.sequences : op.tokens, op.size},
                   call.x.scalar_type());
  Tensor kept = empty({rows_of(op), encoder_layer_kept(op)});
  encoder_layer_forward(op, y.mutable_data_ptr(), out(kept));
  return {y, kept};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                             Tensor, Tensor, Tensor, Tensor>;

Gradients gradients(const Tensor& grad_y, const Tensor* kept, ADAREC_LAYER_PARAMETERS) {
  const Call call = ADAREC_LAYER_CHECKED;
  const EncoderLayer& op = call.op;
  check_shape(grad_y, "grad_y", op.levels, last_only ? op.sequences : op.tokens, op.size);
  if (kept != nullptr) check_kept(*kept, rows_of(op), encoder_layer_kept(op));
  const Tensor grad = as_rows(grad_y, "grad_y").to(call.x.scalar_type());
  Tensor d_x = empty(call.x.sizes(), call.x.scalar_type());
  std::array<Tensor, kWeights> g;
  for (size_t i = 0; i < kWeights; ++i) g[i] = empty(call.weights[i].sizes());
  encoder_layer_backward(op, grad.const_data_ptr(), kept == nullptr ? nullptr : data(*kept),
                         {d_x.mutable_data_ptr(), out(g[0]), out(g[1]), out(g[2]), out(g[3]),
                          out(g[4]), out(g[5]), out(g[6]), out(g[7]), out(g[8]), out(g[9]),
                          out(g[10]), out(g[11])});
  return {d_x,
          like(g[0], qkv_w), like(g[1], qkv_b), like(g[2], out_w), like(g[3], out_b),
          like(g[4], ln1_w), like(g[5], ln1_b), like(g[6], ff1_w), like(g[7], ff1_b),
          like(g[8], ff2_w), like(g[9], ff2_b), like(g[10], ln2_w), like(g[11], ln2_b)};
}

#define ADAREC_LAYER_ARGUMENTS                                                                  \
  x, offsets, depth, qkv_w, qkv_b, out_w, out_b, ln1_w, ln1_b, ff1_w, ff1_b, ff2_w, ff2_b,      \
      ln2_w, ln2_b, heads, eps, attention_dropout, hidden_dropout, seed, stream, last_only,     \
      max_length, causal

Gradients backward(const Tensor& grad_y, ADAREC_LAYER_PARAMETERS) {
  return gradients(grad_y, nullptr, ADAREC_LAYER_ARGUMENTS);
}

Gradients resume(const Tensor& grad_y, const Tensor& kept, ADAREC_LAYER_PARAMETERS) {
  return gradients(grad_y, &kept, ADAREC_LAYER_ARGUMENTS);
}

TORCH_LIBRARY_FRAGMENT(adarec_fast_cpp, m) {
  m.def("encoder_layer_fwd", &forward);
  m.def("encoder_layer_bwd", &backward);
  m.def("encoder_layer_keep", &keep);
  m.def("encoder_layer_resume", &resume);
}

}  // namespace
}  // namespace adarec::bindings::encoder_layer_op
