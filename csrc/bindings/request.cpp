#include "../cpu/request.h"

#include <torch/custom_class.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "common.h"

namespace adarec::bindings::request_op {
namespace {

using Weights = c10::Dict<std::string, Tensor>;
using Settings = c10::Dict<std::string, double>;
// Scores and items [B, k], and depths [B], which are empty without a depth controller.
using Answer = std::tuple<Tensor, Tensor, Tensor>;

// Reads a model by the names of its parts; see adarec_fast/ops/serving.py.
class Reader {
 public:
  Reader(Weights weights, Settings settings, std::vector<Tensor>& kept)
      : weights_(std::move(weights)), settings_(std::move(settings)), kept_(kept) {}

  double number(const std::string& name) const {
    TORCH_CHECK_VALUE(settings_.contains(name), "settings lack ", name);
    return settings_.at(name);
  }
  int64_t whole(const std::string& name) const { return static_cast<int64_t>(number(name)); }
  bool has(const std::string& name) const { return weights_.contains(name); }
  Tensor tensor(const std::string& name) const {
    TORCH_CHECK_VALUE(weights_.contains(name), "weights lack ", name);
    return weights_.at(name);
  }
  // A float32 tensor of the given sizes.
  template <typename... Sizes>
  const float* floats(const std::string& name, Sizes... sizes) {
    check_shape(tensor(name), name.c_str(), sizes...);
    kept_.push_back(as_float(tensor(name), name.c_str()));
    return data(kept_.back());
  }

  EncoderLayer layer(const std::string& name, int64_t d) {
    const std::string at = name + ".";
    EncoderLayer op{};
    op.size = d;
    op.heads = whole(at + "heads");
    TORCH_CHECK_VALUE(op.heads >= 1 && d % op.heads == 0, at, "heads=", op.heads,
                      " does not divide the size D=", d);
    op.inner = tensor(at + "ff1_w").size(0);
    op.qkv_w = floats(at + "qkv_w", 3 * d, d);
    op.qkv_b = floats(at + "qkv_b", 3 * d);
    op.out_w = floats(at + "out_w", d, d);
    op.out_b = floats(at + "out_b", d);
    op.ln1_w = floats(at + "ln1_w", d);
    op.ln1_b = floats(at + "ln1_b", d);
    op.ff1_w = floats(at + "ff1_w", op.inner, d);
    op.ff1_b = floats(at + "ff1_b", op.inner);
    op.ff2_w = floats(at + "ff2_w", d, op.inner);
    op.ff2_b = floats(at + "ff2_b", d);
    op.ln2_w = floats(at + "ln2_w", d);
    op.ln2_b = floats(at + "ln2_b", d);
    op.eps = static_cast<float>(number(at + "eps"));
    op.causal = whole(at + "causal") != 0;
    return op;
  }

