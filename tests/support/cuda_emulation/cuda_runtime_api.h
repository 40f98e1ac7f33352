// CUDA's names on a CPU, as far as csrc/cuda uses them: a block's threads are fibers, which stop at
// barriers and warp exchanges, so that a kernel's source runs and can be compared with a reference
// where there is no GPU. Warps run one after another; a barrier that not every thread of a block
// reaches, or an exchange that not every lane of a warp reaches, aborts with a message.
#pragma once

#include <cstddef>

using cudaStream_t = struct Stream*;
enum cudaError_t { cudaSuccess = 0 };
