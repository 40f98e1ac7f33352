#include "request.h"

#include <algorithm>
#include <cmath>

#include "level_pool.h"
#include "rows.h"

namespace adarec {
namespace {

std::int64_t tokens_of(const Users& users) { return users.offsets[users.count]; }

// A layer's op on some levels of users' tokens.
EncoderLayer call(EncoderLayer op, const Users& users, std::int64_t levels, const float* x,
                  const std::int64_t* depth) {
  op.levels = levels;
  op.tokens = tokens_of(users);
  op.sequences = users.count;
  op.x = x;
  op.offsets = users.offsets;
  op.depth = depth;
  return op;
}

}  // namespace

const float* Request::own(const float* from, std::int64_t count) {
  float* to = memory_.take(count);
  std::copy_n(from, count, to);
  return to;
}

Request::Layer Request::packed(EncoderLayer op, bool last_only) {
  const std::int64_t d = op.size;
  op.last_only = last_only;
  op.qkv_b = own(op.qkv_b, 3 * d);
  for (const float** vector : {&op.out_b, &op.ln1_w, &op.ln1_b, &op.ff2_b, &op.ln2_w, &op.ln2_b})
    *vector = own(*vector, d);
  op.ff1_b = own(op.ff1_b, op.inner);
  const encoder::Sizes s = encoder::make_sizes(op);
  encoder::Weights weights = encoder::pack_weights(op, s, false, memory_);
  // The readout reads the keys' weights as they stand.
  if (last_only && weights.k == op.qkv_w + d * d) weights.k = own(weights.k, d * d);
  return {op, weights};
}

Request::Request(const RequestParts& parts) : parts_(parts) {
  Embedding& embedding = parts_.embedding;
  const std::int64_t d = parts_.size;
  embedding.norm_w = own(embedding.norm_w, d);
  embedding.norm_b = own(embedding.norm_b, d);
  embedding.positions = own(embedding.positions, parts_.longest * d);
  for (std::size_t i = 0; i < parts_.layers.size(); ++i) {
    if (!parts_.paths.empty()) {
      LocalPath& path = parts_.paths[i];
      path.weights = own(path.weights, path.taps * d);
      path.norm_w = own(path.norm_w, d);
      path.norm_b = own(path.norm_b, d);
    }
    const bool last = i + 1 == parts_.layers.size();
    layers_.push_back(packed(parts_.layers[i], last && !parses()));
  }
  if (parses()) pack_parsing();
  if (parts_.screened) {
    screen_.emplace(parts_.table, parts_.catalogue, d);
    if (!screen_->usable()) screen_.reset();
  }
}

void Request::pack_parsing() {
  ParsingParts& p = *parts_.parsing;
  const std::int64_t d = parts_.size;
  p.length_bias = own(p.length_bias, (parts_.longest + 1) * 3 * p.controller.hidden);
  controller_ = depth_controller_pack(p.controller, memory_);
  HDATrajectory& t = p.trajectory;
  t.alpha_bar = own(t.alpha_bar, t.levels);
  t.level_bias = own(t.level_bias, (t.levels - 1) * t.hidden);
  t.b2 = own(t.b2, d);
  trajectory_ = hda_trajectory_pack(t, memory_);
  fine_ = packed(p.fine, true);
  if (p.coarse) {
    coarse_ = packed(*p.coarse, true);
  } else {
    MLPExpert& mlp = p.coarse_mlp;
    mlp.b1 = own(mlp.b1, mlp.hidden);
    for (const float** vector : {&mlp.b2, &mlp.ln_w, &mlp.ln_b}) *vector = own(*vector, d);
    coarse_mlp_ = mlp_expert_pack(mlp, memory_);
  }
  MoEAggregate& moe = p.aggregate;
  moe.router_level_bias = own(moe.router_level_bias, moe.levels * moe.hidden);
  moe.router_w2 = own(moe.router_w2, moe.hidden);
  moe.router_b2 = own(moe.router_b2, 1);
  moe.gate_b = own(moe.gate_b, d);
  // Whether there is content is asked of the pointer.
  moe.pooled = {p.content ? const_cast<float*>(moe.gate_b) : nullptr, false};
  aggregate_ = moe_aggregate_pack(moe, memory_);
  if (p.output_w != nullptr) {
    p.output_w = own(p.output_w, d);
    p.output_b = own(p.output_b, d);
  }
}

void Request::answer(const Users& users, std::int64_t k, const RequestOut& out) const {
  Scratch scratch;
  const float* vectors = encode(users, !parses(), scratch);
  if (parses()) vectors = parse(users, vectors, out.depth, scratch);
  TopK op{};
  op.users = users.count;
  op.items = parts_.catalogue;
  op.dim = parts_.size;
  op.k = k;
  op.user_vectors = vectors;
  op.item_vectors = parts_.table;
  op.seen = users.seen;
  op.seen_offsets = users.seen_offsets;
  op.seen_score = -INFINITY;
  op.scores = out.scores;
  op.best = out.best;
  const Screen* screen = screen_ ? &*screen_ : nullptr;
  if (parts_.memory) {
    Memory memory = *parts_.memory;
    memory.values = users.values;
    memory.offsets = users.offsets;
    memory_topk(op, memory, screen);
  } else if (screen != nullptr && users.count <= kFewUsers) {
    score_topk_screened(op, *screen);
  } else {
    score_topk(op);
  }
}

const float* Request::encode(const Users& users, bool last, Scratch& scratch) const {
  const std::int64_t tokens = tokens_of(users), d = parts_.size;
  float *x = scratch.take(tokens * d), *y = scratch.take(tokens * d);
  Embedding embedding = parts_.embedding;
  embedding.tokens = tokens;
  embedding.sequences = users.count;
  embedding.item_ids = users.values;
  embedding.offsets = users.offsets;
  embedding_forward(embedding, x, nullptr);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    if (!parts_.paths.empty()) {
      LocalPath path = parts_.paths[i];
      path.sequences = users.count;
      path.x = x;
      path.offsets = users.offsets;
      local_path_forward(path, y);
      std::swap(x, y);
    }
    const EncoderLayer op = call(layers_[i].op, users, 1, x, nullptr);
    encoder::forward(op, encoder::make_sizes(op), layers_[i].weights, y, nullptr);
    std::swap(x, y);
  }
  if (last && layers_.empty())
    for (std::int64_t u = 0; u < users.count; ++u)
      copy_row(x + (users.offsets[u + 1] - 1) * d, d, y + u * d);
  return last && layers_.empty() ? y : x;
}