 private:
  Weights weights_;
  Settings settings_;
  std::vector<Tensor>& kept_;
};

DepthController controller(Reader& r, int64_t d) {
  DepthController op{};
  op.size = d;
  op.hidden = r.tensor("controller.w_hh").size(-1);
  op.depths = r.tensor("controller.b_out").numel();
  op.w_ih = r.floats("controller.w_ih", 3 * op.hidden, d);
  op.w_hh = r.floats("controller.w_hh", 3 * op.hidden, op.hidden);
  op.b_hh = r.floats("controller.b_hh", 3 * op.hidden);
  op.w_out = r.floats("controller.w_out", op.depths, op.hidden);
  op.b_out = r.floats("controller.b_out", op.depths);
  return op;
}

HDATrajectory trajectory(Reader& r, int64_t d, int64_t levels) {
  HDATrajectory op{};
  op.levels = levels;
  op.size = static_cast<int>(d);
  op.hidden = static_cast<int>(r.tensor("denoiser.w1").size(0));
  op.alpha_bar = r.floats("denoiser.alpha_bar", levels);
  op.w1 = r.floats("denoiser.w1", op.hidden, d);
  op.level_bias = r.floats("denoiser.level_bias", levels - 1, op.hidden);
  op.w2 = r.floats("denoiser.w2", d, op.hidden);
  op.b2 = r.floats("denoiser.b2", d);
  op.bounded = r.whole("denoiser.bounded") != 0;
  return op;
}

MLPExpert mlp(Reader& r, int64_t d) {
  MLPExpert op{};
  op.size = static_cast<int>(d);
  op.hidden = static_cast<int>(r.tensor("coarse.w1").size(0));
  op.w1 = r.floats("coarse.w1", op.hidden, d);
  op.b1 = r.floats("coarse.b1", op.hidden);
  op.w2 = r.floats("coarse.w2", d, op.hidden);
  op.b2 = r.floats("coarse.b2", d);
  op.ln_w = r.floats("coarse.ln_w", d);
  op.ln_b = r.floats("coarse.ln_b", d);
  op.eps = static_cast<float>(r.number("coarse.eps"));
  op.residual = r.whole("coarse.residual") != 0;
  op.last_only = true;
  return op;
}

MoEAggregate aggregate(Reader& r, int64_t d, int64_t levels) {
  MoEAggregate op{};
  op.levels = levels;
  op.dim = d;
  op.hidden = r.tensor("router.w2").numel();
  op.router_w1 = r.floats("router.w1", op.hidden, d);
  op.router_level_bias = r.floats("router.level_bias", levels, op.hidden);
  op.router_w2 = r.floats("router.w2", op.hidden);
  op.router_b2 = r.floats("router.b2", 1);
  op.gate_w = r.floats("gate.w", d, d);
  op.gate_b = r.floats("gate.b", d);
  return op;
}

ParsingParts parsing(Reader& r, int64_t d, int64_t longest) {
  ParsingParts p{};
  p.controller = controller(r, d);
  const int64_t levels = p.controller.depths;
  p.length_bias = r.floats("length_bias", longest + 1, 3 * p.controller.hidden);
  p.trajectory = trajectory(r, d, levels);
  p.fine = r.layer("fine", d);
  if (r.has("coarse.qkv_w")) p.coarse = r.layer("coarse", d);
  else p.coarse_mlp = mlp(r, d);
  p.aggregate = aggregate(r, d, levels);
  p.content = r.whole("router.content") != 0;
  if (r.has("output.w")) {
    p.output_w = r.floats("output.w", d);
    p.output_b = r.floats("output.b", d);
    p.output_eps = static_cast<float>(r.number("output.eps"));
  }
  return p;
}

Memory memory(Reader& r, int64_t items, std::vector<Tensor>& kept) {
  kept.push_back(as_index(r.tensor("memory.rows"), "memory.rows"));
  const Tensor rows = kept.back();
  check_shape(rows, "memory.rows", items + 2);
  const Tensor given = r.tensor("memory.neighbours");
  TORCH_CHECK_VALUE(given.device().is_cpu() && given.scalar_type() == at::kInt && given.dim() == 1,
                    "memory.neighbours must be int32 [E] on the CPU");
  kept.push_back(given.contiguous());
  const int64_t entries = given.numel();
  Memory m{};
  m.rows = rows.const_data_ptr<int64_t>();
  m.neighbours = kept.back().const_data_ptr<int32_t>();
  m.weights = r.floats("memory.weights", entries);
  for (int64_t i = 0; i <= items; ++i)
    TORCH_CHECK_VALUE(m.rows[i] >= 0 && m.rows[i] <= m.rows[i + 1] && m.rows[i + 1] <= entries,
                      "memory.rows of item ", i, " are no places among ", entries, " entries");
  for (int64_t e = 0; e < entries; ++e) {
    TORCH_CHECK_VALUE(m.neighbours[e] >= 1 && m.neighbours[e] <= items, "memory.neighbours[", e,
                      "]=", m.neighbours[e], " must lie in 1..", items);
    TORCH_CHECK_VALUE(std::isfinite(m.weights[e]) && m.weights[e] >= 0.0f, "memory.weights[", e,
                      "]=", m.weights[e], " must be finite and at least 0");
  }
  m.alpha = static_cast<float>(r.number("memory.alpha"));
  m.gamma = static_cast<float>(r.number("memory.gamma"));
  m.decay = static_cast<float>(r.number("memory.decay"));
  return m;
}

RequestParts parts_of(Reader& r, std::vector<Tensor>& kept) {
  RequestParts p{};
  const Tensor items = r.tensor("items");
  TORCH_CHECK_VALUE(items.dim() == 2 && items.size(0) >= 2 && items.size(1) >= 1 &&
                        items.size(0) < (int64_t{1} << 32) && items.size(1) <= 1 << 14,
                    "items has shape ", items.sizes(), "; it must be [V+1, D]");
  const int64_t d = p.size = items.size(1);
  p.catalogue = items.size(0) - 1;
  p.longest = r.tensor("positions").size(0);
  Embedding& e = p.embedding;
  e.size = d;
  e.longest = p.longest;
  e.table = r.floats("items", p.catalogue + 1, d);
  e.positions = r.floats("positions", p.longest, d);
  e.norm_w = r.floats("norm.w", d);
  e.norm_b = r.floats("norm.b", d);
  e.eps = static_cast<float>(r.number("norm.eps"));
  const int64_t layers = r.whole("layers");
  for (int64_t i = 0; i < layers; ++i) {
    const std::string at = std::to_string(i);
    p.layers.push_back(r.layer("layer." + at, d));
    if (!r.has("path." + at + ".taps")) continue;
    LocalPath path{};
    path.size = static_cast<int>(d);
    path.taps = static_cast<int>(r.tensor("path." + at + ".taps").size(0));
    path.weights = r.floats("path." + at + ".taps", path.taps, d);
    path.norm_w = r.floats("path." + at + ".norm_w", d);
    path.norm_b = r.floats("path." + at + ".norm_b", d);
    path.eps = static_cast<float>(r.number("path." + at + ".eps"));
    p.paths.push_back(path);
  }
  TORCH_CHECK_VALUE(p.paths.empty() || p.paths.size() == p.layers.size(),
                    "weights have a local path before ", p.paths.size(), " of ", layers, " layers");
  if (r.has("controller.w_ih")) p.parsing = parsing(r, d, p.longest);
  p.table = r.floats("table", p.catalogue + 1, d);
  p.screened = r.whole("screened") != 0;
  if (r.has("memory.rows")) p.memory = memory(r, p.catalogue, kept);
  return p;
}

bool readable(const Tensor& t) {
  return t.device().is_cpu() && t.scalar_type() == at::kLong && t.dim() == 1 && t.is_contiguous();
}

// Offsets that begin at 0, rise (or stay, where a list may be empty) and end within the values.
bool are_offsets(const int64_t* offsets, int64_t lists, int64_t values, bool may_be_empty) {
  if (offsets[0] != 0 || offsets[lists] > values) return false;
  for (int64_t i = 0; i < lists; ++i)
    if (offsets[i + 1] < offsets[i] + (may_be_empty ? 0 : 1)) return false;
  return true;
}

class Serving : public torch::CustomClassHolder {
 public:
  Serving(Weights weights, Settings settings) {
    Reader reader(std::move(weights), std::move(settings), kept_);
    request_ = std::make_unique<Request>(parts_of(reader, kept_));
  }

