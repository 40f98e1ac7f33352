// The ranking with a memory of transitions: see adarec_fast/ops/memory_topk.py.
#pragma once

#include <cstdint>

#include "catalogue.h"
#include "screen.h"

namespace adarec {

struct Memory {
  const std::int64_t* values;      // histories in 1..V, packed
  const std::int64_t* offsets;     // [users + 1]
  const std::int64_t* rows;        // [V + 2]
  const std::int32_t* neighbours;  // in 1..V
  const float* weights;            // >= 0
  float alpha, gamma, decay;       // >= 0
};

// The k best with what the memory adds; op.seen_score is -inf. With a screen, of a few users, its
// ranking: the same bits.
void memory_topk(const TopK& op, const Memory& memory, const Screen* screen = nullptr);

}  // namespace adarec