void Request::choose_depths(const Users& users, const float* e, std::int64_t* depth) const {
  const ParsingParts& p = *parts_.parsing;
  DepthController op = p.controller;
  op.tokens = tokens_of(users);
  op.sequences = users.count;
  op.embeddings = e;
  op.offsets = users.offsets;
  Scratch scratch;
  float* bias = scratch.take(users.count * 3 * op.hidden);
  for (std::int64_t u = 0; u < users.count; ++u)
    copy_row(p.length_bias + (users.offsets[u + 1] - users.offsets[u]) * 3 * op.hidden,
             3 * op.hidden, bias + u * 3 * op.hidden);
  op.sequence_bias = bias;
  float* logits = scratch.take(users.count * op.depths);
  float* hidden = scratch.take(op.tokens * op.hidden);
  depth_controller_forward(op, controller_, logits, hidden, nullptr);
  for (std::int64_t u = 0; u < users.count; ++u) {
    const float* row = logits + u * op.depths;
    std::int64_t best = 0;
    // The first of equal ones; NaN is the greatest, as torch's argmax has it.
    for (std::int64_t k = 1; k < op.depths; ++k)
      if (row[k] > row[best] || (std::isnan(row[k]) && !std::isnan(row[best]))) best = k;
    depth[u] = best;
  }
}

