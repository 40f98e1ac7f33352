#include "../cpu/epoch_statistics.h"

#include <ATen/ops/item.h>

#include <optional>

#include "common.h"

namespace adarec::bindings::epoch_statistics_op {
namespace {

double value(const Tensor& t, const char* name) {
  TORCH_CHECK_VALUE(t.dim() == 0, name, " has shape ", t.sizes(), "; it must be []");
  TORCH_CHECK_VALUE(t.device().is_cpu(), name, " is on ", t.device(), "; backend cpp runs on cpu");
  return t.scalar_type() == at::kFloat ? *data(t) : t.item().toDouble();
}

Tensor forward(Tensor& sums, Tensor& bad_step, Tensor& bad_parts, const Tensor& rec,
               const Tensor& deno, const Tensor& cont, const Tensor& expl, const Tensor& total,
               const Tensor& norm, const Tensor& entropy, const Tensor& error,
               const Tensor& depth_in, const Tensor& gate_in, const std::optional<Tensor>& step,
               int64_t number) {
  const Tensor depth = as_index(depth_in, "depth"), gate = gate_in.to(at::kDouble).contiguous();
  const int64_t batch = depth.numel(), levels = gate.numel();
  check_depth(depth, batch, levels);
  check_shape(sums, "sums", kStatistics + 3 * levels);
  TORCH_CHECK_VALUE(sums.scalar_type() == at::kDouble && sums.is_contiguous(),
                    "sums must be float64, contiguous");
  TORCH_CHECK_VALUE(bad_step.dim() == 0 && bad_step.scalar_type() == at::kLong,
                    "bad_step must be int64 []");
  TORCH_CHECK_VALUE(bad_parts.scalar_type() == at::kBool && bad_parts.is_contiguous() &&
                        bad_parts.numel() == kWatched,
                    "bad_parts must be bool [", kWatched, "], contiguous");
  const double values[kStatistics] = {
      value(rec, "rec"),     value(deno, "deno"), value(cont, "cont"),       value(expl, "expl"),
      value(total, "total"), value(norm, "norm"), value(entropy, "entropy"), value(error, "error")};
  const EpochSums epoch{sums.mutable_data_ptr<double>(), bad_step.mutable_data_ptr<int64_t>(),
                        bad_parts.mutable_data_ptr<bool>()};
  const int64_t at = step ? step->item().toLong() : number;
  Tensor found = empty({});
  *out(found) = epoch_statistics(epoch, values, batch, depth.const_data_ptr<int64_t>(), levels,
                                 gate.const_data_ptr<double>(), at);
  return found;
}

TORCH_LIBRARY_FRAGMENT(adarec_fast_cpp, m) {
  m.def(
      "epoch_statistics_fwd(Tensor(a!) sums, Tensor(b!) bad_step, Tensor(c!) bad_parts, "
      "Tensor rec, Tensor deno, Tensor cont, Tensor expl, Tensor total, Tensor norm, "
      "Tensor entropy, Tensor error, Tensor depth, Tensor gate, Tensor? step, int number) "
      "-> Tensor",
      &forward);
}

}  // namespace
}  // namespace adarec::bindings::epoch_statistics_op
