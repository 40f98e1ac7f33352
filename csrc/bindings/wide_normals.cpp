#include "../cpu/wide_normals.h"

#include "common.h"

namespace adarec::bindings::wide_normals_op {
namespace {

Tensor forward(const Tensor& row_in, const Tensor& seed, int64_t size, int64_t stream,
               int64_t group) {
  const Tensor row = as_index(row_in, "row");
  TORCH_CHECK_VALUE(row.dim() == 1, "row has shape ", row.sizes(), "; it must be [R]");
  TORCH_CHECK_VALUE(size >= 1, "size=", size, " must be at least 1");
  Tensor y = empty({row.size(0), size});
  wide_normals(row.size(0), size, row.const_data_ptr<int64_t>(), seed_value(seed).key,
               static_cast<std::uint32_t>(stream), static_cast<std::uint32_t>(group), out(y));
  return y;
}

TORCH_LIBRARY_FRAGMENT(adarec_fast_cpp, m) { m.def("wide_normals_fwd", &forward); }

}  // namespace
}  // namespace adarec::bindings::wide_normals_op
