// What an op's forward pass has kept, as its backward pass gets it back.
#pragma once

#include "common.h"

namespace adarec::bindings {

inline void check_kept(const Tensor& kept, int64_t rows, int64_t columns) {
  check_shape(kept, "kept", rows, columns);
  TORCH_CHECK_VALUE(kept.scalar_type() == at::kFloat && kept.is_contiguous(),
                    "kept must be as the forward pass returned it");
}

}  // namespace adarec::bindings
