#include "../cpu/embedding.h"

#include <optional>
#include <tuple>

#include "common.h"
#include "kept.h"

namespace adarec::bindings::embedding_op {
namespace {

#define ADAREC_EMBEDDING_PARAMETERS                                                            \
  const Tensor &item_ids, const Tensor &offsets, const Tensor &table, const Tensor &positions, \
      const Tensor &norm_weight, const Tensor &norm_bias, double eps, double p,                \
      const std::optional<Tensor>&seed
#define ADAREC_EMBEDDING_ARGUMENTS \
  item_ids, offsets, table, positions, norm_weight, norm_bias, eps, p, seed

// The checked arguments, and the tensors whose memory they point into.
struct Arguments {
  Embedding op{};
  Tensor item_ids, offsets, table, positions, norm_weight, norm_bias;

  Arguments(ADAREC_EMBEDDING_PARAMETERS)
      : item_ids(as_index(item_ids, "item_ids")), offsets(as_index(offsets, "offsets")),
        table(as_float(table, "table")), positions(as_float(positions, "positions")),
        norm_weight(as_float(norm_weight, "norm_weight")),
        norm_bias(as_float(norm_bias, "norm_bias")) {
    TORCH_CHECK_VALUE(table.dim() == 2 && table.size(0) >= 1, "table has shape ", table.sizes(),
                      "; it must be [V+1, D]");
    TORCH_CHECK_VALUE(positions.dim() == 2, "positions has shape ", positions.sizes(),
                      "; it must be [L, D]");
    TORCH_CHECK_VALUE(item_ids.dim() == 1, "item_ids has shape ", item_ids.sizes(),
                      "; it must be [N]");
    op.tokens = item_ids.numel();
    op.size = table.size(1);
    op.longest = positions.size(0);
    op.sequences = check_offsets(this->offsets, op.tokens, true);
    op.item_ids = this->item_ids.const_data_ptr<int64_t>();
    op.offsets = this->offsets.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < op.tokens; ++i)
      TORCH_CHECK_VALUE(op.item_ids[i] >= 0 && op.item_ids[i] < table.size(0), "item_ids[", i,
                        "]=", op.item_ids[i], " must lie in 0..", table.size(0) - 1);
    for (int64_t b = 0; b < op.sequences; ++b)
      TORCH_CHECK_VALUE(op.offsets[b + 1] - op.offsets[b] <= op.longest, "offsets: sequence ", b,
                        " has ", op.offsets[b + 1] - op.offsets[b], " items; positions are ",
                        op.longest);
    check_shape(positions, "positions", op.longest, op.size);
    check_shape(norm_weight, "norm_weight", op.size);
    check_shape(norm_bias, "norm_bias", op.size);
    check_probability(p, "p");
    op.table = data(this->table);
    op.positions = data(this->positions);
    op.norm_w = data(this->norm_weight);
    op.norm_b = data(this->norm_bias);
    op.eps = static_cast<float>(eps);
    op.dropout = p;
    if (seed.has_value()) {
      op.seeded = true;
      op.seed = seed_value(*seed);
    }
  }
};

Tensor forward(ADAREC_EMBEDDING_PARAMETERS) {
  const Arguments a(ADAREC_EMBEDDING_ARGUMENTS);
  Tensor x = empty({a.op.tokens, a.op.size});
  embedding_forward(a.op, out(x), nullptr);
  return like(x, table);
}

// The same, and what resume() needs.
std::tuple<Tensor, Tensor> keep(ADAREC_EMBEDDING_PARAMETERS) {
  const Arguments a(ADAREC_EMBEDDING_ARGUMENTS);
  Tensor x = empty({a.op.tokens, a.op.size});
  Tensor kept = empty({a.op.tokens, embedding_kept(a.op)});
  embedding_forward(a.op, out(x), out(kept));
  return {like(x, table), kept};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor>;

// Adds to d_table in place.
Gradients gradients(const Tensor& grad_in, const Tensor& d_table, const Tensor* kept,
                    ADAREC_EMBEDDING_PARAMETERS) {
  const Arguments a(ADAREC_EMBEDDING_ARGUMENTS);
  const Tensor grad = as_float(grad_in, "grad");
  check_shape(grad, "grad", a.op.tokens, a.op.size);
  check_shape(d_table, "d_table", table.size(0), a.op.size);
  if (kept != nullptr) check_kept(*kept, a.op.tokens, embedding_kept(a.op));
  Tensor sum = as_float(d_table, "d_table");
  Tensor d_positions = empty(positions.sizes()), d_weight = empty(norm_weight.sizes()),
         d_bias = empty(norm_bias.sizes());
  embedding_backward(a.op, data(grad), kept == nullptr ? nullptr : data(*kept),
                     {out(sum), out(d_positions), out(d_weight), out(d_bias)});
  if (!sum.is_same(d_table)) d_table.copy_(sum);
  return {like(d_positions, positions), like(d_weight, norm_weight), like(d_bias, norm_bias)};
}

Gradients backward(const Tensor& grad, const Tensor& d_table, ADAREC_EMBEDDING_PARAMETERS) {
  return gradients(grad, d_table, nullptr, ADAREC_EMBEDDING_ARGUMENTS);
}

Gradients resume(const Tensor& grad, const Tensor& d_table, const Tensor& kept,
                 ADAREC_EMBEDDING_PARAMETERS) {
  return gradients(grad, d_table, &kept, ADAREC_EMBEDDING_ARGUMENTS);
}

TORCH_LIBRARY_FRAGMENT(adarec_fast_cpp, m) {
  m.def("embedding_fwd", &forward);
  m.def(
      "embedding_bwd(Tensor grad, Tensor(a!) d_table, Tensor item_ids, Tensor offsets, "
      "Tensor table, Tensor positions, Tensor norm_weight, Tensor norm_bias, float eps, float p, "
      "Tensor? seed) -> (Tensor, Tensor, Tensor)",
      &backward);
  m.def("embedding_keep", &keep);
  m.def(
      "embedding_resume(Tensor grad, Tensor(a!) d_table, Tensor kept, Tensor item_ids, "
      "Tensor offsets, Tensor table, Tensor positions, Tensor norm_weight, Tensor norm_bias, "
      "float eps, float p, Tensor? seed) -> (Tensor, Tensor, Tensor)",
      &resume);
}

}  // namespace
}  // namespace adarec::bindings::embedding_op
