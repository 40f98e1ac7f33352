// A copy of the item table in int8 that is read instead of it: see screen.cpp.
#pragma once

#include <cstdint>

#include "catalogue.h"
#include "parallel.h"

namespace adarec {

class Screen {
 public:
  // Of a table [items + 1, dim], whose row 0 is padding. It is not kept.
  Screen(const float* table, std::int64_t items, std::int64_t dim);

  // Whether the table can be screened: all of it finite, vectors not too long for int32 sums.
  bool usable() const { return usable_; }
  std::int64_t bytes() const { return usable_ ? blocks_ * block_bytes_ : 0; }

  // The ranking of a user of op, the same as score_topk's to the last bit, or false where the
  // screen leaves too many items to look at, and nothing has been written. gains, if not null: what
  // is added to the items' scores, [items + 1] and a vector's width behind them that is not used.
  bool rank(const TopK& op, std::int64_t user, const float* gains = nullptr) const;

 private:
  bool pack(const float* table, std::int64_t block);

  std::int64_t items_, dim_, pairs_, blocks_, block_bytes_;
  float longest_ = 0.0f;  // no item's vector is longer
  bool usable_ = false;
  Arena arena_;
  char* data_ = nullptr;
};

// score_topk of a few users by the screen, by the whole table where that does not do.
void score_topk_screened(const TopK& op, const Screen& screen);

}  // namespace adarec
