// What both rankings ask of their arguments.
#pragma once

#include <limits>
#include <tuple>

#include "../cpu/catalogue.h"
#include "common.h"

namespace adarec::bindings {

// Checks the arguments, points op at them and at the results [B, k], which come back; seen and
// seen_offsets keep alive what op points at, as users and items (contiguous float32) do.
inline std::tuple<Tensor, Tensor> ranked(TopK& op, const Tensor& users, const Tensor& items,
                                         const Tensor& seen_in, const Tensor& offsets_in, int64_t k,
                                         double seen_score, Tensor& seen, Tensor& offsets) {
  seen = as_index(seen_in, "seen");
  offsets = as_index(offsets_in, "seen_offsets");
  TORCH_CHECK_VALUE(users.dim() == 2, "users has shape ", users.sizes(), "; it must be [B, D]");
  TORCH_CHECK_VALUE(items.dim() == 2 && items.size(0) >= 2, "items has shape ", items.sizes(),
                    "; it must be [V+1, D] with V >= 1");
  op.users = users.size(0);
  op.items = items.size(0) - 1;
  op.dim = users.size(1);
  op.k = k;
  check_shape(items, "items", op.items + 1, op.dim);
  TORCH_CHECK_VALUE(op.items < (int64_t{1} << 32), "items has ", op.items + 1,
                    " rows; fewer than 2^32 are supported");
  TORCH_CHECK_VALUE(k >= 1 && k <= op.items, "k=", k, " must lie in 1..", op.items);
  TORCH_CHECK_VALUE(seen.dim() == 1, "seen has shape ", seen.sizes(), "; it must be [S]");
  const int64_t batch = check_offsets(offsets, seen.size(0), true);
  TORCH_CHECK_VALUE(batch == op.users, "seen_offsets has ", batch + 1, " elements; it must have ",
                    op.users + 1);
  op.user_vectors = data(users);
  op.item_vectors = data(items);
  op.seen = seen.const_data_ptr<int64_t>();
  op.seen_offsets = offsets.const_data_ptr<int64_t>();
  for (int64_t s = 0; s < op.seen_offsets[batch]; ++s)
    TORCH_CHECK_VALUE(op.seen[s] >= 0 && op.seen[s] <= op.items, "seen[", s, "]=", op.seen[s],
                      " must lie in 0..", op.items);
  op.seen_score = static_cast<float>(seen_score);
  Tensor scores = empty({op.users, k});
  Tensor best = empty({op.users, k}, at::kLong);
  op.scores = out(scores);
  op.best = best.mutable_data_ptr<int64_t>();
  return {scores, best};
}

}  // namespace adarec::bindings
