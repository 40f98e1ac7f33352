// Memory of large tensors, which goes from one step to the next.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/util/Exception.h>

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

namespace adarec::bindings {

// What a tensor gave back is taken again by the next one of about its size. From the C library it
// would come as fresh pages, every one of which the system clears at its first touch, and which go
// back to it as soon as they are free: the same tens of megabytes in every training step.
//
// A block belongs to its tensor's storage alone, whoever holds it and however long.
class Pages final : public c10::Allocator {
 public:
  static constexpr std::size_t kLeast = std::size_t{1} << 16;  // of a tensor that comes from here
  static constexpr std::size_t kPage = std::size_t{1} << 21;   // a huge one
#if defined(__SANITIZE_ADDRESS__)
  static constexpr std::size_t kMost = 0;  // else a tensor that is used after its end is not found
#else
  static constexpr std::size_t kMost = std::size_t{256} << 20;  // that nobody uses at the time
#endif

  // Never destroyed: tensors may be freed after all static objects.
  static Pages& instance() {
    static Pages& one = *new Pages;
    return one;
  }

  c10::DataPtr allocate(std::size_t bytes) override {
    const std::size_t unit = bytes < kPage ? kLeast : kPage;
    const std::size_t whole = std::max(unit, (bytes + unit - 1) / unit * unit);
    std::unique_ptr<Block> block = take(whole);
    if (block == nullptr) block = fresh(whole, bytes);
    Block* const owned = block.release();
    return {owned->data, owned, &give_back, c10::Device(c10::DeviceType::CPU)};
  }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

  // Bytes that wait for their next tensor, at most kMost.
  std::size_t held() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return held_;
  }

 private:
  struct Block {
    void* data;
    std::size_t bytes;
    ~Block() { std::free(data); }
  };
  // Only tried: a process that was forked while a thread had it would wait for ever.
  using Lock = std::unique_lock<std::mutex>;

  // The smallest that is free, not above twice what is asked for; null if there is none.
  std::unique_ptr<Block> take(std::size_t bytes) {
    const Lock lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) return nullptr;
    auto best = free_.end();
    for (auto b = free_.begin(); b != free_.end(); ++b)
      if ((*b)->bytes >= bytes && (*b)->bytes <= 2 * bytes &&
          (best == free_.end() || (*b)->bytes <= (*best)->bytes))
        best = b;
    if (best == free_.end()) return nullptr;
    std::unique_ptr<Block> block = std::move(*best);
    free_.erase(best);
    held_ -= block->bytes;
    return block;
  }

  std::unique_ptr<Block> fresh(std::size_t whole, std::size_t asked) {
    const std::size_t line = whole < kPage ? 64 : kPage;
    void* data = std::aligned_alloc(line, whole);
    if (data == nullptr) {
      drop_all();
      data = std::aligned_alloc(line, whole);
    }
    TORCH_CHECK(data != nullptr, "no memory for ", asked, " bytes");
    // A last page that the tensor fills less than half stays in small ones. Only advice.
    if (whole >= kPage) madvise(data, (asked + kPage / 2) / kPage * kPage, MADV_HUGEPAGE);
    return std::unique_ptr<Block>(new Block{data, whole});
  }

  static void give_back(void* context) {
    instance().put(std::unique_ptr<Block>(static_cast<Block*>(context)));
  }

  // The last one given back is the last one to go.
  void put(std::unique_ptr<Block> block) {
    std::vector<std::unique_ptr<Block>> gone;  // freed without the lock
    const Lock lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock() || block->bytes > kMost) return;
    held_ += block->bytes;
    free_.push_back(std::move(block));
    while (held_ > kMost) {
      held_ -= free_.front()->bytes;
      gone.push_back(std::move(free_.front()));
      free_.erase(free_.begin());
    }
  }

  void drop_all() {
    std::vector<std::unique_ptr<Block>> gone;
    const std::lock_guard<std::mutex> lock(mutex_);
    gone.swap(free_);
    held_ = 0;
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<Block>> free_;  // the longest free first
  std::size_t held_ = 0;
};

}  // namespace adarec::bindings
