#include "../cpu/mlp_expert_pooled.h"

#include <tuple>

#include "../cpu/parallel.h"
#include "common.h"
#include "kept.h"
#include "mlp_expert.h"

namespace adarec::bindings::mlp_expert_pooled_op {
namespace {

#define ADAREC_POOLED_PARAMETERS                                                                \
  const Tensor &x, const Tensor &offsets, const Tensor &depth, const Tensor &w1,                \
      const Tensor &b1, const Tensor &w2, const Tensor &b2, const Tensor &ln_w,                  \
      const Tensor &ln_b, double eps, double hidden_dropout, const std::optional<Tensor>&seed,   \
      int64_t stream, bool residual, bool content
#define ADAREC_POOLED_ARGUMENTS                                                                 \
  x, offsets, depth, w1, b1, w2, b2, ln_w, ln_b, eps, hidden_dropout, seed, stream, residual,    \
      content

struct Arguments {
  MLPArguments expert;
  MLPExpertPooled op;

  Arguments(ADAREC_POOLED_PARAMETERS)
      : expert(x, offsets, depth, w1, b1, w2, b2, ln_w, ln_b, eps, hidden_dropout, seed, stream,
               residual, false),
        op{expert.op, content} {
    check_offsets(expert.offsets, op.expert.tokens, false);
  }

  int64_t rows() const { return op.expert.levels * op.expert.tokens; }
  bool nothing() const { return op.expert.levels == 0 || op.expert.sequences == 0; }
  Tensor means(bool wanted = true) const {
    return wanted ? empty({op.expert.levels, op.expert.sequences, op.expert.size}) : empty({0});
  }
};

// [K, N, D] while a call lasts: the thread's own memory, whose pages are there, or, where that
// would be much to hold on to, fresh.
struct Levels {
  static constexpr int64_t kMost = int64_t{1} << 23;  // floats
  Scratch scratch;
  Tensor fresh;
  float* data;

  explicit Levels(const Arguments& a) {
    const int64_t floats = a.rows() * a.op.expert.size;
    if (floats > kMost) fresh = empty({floats});
    data = floats > kMost ? out(fresh) : scratch.take(floats);
  }
};

using Results = std::tuple<Tensor, Tensor, Tensor>;

Results results(const Arguments& a, const Tensor& x, float* kept) {
  Tensor last = a.means(), pooled = a.means(), content = a.means(a.op.content);
  Levels levels(a);
  if (!a.nothing())
    mlp_expert_pooled_forward(a.op, levels.data, out(last), out(pooled), out(content), kept);
  return {like(last, x), like(pooled, x), like(content, x)};
}

Results forward(ADAREC_POOLED_PARAMETERS) {
  return results(Arguments(ADAREC_POOLED_ARGUMENTS), x, nullptr);
}

// The same, and what resume() needs.
std::tuple<Tensor, Tensor, Tensor, Tensor> keep(ADAREC_POOLED_PARAMETERS) {
  const Arguments a(ADAREC_POOLED_ARGUMENTS);
  Tensor kept = empty({a.rows(), mlp_expert_kept(a.op.expert)});
  auto [last, pooled, mean] = results(a, x, out(kept));
  return {last, pooled, mean, kept};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients gradients(const Tensor& d_last_in, const Tensor& d_pooled_in, const Tensor& d_content_in,
                    const Tensor* kept, ADAREC_POOLED_PARAMETERS) {
  const Arguments a(ADAREC_POOLED_ARGUMENTS);
  const MLPExpert& op = a.op.expert;
  const Tensor d_last = as_float(d_last_in, "d_last"), d_pooled = as_float(d_pooled_in, "d_pooled"),
               d_content = as_float(d_content_in, "d_content");
  check_shape(d_last, "d_last", op.levels, op.sequences, op.size);
  check_shape(d_pooled, "d_pooled", op.levels, op.sequences, op.size);
  if (content) check_shape(d_content, "d_content", op.levels, op.sequences, op.size);
  if (kept != nullptr) check_kept(*kept, a.rows(), mlp_expert_kept(op));
  const Tensor inputs[] = {x, w1, b1, w2, b2, ln_w, ln_b};
  Tensor g[7];
  for (int i = 0; i < 7; ++i) g[i] = empty(inputs[i].sizes());
  Levels levels(a);
  if (a.nothing()) {
    for (Tensor& each : g) each.zero_();
  } else {
    mlp_expert_pooled_backward(
        a.op, levels.data, data(d_last), data(d_pooled), data(d_content),
        kept == nullptr ? nullptr : data(*kept),
        {out(g[0]), out(g[1]), out(g[2]), out(g[3]), out(g[4]), out(g[5]), out(g[6])});
  }
  for (int i = 0; i < 7; ++i) g[i] = like(g[i], inputs[i]);
  return {g[0], g[1], g[2], g[3], g[4], g[5], g[6]};
}

Gradients backward(const Tensor& d_last, const Tensor& d_pooled, const Tensor& d_content,
                   ADAREC_POOLED_PARAMETERS) {
  return gradients(d_last, d_pooled, d_content, nullptr, ADAREC_POOLED_ARGUMENTS);
}

Gradients resume(const Tensor& d_last, const Tensor& d_pooled, const Tensor& d_content,
                 const Tensor& kept, ADAREC_POOLED_PARAMETERS) {
  return gradients(d_last, d_pooled, d_content, &kept, ADAREC_POOLED_ARGUMENTS);
}

TORCH_LIBRARY_FRAGMENT(adarec_fast_cpp, m) {
  m.def("mlp_expert_pooled_fwd", &forward);
  m.def("mlp_expert_pooled_bwd", &backward);
  m.def("mlp_expert_pooled_keep", &keep);
  m.def("mlp_expert_pooled_resume", &resume);
}

}  // namespace
}  // namespace adarec::bindings::mlp_expert_pooled_op
