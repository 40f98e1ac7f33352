// The scores of a few users and consecutive items.
//
// Vectors run over items. A block of their embeddings is transposed in registers, so that a score
// is summed over the dimensions in the order of score_topk.cpp's products: the same bits, whoever
// else is in the batch, and however the items were found.
#pragma once

#include <algorithm>

#include "catalogue.h"
#include "vec.h"

namespace adarec::topk {

constexpr int kAlone = 4;              // blocks whose sums are made together for one user
constexpr std::int64_t kRun = 128;     // dimensions summed before they are added, as in gemm.h

// Scores of B blocks of kWidth items for every user; of one block there may be fewer items, at the
// catalogue's end. The sums of a block wait for each other, those of several do not.
template <int B>
inline void score_blocks(const TopK& op, std::int64_t item, int items, float* scores, std::int64_t ld) {
  const float* rows = op.item_vectors + (item + 1) * op.dim;
  Vec total[B][kFewUsers], sum[B][kFewUsers];
  for (std::int64_t begin = 0; begin < op.dim; begin += kRun) {
    const std::int64_t end = std::min(op.dim, begin + kRun);
    for (int b = 0; b < B; ++b)
      for (std::int64_t u = 0; u < op.users; ++u) sum[b][u] = zero();
    for (std::int64_t d = begin; d < end; d += kWidth) {
      const int wide = static_cast<int>(std::min<std::int64_t>(kWidth, end - d));
      for (int b = 0; b < B; ++b) {
        const float* block = rows + b * kWidth * op.dim + d;
        Vec square[kWidth];
        if (items == B * kWidth && wide == kWidth) {
          for (int i = 0; i < kWidth; ++i) square[i] = load(block + i * op.dim);
        } else {
          const Mask m = first(wide);
          for (int i = 0; i < kWidth; ++i)
            square[i] = b * kWidth + i < items ? load(block + i * op.dim, m) : zero();
        }
        transpose_lanes(square);
        for (std::int64_t u = 0; u < op.users; ++u) {
          const float* user = op.user_vectors + u * op.dim + d;
          for (int j = 0; j < wide; ++j) sum[b][u] = fma(set1(user[j]), square[j], sum[b][u]);
        }
      }
    }
    for (int b = 0; b < B; ++b)
      for (std::int64_t u = 0; u < op.users; ++u)
        total[b][u] = begin == 0 ? sum[b][u] : total[b][u] + sum[b][u];
  }
  for (int b = 0; b < B; ++b)
    for (std::int64_t u = 0; u < op.users; ++u) store(scores + u * ld + b * kWidth, total[b][u]);
}

// scores [users, ld] of the items from `item` on, counted from 0.
inline void score_items(const TopK& op, std::int64_t item, int items, float* scores,
                        std::int64_t ld) {
  int i = 0;
  // Several users' sums are enough that do not wait for each other.
  if (op.users == 1)
    for (; i + kAlone * kWidth <= items; i += kAlone * kWidth)
      score_blocks<kAlone>(op, item + i, kAlone * kWidth, scores + i, ld);
  for (; i < items; i += kWidth)
    score_blocks<1>(op, item + i, std::min(kWidth, items - i), scores + i, ld);
}

}  // namespace adarec::topk