const float* Request::parse(const Users& users, const float* e, std::int64_t* depth,
                            Scratch& scratch) const {
  const ParsingParts& p = *parts_.parsing;
  const std::int64_t tokens = tokens_of(users), d = parts_.size, count = users.count;
  choose_depths(users, e, depth);
  // Levels beyond the deepest are nobody's.
  const std::int64_t levels = *std::max_element(depth, depth + count) + 1;
  float* user = scratch.take(count * d);
  Scratch local;
  float* x0 = local.take(levels * tokens * d);
  float* error = local.take(tokens);
  HDATrajectory trajectory = p.trajectory;
  trajectory.levels = levels;
  trajectory.tokens = tokens;
  trajectory.sequences = count;
  trajectory.embeddings = e;
  trajectory.offsets = users.offsets;
  trajectory.depth = depth;
  hda_trajectory_forward(trajectory, trajectory_, x0, error, nullptr);

  float *fine = local.take(levels * count * d), *coarse = local.take(levels * count * d);
  const EncoderLayer op = call(fine_->op, users, levels, x0, depth);
  encoder::forward(op, encoder::make_sizes(op), fine_->weights, fine, nullptr);
  if (coarse_) {
    const EncoderLayer other = call(coarse_->op, users, levels, x0, depth);
    encoder::forward(other, encoder::make_sizes(other), coarse_->weights, coarse, nullptr);
  } else {
    MLPExpert mlp = p.coarse_mlp;
    mlp.levels = levels;
    mlp.tokens = tokens;
    mlp.sequences = count;
    mlp.x = x0;
    mlp.offsets = users.offsets;
    mlp.depth = depth;
    mlp_expert_forward(mlp, coarse_mlp_, coarse, nullptr);
  }
  MoEAggregate aggregate = p.aggregate;
  aggregate.levels = levels;
  aggregate.rows = count;
  aggregate.fine = {fine, false};
  aggregate.coarse = {coarse, false};
  if (p.content) {
    float* pooled = local.take(levels * count * d);
    level_pool_forward({levels, tokens, count, static_cast<int>(d), users.offsets, depth, false},
                       x0, pooled);
    aggregate.pooled = {pooled, false};
  }
  aggregate.depth = depth;
  float* mass = local.take(levels * count);
  std::fill_n(mass, levels * count, 1.0f);
  aggregate.level_mass = mass;
  float* averages = local.take(2 * count * d);
  const MoEAggregateOut out{{user, false}, local.take(levels * count), averages,
                            averages + count * d};
  moe_aggregate_forward(aggregate, aggregate_, out, nullptr);
  if (p.output_w != nullptr) add_residual(users, e, user);
  return user;
}

void Request::add_residual(const Users& users, const float* e, float* user) const {
  const ParsingParts& p = *parts_.parsing;
  const std::int64_t d = parts_.size;
  encoder::Sizes s{};
  s.d = d;
  s.dp = padded(d);
  Scratch scratch;
  float *base = scratch.take(s.dp), *row = scratch.take(s.dp);
  const float* shift = scratch.zeros(s.dp);
  float *gain = scratch.zeros(s.dp), *bias = scratch.zeros(s.dp), *valid = scratch.zeros(s.dp);
  copy_row(p.output_w, d, gain);
  copy_row(p.output_b, d, bias);
  std::fill_n(valid, d, 1.0f);
  for (std::int64_t u = 0; u < users.count; ++u) {
    load_row(e, false, users.offsets[u + 1] - 1, d, s.dp, base);
    load_row(user, false, u, d, s.dp, row);
    encoder::add_norm(1, s, base, row, shift, nullptr, 1.0f, gain, bias, valid, p.output_eps,
                      nullptr, nullptr, row);
    copy_row(row, d, user + u * d);
  }
}

}  // namespace adarec
