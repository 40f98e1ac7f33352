#include "../cpu/memory_topk.h"

#include <cmath>
#include <tuple>

#include "score_topk.h"

namespace adarec::bindings::memory_topk_op {
namespace {

Tensor as_small_index(const Tensor& t, const char* name) {
  TORCH_CHECK_VALUE(t.device().is_cpu(), name, " is on ", t.device(), "; backend cpp runs on cpu");
  TORCH_CHECK_VALUE(t.scalar_type() == at::kInt, name, " has dtype ", t.scalar_type(),
                    "; it must be torch.int32");
  return t.contiguous();
}

// Of the whole matrix only what these histories read is looked at: it may have millions of entries.
void check_read(const Memory& memory, int64_t tokens, int64_t catalogue, int64_t entries) {
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t item = memory.values[t];
    TORCH_CHECK_VALUE(item >= 0 && item <= catalogue, "values[", t, "]=", item,
                      " must lie in 0..", catalogue);
    const int64_t begin = memory.rows[item], end = memory.rows[item + 1];
    TORCH_CHECK_VALUE(begin >= 0 && begin <= end && end <= entries, "rows of item ", item, ": ",
                      begin, " to ", end, " are no places among ", entries, " entries");
    for (int64_t e = begin; e < end; ++e)
      TORCH_CHECK_VALUE(memory.neighbours[e] >= 1 && memory.neighbours[e] <= catalogue,
                        "neighbours[", e, "]=", memory.neighbours[e], " must lie in 1..",
                        catalogue);
  }
}

void check_factor(double value, const char* name) {
  TORCH_CHECK_VALUE(std::isfinite(value) && value >= 0.0, name, "=", value,
                    " must be finite and at least 0");
}

std::tuple<Tensor, Tensor> forward(const Tensor& users_in, const Tensor& items_in,
                                   const Tensor& values_in, const Tensor& offsets_in,
                                   const Tensor& seen_in, const Tensor& seen_offsets_in,
                                   const Tensor& rows_in, const Tensor& neighbours_in,
                                   const Tensor& weights_in, int64_t /*widest*/, int64_t k,
                                   double alpha, double gamma, double decay) {
  const Tensor users = as_float(users_in, "users");
  const Tensor items = as_float(items_in, "items");
  const Tensor values = as_index(values_in, "values");
  const Tensor offsets = as_index(offsets_in, "offsets");
  const Tensor rows = as_index(rows_in, "rows");
  const Tensor neighbours = as_small_index(neighbours_in, "neighbours");
  const Tensor weights = as_float(weights_in, "weights");
  TopK op{};
  Tensor seen, seen_offsets, scores, best;
  std::tie(scores, best) = ranked(op, users, items, seen_in, seen_offsets_in, k,
                                  -std::numeric_limits<double>::infinity(), seen, seen_offsets);
  TORCH_CHECK_VALUE(values.dim() == 1, "values has shape ", values.sizes(), "; it must be [N]");
  const int64_t batch = check_offsets(offsets, values.size(0), true);
  TORCH_CHECK_VALUE(batch == op.users, "offsets has ", batch + 1, " elements; it must have ",
                    op.users + 1);
  check_shape(rows, "rows", op.items + 2);
  TORCH_CHECK_VALUE(neighbours.dim() == 1, "neighbours has shape ", neighbours.sizes(),
                    "; it must be [E]");
  check_shape(weights, "weights", neighbours.size(0));
  check_factor(alpha, "alpha");
  check_factor(gamma, "gamma");
  check_factor(decay, "decay");
  Memory memory{};
  memory.values = values.const_data_ptr<int64_t>();
  memory.offsets = offsets.const_data_ptr<int64_t>();
  memory.rows = rows.const_data_ptr<int64_t>();
  memory.neighbours = neighbours.const_data_ptr<int32_t>();
  memory.weights = data(weights);
  memory.alpha = static_cast<float>(alpha);
  memory.gamma = static_cast<float>(gamma);
  memory.decay = static_cast<float>(decay);
  check_read(memory, memory.offsets[batch], op.items, neighbours.size(0));
  memory_topk(op, memory);
  return {like(scores, users_in), best};
}

TORCH_LIBRARY_FRAGMENT(adarec_fast_cpp, m) { m.def("memory_topk_fwd", &forward); }

}  // namespace
}  // namespace adarec::bindings::memory_topk_op
