// The ranking with a memory of transitions: see adarec_fast/ops/memory_topk.py.
#pragma once

#include <cstdint>

#include "catalogue.h"

namespace adarec {

struct Memory {
  const std::int64_t* values;      // histories in 1..V, packed
  const std::int64_t* offsets;     // [users + 1]
  const std::int64_t* rows;        // [V + 2]
  const std::int32_t* neighbours;  // in 1..V
  const float* weights;            // >= 0
  float alpha, gamma, decay;       // >= 0
};

// op.scores and op.best hold what score_topk gave, with seen_score -inf; the memory is added.
void add_memory(const TopK& op, const Memory& memory);

}  // namespace adarec
