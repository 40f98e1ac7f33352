// What every binding needs: validation that ends in a Python error naming the argument, and plain
// float32 pointers for the kernels. CPU memory is free to read, so values are checked as well as
// shapes, before any work.
#pragma once

#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cstdint>
#include <limits>
#include <optional>

#include "../cpu/seed.h"
#include "pages.h"

namespace adarec::bindings {

using at::Tensor;

// The argument as contiguous float32; kernels compute in float32 whatever comes in.
inline Tensor as_float(const Tensor& t, const char* name) {
  TORCH_CHECK_VALUE(t.device().is_cpu(), name, " is on ", t.device(), "; backend cpp runs on cpu");
  TORCH_CHECK_VALUE(t.scalar_type() == at::kFloat || t.scalar_type() == at::kBFloat16, name,
                    " has dtype ", t.scalar_type(),
                    "; backend cpp takes float32 or bfloat16 (backend packed takes others)");
  // Asked first: each call of to() is a trip through the dispatcher, and a step makes hundreds.
  return (t.scalar_type() == at::kFloat ? t : t.to(at::kFloat)).contiguous();
}

inline Tensor as_index(const Tensor& t, const char* name) {
  TORCH_CHECK_VALUE(t.device().is_cpu(), name, " is on ", t.device(), "; backend cpp runs on cpu");
  TORCH_CHECK_VALUE(t.scalar_type() == at::kLong, name, " has dtype ", t.scalar_type(),
                    "; it must be torch.int64");
  return t.contiguous();
}

template <typename... Sizes>
inline void check_shape(const Tensor& t, const char* name, Sizes... sizes) {
  const int64_t want[] = {static_cast<int64_t>(sizes)...};
  TORCH_CHECK_VALUE(t.sizes() == at::IntArrayRef(want), name, " has shape ", t.sizes(),
                    "; it must be ", at::IntArrayRef(want));
}

// offsets int64 [B+1] from 0, not decreasing, within the tokens; returns B. An empty sequence is
// refused where the op needs a last token.
inline int64_t check_offsets(const Tensor& offsets, int64_t tokens, bool allow_empty) {
  TORCH_CHECK_VALUE(offsets.dim() == 1 && offsets.numel() >= 1, "offsets has shape ",
                    offsets.sizes(), "; it must be [B+1]");
  const int64_t batch = offsets.numel() - 1;
  const int64_t* at = offsets.const_data_ptr<int64_t>();
  TORCH_CHECK_VALUE(at[0] == 0, "offsets must begin at 0, got ", at[0]);
  for (int64_t b = 0; b < batch; ++b) {
    TORCH_CHECK_VALUE(at[b + 1] >= at[b], "offsets must not decrease, but offsets[", b + 1,
                      "]=", at[b + 1], " follows ", at[b]);
    TORCH_CHECK_VALUE(allow_empty || at[b + 1] > at[b], "offsets: sequence ", b,
                      " is empty; each needs at least one item");
  }
  TORCH_CHECK_VALUE(at[batch] <= tokens, "offsets end at ", at[batch], ", beyond the ", tokens,
                    " tokens there are");
  return batch;
}

// depth int64 [B] with values in least..levels-1.
inline void check_depth(const Tensor& depth, int64_t batch, int64_t levels, int64_t least = 0) {
  check_shape(depth, "depth", batch);
  const int64_t* at = depth.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < batch; ++b)
    TORCH_CHECK_VALUE(at[b] >= least && at[b] < levels, "depth[", b, "]=", at[b],
                      " must lie in ", least, "..", levels - 1);
}

inline Seed seed_value(const Tensor& seed) {
  const Tensor given = as_index(seed, "seed");
  TORCH_CHECK_VALUE(given.numel() == 3, "seed has shape ", given.sizes(), "; it must be [3]");
  const int64_t* at = given.const_data_ptr<int64_t>();
  return {at[0], at[1]};
}

inline void check_probability(double p, const char* name) {
  TORCH_CHECK_VALUE(p >= 0.0 && p < 1.0, name, "=", p, " must lie in [0, 1)");
}

inline const float* data(const Tensor& t) { return t.const_data_ptr<float>(); }
inline float* out(Tensor& t) { return t.mutable_data_ptr<float>(); }

// Memory of the caller's own; what a kernel does not reach stays as it was found. Huge pages, where
// the system has them, for a large one.
inline Tensor empty(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat) {
  std::size_t bytes = c10::elementSize(dtype);
  for (const int64_t size : sizes) bytes *= static_cast<std::size_t>(size);
  const auto& context = at::globalContext();
  const bool filled =  // by torch, so that what nobody wrote is found
      context.deterministicAlgorithms() && context.deterministicFillUninitializedMemory();
  if (bytes < Pages::kLeast || filled) return at::empty(sizes, dtype);
  return at::detail::empty_generic(sizes, &Pages::instance(),
                                   c10::DispatchKeySet(c10::DispatchKey::CPU), dtype, std::nullopt);
}

// A float32 result in the dtype of the input it answers.
inline Tensor like(const Tensor& result, const Tensor& input) {
  return result.scalar_type() == input.scalar_type() ? result : result.to(input.scalar_type());
}

}  // namespace adarec::bindings
