#include "../cpu/objective.h"

#include <algorithm>
#include <optional>
#include <tuple>

#include "common.h"

namespace adarec::bindings::objective_op {
namespace {

using Optional = std::optional<Tensor>;

float scalar(const Tensor& t, const char* name) {
  TORCH_CHECK_VALUE(t.dim() == 0, name, " has shape ", t.sizes(), "; it must be []");
  return *data(as_float(t, name));
}

int64_t tokens_of(const Tensor& offsets, int64_t batch) {
  return offsets.const_data_ptr<int64_t>()[batch];
}

void check_logits(const Tensor& logits, int64_t batch) {
  TORCH_CHECK_VALUE(logits.dim() == 2 && logits.size(0) == batch, "logits has shape ",
                    logits.sizes(), "; it must be [", batch, ", K]");
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& rec_in, const Optional& cont_in, const Optional& error_in,
    const Tensor& offsets_in, const Tensor& computed_in, const Optional& logits_in,
    const Optional& gates_in, const Tensor& row_depth_in, int64_t levels, int64_t size,
    double deno_weight, double cont_weight, double expl_weight) {
  const double rec = scalar(rec_in, "rec"), cont = cont_in ? scalar(*cont_in, "cont") : 0.0;
  const Tensor offsets = as_index(offsets_in, "offsets"),
               computed = as_index(computed_in, "computed"),
               row_depth = as_index(row_depth_in, "row_depth");
  const int64_t capacity = error_in ? error_in->numel() : std::numeric_limits<int64_t>::max();
  const int64_t batch = check_offsets(offsets, capacity, true);
  check_depth(computed, batch, levels);
  const int64_t* bounds = offsets.const_data_ptr<int64_t>();
  double pairs = 0.0;  // of token and level
  for (int64_t b = 0; b < batch; ++b)
    pairs += static_cast<double>(bounds[b + 1] - bounds[b]) *
             static_cast<double>(computed.const_data_ptr<int64_t>()[b]);
  const double count = std::max(pairs * static_cast<double>(size), 1.0);
  double deno = 0.0, expl = 0.0;
  if (error_in) {
    const Tensor error = as_float(*error_in, "error");
    deno = total_error(tokens_of(offsets, batch), data(error)) / count;
  }
  if (logits_in) {
    const Tensor logits = as_float(*logits_in, "logits");
    check_logits(logits, batch);
    expl = total_negentropy(batch, logits.size(1), data(logits)) /
           static_cast<double>(std::max<int64_t>(batch, 1));
  }
  Tensor gate = empty({levels});
  if (gates_in) {
    const Tensor gates = as_float(*gates_in, "gates");
    check_shape(gates, "gates", levels, row_depth.numel());
    mean_gates(levels, row_depth.numel(), data(gates), row_depth.const_data_ptr<int64_t>(),
               out(gate));
  } else {
    std::fill_n(out(gate), levels, std::numeric_limits<float>::quiet_NaN());
  }
  Tensor total = empty({}), parts = empty({5}), counted = empty({});
  *out(total) = static_cast<float>(rec + deno_weight * deno + cont_weight * cont +
                                   expl_weight * expl);
  const double found[] = {rec, deno, cont, expl, -expl};
  std::copy_n(found, 5, out(parts));
  *out(counted) = static_cast<float>(count);
  return {like(total, rec_in), like(parts, rec_in), like(gate, rec_in), counted};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_in, const Tensor& count,
                                            const Tensor& offsets_in, const Optional& logits_in,
                                            int64_t tokens, double deno_weight,
                                            double cont_weight, double expl_weight) {
  const double grad = scalar(grad_in, "grad");
  const Tensor offsets = as_index(offsets_in, "offsets");
  const int64_t batch = check_offsets(offsets, std::numeric_limits<int64_t>::max(), true);
  Tensor d_cont = empty({}), d_error = empty({tokens}), d_logits = empty({0});
  *out(d_cont) = static_cast<float>(cont_weight * grad);
  const int64_t real = std::min(tokens, tokens_of(offsets, batch));
  std::fill_n(out(d_error), real,
              static_cast<float>(deno_weight * grad / scalar(count, "count")));
  std::fill(out(d_error) + real, out(d_error) + tokens, 0.0f);
  if (logits_in) {
    const Tensor logits = as_float(*logits_in, "logits");
    check_logits(logits, batch);
    d_logits = empty(logits.sizes());
    negentropy_slope(batch, logits.size(1), data(logits),
                     static_cast<float>(expl_weight * grad /
                                        static_cast<double>(std::max<int64_t>(batch, 1))),
                     out(d_logits));
    d_logits = like(d_logits, *logits_in);
  }
  return {like(d_cont, grad_in), like(d_error, grad_in), d_logits};
}

TORCH_LIBRARY_FRAGMENT(adarec_fast_cpp, m) {
  m.def("objective_fwd", &forward);
  m.def("objective_bwd", &backward);
}

}  // namespace
}  // namespace adarec::bindings::objective_op
