// Work for the threads of torch's pool, and memory that is kept between calls.
//
// Kernel files include no torch header; bindings.cpp defines what needs torch's threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

namespace adarec {

// Runs task(context, i) once for every i in [0, count) on the threads of torch.set_num_threads;
// each thread takes the next i when it is free, so a result must not depend on who took which.
void run_parallel(std::int64_t count, void (*task)(void*, std::int64_t), void* context);

// How many threads that are. No result may depend on it.
std::int64_t num_threads();

template <typename Body>
inline void parallel_for(std::int64_t count, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  run_parallel(
      count, [](void* context, std::int64_t i) { (*static_cast<Plain*>(context))(i); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// Memory that grows by blocks and is taken and given back like a stack.
class Arena {
 public:
  struct Mark {
    std::size_t block, used;
  };

  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() {
    for (Block& b : blocks_) std::free(b.data);
  }
  Mark mark() const { return {current_, used_}; }
  void release(Mark m) {
    current_ = m.block;
    used_ = m.used;
  }
  void* take(std::size_t bytes) {
    // A line more than asked for: neighbours never share one, and equal power-of-two sizes do
    // not all begin in the same cache set.
    bytes = (bytes + kLine - 1) / kLine * kLine + kLine;
    while (current_ < blocks_.size() && used_ + bytes > blocks_[current_].size) {
      ++current_;
      used_ = 0;
    }
    if (current_ == blocks_.size()) grow(bytes);
    char* p = blocks_[current_].data + used_;
    used_ += bytes;
    return p;
  }

 private:
  struct Block {
    char* data;
    std::size_t size;
  };
  static constexpr std::size_t kLine = 64, kSmallest = std::size_t{1} << 20;
  void grow(std::size_t bytes) {
    std::size_t size = blocks_.empty() ? kSmallest : 2 * blocks_.back().size;
    if (size < bytes) size = (bytes + kSmallest - 1) / kSmallest * kSmallest;
    void* data = std::aligned_alloc(kLine, size);
    if (data == nullptr) throw std::bad_alloc();
    blocks_.push_back({static_cast<char*>(data), size});
    used_ = 0;
  }
  std::vector<Block> blocks_;
  std::size_t current_ = 0, used_ = 0;
};

// Scratch memory of the calling thread, or of a given arena: what take() gives lives until the
// Scratch is destroyed, the pages stay with the thread. Page faults on fresh temporaries would cost
// more than the arithmetic. Scratches nest like a stack.
class Scratch {
 public:
  Scratch() : Scratch(of_thread()) {}
  explicit Scratch(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~Scratch() { arena_.release(mark_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // count elements, 64-byte aligned, not initialised.
  template <typename T = float>
  T* take(std::int64_t count) {
    return static_cast<T*>(arena_.take(static_cast<std::size_t>(count) * sizeof(T)));
  }
  template <typename T = float>
  T* zeros(std::int64_t count) {
    T* p = take<T>(count);
    for (std::int64_t i = 0; i < count; ++i) p[i] = T{};
    return p;
  }

 private:
  static Arena& of_thread() {
    static thread_local Arena instance;
    return instance;
  }

  Arena& arena_;
  Arena::Mark mark_;
};

}  // namespace adarec
