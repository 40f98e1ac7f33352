// Prints the noise contract's words and what two ops make of fixed inputs, a line each, so that a
// back end of vec.h can be held against another one. Run by tests/csrc/test_cpp_generic.py.
#include <cstdint>
#include <cstdio>
#include <vector>

#include "dropout.h"
#include "mlp_expert.h"
#include "parallel.h"
#include "philox.h"

namespace adarec {

void run_parallel(std::int64_t count, void (*task)(void*, std::int64_t), void* context) {
  for (std::int64_t i = 0; i < count; ++i) task(context, i);
}
std::int64_t num_threads() { return 1; }

}  // namespace adarec

using namespace adarec;

namespace {

// Numbers in [-1, 1) that every machine has exactly.
std::vector<float> numbers(std::size_t count, std::uint32_t state) {
  std::vector<float> made(count);
  for (float& value : made) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(state >> 16) / 32768.0f - 1.0f;
  }
  return made;
}

void print(const char* name, const std::vector<float>& values) {
  std::printf("%s", name);
  for (const float value : values) std::printf(" %a", static_cast<double>(value));
  std::printf("\n");
}

void expert() {
  constexpr int kSize = 20, kHidden = 40, kLevels = 3;
  const std::int64_t offsets[] = {0, 1, 8, 19}, depth[] = {2, 0, 2};
  const std::int64_t tokens = 19;
  const auto x = numbers(kLevels * tokens * kSize, 1), grad = numbers(kLevels * tokens * kSize, 2);
  const auto w1 = numbers(kHidden * kSize, 3), b1 = numbers(kHidden, 4);
  const auto w2 = numbers(kSize * kHidden, 5), b2 = numbers(kSize, 6);
  const auto gain = numbers(kSize, 7), shift = numbers(kSize, 8);
  const MLPExpert op{kLevels, tokens, 3, kSize, kHidden, x.data(), offsets, depth, w1.data(),
                     b1.data(), w2.data(), b2.data(), gain.data(), shift.data(), 1e-5f, 0.25,
                     true, {(std::int64_t{77} << 32) + 5, 3}, 4, false, false};
  std::vector<float> y(x.size()), dx(x.size()), d1(w1.size()), db1(b1.size()), d2(w2.size()),
      db2(b2.size()), dgain(gain.size()), dshift(shift.size());
  std::vector<float> kept(kLevels * tokens * mlp_expert_kept(op));
  mlp_expert_forward(op, y.data(), kept.data());
  mlp_expert_backward(op, grad.data(), kept.data(),
                      {dx.data(), d1.data(), db1.data(), d2.data(), db2.data(), dgain.data(),
                       dshift.data()});
  print("y", y);
  print("dx", dx);
  print("d_w1", d1);
  print("d_w2", d2);
  print("d_gain", dgain);
}

}  // namespace

int main() {
  std::printf("width %d\n", kWidth);
  const Philox philox({(std::int64_t{77} << 32) + 5, 3}, 9, 20);
  for (int group = 0; group < 2; ++group)
    for (int word = 0; word < kLanes; ++word) {
      std::printf("philox");
      for (std::uint64_t index = 0; index < 64; index += kWidth) {
        // Across the border of the counter's low word.
        const Words words = philox((std::uint64_t{1} << 32) - 80 + index, group);
        for (int i = 0; i < kWidth; ++i) std::printf(" %u", words.word[word][i]);
      }
      std::printf("\n");
    }
  const auto x = numbers(7 * 20, 9);
  std::vector<float> y(x.size());
  dropout_forward(static_cast<std::int64_t>(x.size()), 20, x.data(), 0.25,
                  {(std::int64_t{77} << 32) + 5, 3}, 9, y.data());
  print("dropout", y);
  expert();
}
