#include "epoch_statistics.h"

#include <cmath>
#include <cstring>
#include <vector>

namespace adarec {

bool epoch_statistics(const EpochSums& epoch, const double* values, std::int64_t batch,
                      const std::int64_t* depth, std::int64_t levels, const double* gate,
                      std::int64_t step) {
  bool bad[kWatched], any = false;
  for (int i = 0; i < kWatched; ++i) any |= bad[i] = !std::isfinite(values[i]);
  if (any && *epoch.bad_step < 0) {
    *epoch.bad_step = step;
    std::memcpy(epoch.bad_parts, bad, sizeof bad);
  }
  double* sums = epoch.sums;
  for (int i = 0; i < kStatistics; ++i) sums[i] += values[i] * static_cast<double>(batch);
  std::vector<double> count(levels, 0.0);
  for (std::int64_t b = 0; b < batch; ++b) count[depth[b]] += 1.0;
  double reach = 0.0;  // an example reaches its depth and every level before it
  for (std::int64_t k = levels - 1; k >= 0; --k) {
    reach += count[k];
    sums[kStatistics + k] += count[k];
    if (!std::isfinite(gate[k])) continue;
    sums[kStatistics + levels + k] += gate[k] * reach;
    sums[kStatistics + 2 * levels + k] += reach;
  }
  return *epoch.bad_step >= 0;
}

}  // namespace adarec
