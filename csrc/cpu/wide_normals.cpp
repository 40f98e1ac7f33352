#include "wide_normals.h"

#include <algorithm>

#include "parallel.h"
#include "philox.h"
#include "vec.h"

namespace adarec {

void wide_normals(std::int64_t rows, std::int64_t size, const std::int64_t* row, std::int64_t key,
                  std::uint32_t stream, std::uint32_t group, float* y) {
  const std::int64_t quarter = (size + kLanes - 1) / kLanes;
  const Philox philox({key, 0}, stream, 0);
  parallel_for(rows, [&](std::int64_t r) {
    const auto first = static_cast<std::uint64_t>(row[r]) * static_cast<std::uint64_t>(quarter);
    for (std::int64_t i = 0; i < quarter; i += kWidth) {
      const Words words = philox(first + static_cast<std::uint64_t>(i), group);
      Vec normal[kLanes];
      box_muller(words.word[0], words.word[1], normal[0], normal[1]);
      box_muller(words.word[2], words.word[3], normal[2], normal[3]);
      for (int lane = 0; lane < kLanes; ++lane) {
        const std::int64_t begin = lane * quarter + i;
        const std::int64_t left = std::min(quarter - i, size - begin);
        if (left >= kWidth)
          store(y + r * size + begin, normal[lane]);
        else if (left > 0)
          store(y + r * size + begin, normal[lane], adarec::first(static_cast<int>(left)));
      }
    }
  });
}

}  // namespace adarec
