// Standard normals of long rows, by the noise contract.
#pragma once

#include <cstdint>

namespace adarec {

// y [rows, size]: row r is four quarters of Q = ceil(size / 4), the last one shorter; quarter j has
// lane j of level group `group` at the element indices row[r] * Q + 0..Q-1.
void wide_normals(std::int64_t rows, std::int64_t size, const std::int64_t* row, std::int64_t key,
                  std::uint32_t stream, std::uint32_t group, float* y);

}  // namespace adarec
