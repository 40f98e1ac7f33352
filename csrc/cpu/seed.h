// What the noise of a batch, or of a share of one, is drawn from (adarec_fast/rng.py).
#pragma once

#include <cstdint>

namespace adarec {

struct Seed {
  std::int64_t key = 0;
  std::int64_t first_token = 0;  // tokens of the whole batch before those at hand
};

}  // namespace adarec
