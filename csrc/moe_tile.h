// The arithmetic of the gated aggregation, Eq. 7 to 11 and its derivatives, element by element:
// one definition for the CPU's vectors and the GPU's threads.
//
// Value is float, or a SIMD vector type whose operators work lane by lane.
#pragma once

#if defined(__CUDACC__)
#define ADAREC_SHARED __host__ __device__ __forceinline__
#else
#define ADAREC_SHARED inline
#endif

namespace adarec::moe {

constexpr float kEpsilon = 1e-8f;  // of Eq. 8 and 9

// A level's weights in Eq. 8 and 9.
template <typename Value>
ADAREC_SHARED Value fine_weight(Value mass, Value gate) { return mass * gate; }
template <typename Value>
ADAREC_SHARED Value coarse_weight(Value mass, Value gate) { return mass * (1.0f - gate); }

// Eq. 11.
template <typename Value>
ADAREC_SHARED Value fuse(Value gate, Value fine, Value coarse) {
  return gate * fine + (1.0f - gate) * coarse;
}

// The gradient of Eq. 11 and of the sigmoid of Eq. 10.
template <typename Value>
struct FuseGradient {
  Value fine, coarse;  // of the two averages, less what comes through the gate
  Value logit;         // of the gate before its sigmoid
};
template <typename Value>
ADAREC_SHARED FuseGradient<Value> fuse_gradient(Value grad, Value gate, Value fine, Value coarse) {
  const Value rest = 1.0f - gate;
  return {grad * gate, grad * rest, grad * (fine - coarse) * gate * rest};
}

// The gradient of Eq. 8 and 9 and of the sigmoid of Eq. 7 for one level of one row.
struct LevelGradient {
  float mass, logit;
};
// fine_slope, coarse_slope: the gradients of the level's two weights, which are
// grad . (output - average) / (sum of the weights + kEpsilon).
ADAREC_SHARED LevelGradient level_gradient(float mass, float gate, float fine_slope,
                                           float coarse_slope) {
  const float rest = 1.0f - gate;
  return {gate * fine_slope + rest * coarse_slope,
          mass * (fine_slope - coarse_slope) * gate * rest};
}

}  // namespace adarec::moe
