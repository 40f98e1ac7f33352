// The extension's library and its thread pool; each op registers itself in bindings/<op>.cpp.
//
// All of them are one unit: a compiler reads torch's headers for 6 seconds, and compiles an op's
// binding in one.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <atomic>
#include <thread>
#include <vector>

#include "bindings/adam.cpp"
#include "bindings/choose_depth.cpp"
#include "bindings/depth_controller.cpp"
#include "bindings/dropout.cpp"
#include "bindings/embedding.cpp"
#include "bindings/encoder_layer.cpp"
#include "bindings/epoch_statistics.cpp"
#include "bindings/hda_trajectory.cpp"
#include "bindings/length_bias.cpp"
#include "bindings/level_infonce.cpp"
#include "bindings/level_pool.cpp"
#include "bindings/linear_cross_entropy.cpp"
#include "bindings/local_path.cpp"
#include "bindings/memory_topk.cpp"
#include "bindings/mlp_expert.cpp"
#include "bindings/mlp_expert_pooled.cpp"
#include "bindings/moe_aggregate.cpp"
#include "bindings/moe_aggregate_autograd.cpp"
#include "bindings/objective.cpp"
#include "bindings/request.cpp"
#include "bindings/score_topk.cpp"
#include "bindings/wide_normals.cpp"
#include "cpu/parallel.h"

namespace adarec {

std::int64_t num_threads() { return at::get_num_threads(); }

void run_parallel(std::int64_t count, void (*task)(void*, std::int64_t), void* context) {
  // One range element a thread, tasks handed out as threads become free: ragged work balances.
  std::atomic<std::int64_t> next{0};
#if defined(__SANITIZE_THREAD__)
  // ThreadSanitizer does not see OpenMP's barriers; the start and end of a thread it does.
  std::vector<std::thread> pool;
  for (int t = 0; t < 4; ++t)
    pool.emplace_back([&] {
      for (std::int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;)
        task(context, i);
    });
  for (std::thread& thread : pool) thread.join();
  return;
#endif
  const std::int64_t threads = std::min<std::int64_t>(at::get_num_threads(), count);
  at::parallel_for(0, threads, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i; begin < end && (i = next.fetch_add(1)) < count;) task(context, i);
  });
}

std::int64_t vector_width();  // cpu/vec.cpp

}  // namespace adarec

TORCH_LIBRARY(adarec_fast_cpp, m) {
  m.def("vector_width() -> int", &adarec::vector_width);
  using adarec::bindings::Pages;
  m.def("pages_held", [] { return static_cast<int64_t>(Pages::instance().held()); });
}
