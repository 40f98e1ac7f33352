#include "vec.h"

namespace adarec {

// Lanes of float the kernels were compiled for: 16 (AVX-512), 8 (AVX2) or 4 (any processor).
std::int64_t vector_width() { return kWidth; }

}  // namespace adarec
