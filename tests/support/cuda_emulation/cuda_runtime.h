#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "cuda_runtime_api.h"

#define __global__
#define __host__
#define __device__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(threads)

struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { std::uint32_t x, y, z, w; };
struct alignas(8) uint2 { std::uint32_t x, y; };
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(std::uint32_t x, std::uint32_t y, std::uint32_t z, std::uint32_t w) {
  return {x, y, z, w};
}
inline uint2 make_uint2(std::uint32_t x, std::uint32_t y) { return {x, y}; }

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_in = 1, unsigned y_in = 1, unsigned z_in = 1) : x(x_in), y(y_in), z(z_in) {}
};

inline float __uint_as_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline std::uint32_t __float_as_uint(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

namespace emulation {

enum class Stop { kRunning, kBarrier, kWarp, kDone };

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(256 << 10);
  Stop stop;
};

inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline unsigned current;
inline bool reversed;  // the order in which the warps run: a result must not depend on it
inline std::uint32_t exchanged[1024];
inline std::function<void()> body;
inline dim3 thread, block, size;

inline void stop(Stop why) {
  fibers[current].stop = why;
  swapcontext(&fibers[current].context, &scheduler);
}

inline void enter() {
  body();
  stop(Stop::kDone);
}

[[noreturn]] inline void fail(const char* message) {
  std::fprintf(stderr, "CUDA emulation: %s\n", message);
  std::abort();
}

// Runs a warp to its next barrier or its end.
inline Stop run_warp(unsigned first) {
  for (;;) {
    for (unsigned lane = first; lane < first + 32; ++lane) {
      current = lane;
      thread = dim3(lane, 0, 0);
      swapcontext(&scheduler, &fibers[lane].context);
      if (fibers[lane].stop != fibers[first].stop) fail("the lanes of a warp stop apart");
    }
    if (fibers[first].stop != Stop::kWarp) return fibers[first].stop;
  }
}

inline void run_block(unsigned threads) {
  if (fibers.size() < threads) fibers.resize(threads);
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& f = fibers[i];
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.data();
    f.context.uc_stack.ss_size = f.stack.size();
    f.context.uc_link = nullptr;
    makecontext(&f.context, enter, 0);
  }
  const unsigned warps = threads / 32;
  // Threads that are done no longer count at barriers, as on the device.
  std::vector<bool> done(warps);
  for (unsigned left = warps; left > 0;) {
    for (unsigned i = 0; i < warps; ++i) {
      const unsigned warp = reversed ? warps - 1 - i : i;
      if (done[warp]) continue;
      if (run_warp(32 * warp) == Stop::kDone) done[warp] = true, --left;
    }
  }
}

}  // namespace emulation

#define threadIdx (emulation::thread)
#define blockIdx (emulation::block)

inline void __syncthreads() { emulation::stop(emulation::Stop::kBarrier); }

inline float __shfl_xor_sync(unsigned, float value, int mask) {
  const unsigned me = emulation::current;
  emulation::exchanged[me] = __float_as_uint(value);
  emulation::stop(emulation::Stop::kWarp);
  const float other = __uint_as_float(emulation::exchanged[me ^ static_cast<unsigned>(mask)]);
  emulation::stop(emulation::Stop::kWarp);
  return other;
}

inline unsigned __ballot_sync(unsigned, bool vote) {
  const unsigned me = emulation::current, first = me / 32 * 32;
  emulation::exchanged[me] = vote;
  emulation::stop(emulation::Stop::kWarp);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < 32; ++lane) votes |= emulation::exchanged[first + lane] << lane;
  emulation::stop(emulation::Stop::kWarp);
  return votes;
}

inline cudaError_t cudaMemsetAsync(void* at, int value, std::size_t bytes, cudaStream_t) {
  std::memset(at, value, bytes);
  return cudaSuccess;
}

namespace adarec::cuda {

// What a block may take on compute capability 8.6, less the 1 KiB the system keeps.
constexpr std::size_t kSharedBytes = 99 * 1024;
alignas(16) inline float dynamic_memory[kSharedBytes / sizeof(float)];
inline float* shared_memory() { return dynamic_memory; }

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, std::size_t bytes,
                   cudaStream_t, const Arguments&... arguments) {
  if (bytes > kSharedBytes) emulation::fail("too much shared memory");
  emulation::body = [&] { kernel(arguments...); };
  for (unsigned z = 0; z < blocks.z; ++z)
    for (unsigned y = 0; y < blocks.y; ++y)
      for (unsigned x = 0; x < blocks.x; ++x) {
        emulation::block = dim3(x, y, z);
        // A block finds another's leavings in shared memory; NaN shows up wherever they are used.
        std::memset(dynamic_memory, 0xff, kSharedBytes);
        emulation::run_block(threads.x);
      }
  return cudaSuccess;
}

}  // namespace adarec::cuda
