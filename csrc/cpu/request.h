// All of a request in evaluation mode, from item numbers to the k best items: the kernels of a model
// one after the other, on weights that were packed once, in the order in which they are read.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "catalogue.h"
#include "depth_controller.h"
#include "embedding.h"
#include "encoder_layer_tile.h"
#include "hda_trajectory.h"
#include "local_path.h"
#include "memory_topk.h"
#include "mlp_expert.h"
#include "moe_aggregate.h"
#include "parallel.h"
#include "screen.h"

namespace adarec {

// What follows E in ADARec: each op with its sizes and weights, as a call of it has them.
struct ParsingParts {
  DepthController controller;
  const float* length_bias;              // [longest + 1, 3G]
  HDATrajectory trajectory;
  EncoderLayer fine;
  std::optional<EncoderLayer> coarse;    // or
  MLPExpert coarse_mlp;
  MoEAggregate aggregate;
  bool content;                          // the router reads the pooled levels
  const float *output_w, *output_b;      // [D], LayerNorm of E + h, or null: h is the vector
  float output_eps;
};

// A model, its weights where its modules have them.
struct RequestParts {
  std::int64_t size, longest;            // D; items of a history that are read
  Embedding embedding;
  std::vector<LocalPath> paths;          // one before each layer, or none
  std::vector<EncoderLayer> layers;
  std::optional<ParsingParts> parsing;   // without it the vector is E of the last item
  std::int64_t catalogue;                // V
  const float* table;                    // [V + 1, D] that scores are products with
  bool screened;                         // a copy of it in int8 is made, and read first
  std::optional<Memory> memory;          // its history is filled in
};

// Users' histories of at most `longest` items each, and what may not come.
struct Users {
  std::int64_t count;
  const std::int64_t *values, *offsets;  // offsets from 0; no history is empty
  const std::int64_t *seen, *seen_offsets;
};

struct RequestOut {
  float* scores;        // [count, k]
  std::int64_t* best;   // [count, k]
  std::int64_t* depth;  // [count] with parsing, else not written
};

class Request {
 public:
  // Weights are copied but for the two tables and the memory's matrix, which must stay.
  explicit Request(const RequestParts& parts);

  void answer(const Users& users, std::int64_t k, const RequestOut& out) const;
  const RequestParts& parts() const { return parts_; }
  bool parses() const { return parts_.parsing.has_value(); }
  std::int64_t screen_bytes() const { return screen_ ? screen_->bytes() : 0; }

 private:
  struct Layer {
    EncoderLayer op;
    encoder::Weights weights;
  };

  const float* own(const float* from, std::int64_t count);
  Layer packed(EncoderLayer op, bool last_only);
  void pack_parsing();
  // E [tokens, D], or with `last` of the last tokens [count, D].
  const float* encode(const Users& users, bool last, Scratch& scratch) const;
  const float* parse(const Users& users, const float* e, std::int64_t* depth,
                     Scratch& scratch) const;
  void choose_depths(const Users& users, const float* e, std::int64_t* depth) const;
  void add_residual(const Users& users, const float* e, float* user) const;

  Arena arena_;
  Scratch memory_{arena_};
  RequestParts parts_;
  std::vector<Layer> layers_;
  // What follows E.
  DepthControllerWeights controller_{};
  HDATrajectoryWeights trajectory_{};
  std::optional<Layer> fine_, coarse_;
  MLPExpertWeights coarse_mlp_{};
  MoEAggregateWeights aggregate_{};
  std::optional<Screen> screen_;
};

}  // namespace adarec