  // Of packed histories, whose last `longest` items are read. seen and its offsets: what may not
  // come, None: the histories. None where anything of it is not as it must be: who called says what.
  std::optional<Answer> answer(const Tensor& values, const Tensor& offsets,
                               const std::optional<Tensor>& seen,
                               const std::optional<Tensor>& seen_offsets, int64_t k) const {
    if (!readable(values) || !readable(offsets) || offsets.numel() < 2) return std::nullopt;
    const int64_t count = offsets.numel() - 1;
    Users users{count, values.const_data_ptr<int64_t>(), offsets.const_data_ptr<int64_t>()};
    if (!are_offsets(users.offsets, count, values.numel(), false)) return std::nullopt;
    users.seen = users.values;
    users.seen_offsets = users.offsets;
    if (seen) {
      if (!seen_offsets || !readable(*seen) || !readable(*seen_offsets) ||
          seen_offsets->numel() != count + 1)
        return std::nullopt;
      users.seen = seen->const_data_ptr<int64_t>();
      users.seen_offsets = seen_offsets->const_data_ptr<int64_t>();
      if (!are_offsets(users.seen_offsets, count, seen->numel(), true)) return std::nullopt;
    }
    return of_users(users, k);
  }

  // Of one history.
  std::optional<Answer> answer_one(const std::vector<int64_t>& items, bool exclude_seen,
                                   int64_t k) const {
    const int64_t offsets[] = {0, static_cast<int64_t>(items.size())}, none[] = {0, 0};
    if (items.empty()) return std::nullopt;
    return of_users({1, items.data(), offsets, items.data(), exclude_seen ? offsets : none}, k);
  }

  // Bytes of the table's int8 copy; 0 without one.
  int64_t screen_bytes() const { return request_->screen_bytes(); }

 private:
  std::optional<Answer> of_users(Users users, int64_t k) const {
    const RequestParts& parts = request_->parts();
    auto items = [&](const int64_t* values, int64_t count) {
      return std::all_of(values, values + count,
                         [&](int64_t item) { return item >= 1 && item <= parts.catalogue; });
    };
    const int64_t count = users.count, tokens = users.offsets[count];
    if (k < 1 || k > parts.catalogue || !items(users.values, tokens)) return std::nullopt;
    if (users.seen != users.values && !items(users.seen, users.seen_offsets[count]))
      return std::nullopt;
    std::vector<int64_t> values, offsets;
    crop(users, parts.longest, values, offsets);
    Tensor scores = at::empty({count, k}, at::kFloat), best = at::empty({count, k}, at::kLong);
    Tensor depth = at::empty({request_->parses() ? count : 0}, at::kLong);
    request_->answer(users, k, {out(scores), best.mutable_data_ptr<int64_t>(),
                                depth.mutable_data_ptr<int64_t>()});
    return Answer{scores, best, depth};
  }

  // Leaves the last `longest` items of each history.
  static void crop(Users& users, int64_t longest, std::vector<int64_t>& values,
                   std::vector<int64_t>& offsets) {
    int64_t most = 0;
    for (int64_t u = 0; u < users.count; ++u)
      most = std::max(most, users.offsets[u + 1] - users.offsets[u]);
    if (most <= longest) return;
    offsets.push_back(0);
    for (int64_t u = 0; u < users.count; ++u) {
      const int64_t end = users.offsets[u + 1], begin = std::max(users.offsets[u], end - longest);
      values.insert(values.end(), users.values + begin, users.values + end);
      offsets.push_back(static_cast<int64_t>(values.size()));
    }
    users.values = values.data();
    users.offsets = offsets.data();
  }

  std::vector<Tensor> kept_;
  std::unique_ptr<Request> request_;
};

TORCH_LIBRARY_FRAGMENT(adarec_fast_cpp, m) {
  m.class_<Serving>("Serving")
      .def(torch::init<Weights, Settings>())
      .def("answer", &Serving::answer)
      .def("answer_one", &Serving::answer_one)
      .def("screen_bytes", &Serving::screen_bytes);
}

}  // namespace
}  // namespace adarec::bindings::request_op
