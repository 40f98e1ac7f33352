// A training step's numbers, added to the running sums of its epoch.
#pragma once

#include <cstdint>

namespace adarec {

constexpr int kStatistics = 8, kWatched = 6;

// What an epoch has so far: sums [8 + 3 levels], the first step that was not finite (-1: none), and
// which of its first six values were not.
struct EpochSums {
  double* sums;
  std::int64_t* bad_step;
  bool* bad_parts;
};

// values [8], depth [batch], gate [levels]; whether this or an earlier step was not finite.
bool epoch_statistics(const EpochSums& epoch, const double* values, std::int64_t batch,
                      const std::int64_t* depth, std::int64_t levels, const double* gate,
                      std::int64_t step);

}  // namespace adarec
