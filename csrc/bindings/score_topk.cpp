#include "score_topk.h"

namespace adarec::bindings::score_topk_op {
namespace {

std::tuple<Tensor, Tensor> forward(const Tensor& users_in, const Tensor& items_in,
                                   const Tensor& seen_in, const Tensor& offsets_in, int64_t k,
                                   double seen_score) {
  const Tensor users = as_float(users_in, "users");
  const Tensor items = as_float(items_in, "items");
  TopK op{};
  Tensor seen, offsets;
  const auto [scores, best] =
      ranked(op, users, items, seen_in, offsets_in, k, seen_score, seen, offsets);
  score_topk(op);
  return {like(scores, users_in), best};
}

TORCH_LIBRARY_FRAGMENT(adarec_fast_cpp, m) { m.def("score_topk_fwd", &forward); }

}  // namespace
}  // namespace adarec::bindings::score_topk_op
