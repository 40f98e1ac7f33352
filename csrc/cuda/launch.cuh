// Kernel launches with an error code; a block may ask for more than 48 KiB of shared memory.
// (Where the compiler is not CUDA's, the runtime's header brings both of these.)
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace adarec::cuda {

#if defined(__CUDACC__)
// The block's dynamic shared memory.
__device__ __forceinline__ float* shared_memory() {
  extern __shared__ float4 memory[];
  return reinterpret_cast<float*>(memory);
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, std::size_t bytes,
                   cudaStream_t stream, const Arguments&... arguments) {
  if (bytes > 48 * 1024) {
    const cudaError_t refused =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (refused != cudaSuccess) return refused;
  }
  kernel<<<blocks, threads, bytes, stream>>>(arguments...);
  return cudaGetLastError();
}
#endif

}  // namespace adarec::cuda
