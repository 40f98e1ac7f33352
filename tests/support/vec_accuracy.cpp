// Prints the largest errors of the functions of vec.h and gelu.h against double, a line each, and
// what they make of NaN and of numbers beyond their range. Run by tests/csrc/test_cpp_vec.py.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "gelu.h"
#include "vec.h"

using namespace adarec;

namespace {

constexpr int kChunk = 1024;

// The largest |f - exact| / scale(exact) over [low, high].
template <typename F, typename G, typename S>
double worst(double low, double high, F&& f, G&& exact, S&& scale) {
  constexpr int kChunks = 200;
  float x[kChunk], y[kChunk];
  double found = 0;
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    for (int i = 0; i < kChunk; ++i)
      x[i] = static_cast<float>(low + (high - low) * (chunk * kChunk + i) / (kChunks * kChunk));
    f(x, y);
    for (int i = 0; i < kChunk; ++i) {
      const double want = exact(static_cast<double>(x[i]));
      found = std::max(found, std::abs(y[i] - want) / scale(want));
    }
  }
  return found;
}

template <typename F>
auto each(F f) {
  return [f](const float* x, float* y) {
    for (int i = 0; i < kChunk; i += kWidth) store(y + i, f(load(x + i)));
  };
}

double cdf(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }
double density(double x) { return std::exp(-x * x / 2) / std::sqrt(2 * std::acos(-1.0)); }

const float kNone[kChunk] = {};

void gelu_of(const float* x, float* y) { gelu_rows(1, kChunk, x, kNone, y, nullptr); }
void slope_of(const float* x, float* y) {
  float value[kChunk];
  gelu_rows(1, kChunk, x, kNone, value, y);
}

}  // namespace

int main() {
  const auto absolute = [](double) { return 1.0; };
  const auto relative = [](double want) { return std::abs(want); };
  const auto gelu = [](double x) { return x * cdf(x); };
  const auto slope = [](double x) { return cdf(x) + x * density(x); };
  std::printf("width %d\n", kWidth);
  std::printf("gelu %g\n", worst(-12, 1, gelu_of, gelu, absolute));
  std::printf("gelu_large %g\n", worst(1, 12, gelu_of, gelu, relative));
  std::printf("slope %g\n", worst(-12, 12, slope_of, slope, absolute));
  std::printf("exp %g\n", worst(-87, 88, each([](Vec x) { return exp(x); }),
                                [](double x) { return std::exp(x); }, relative));
  std::printf("sigmoid %g\n", worst(-80, 80, each([](Vec x) { return sigmoid(x); }),
                                    [](double x) { return 1 / (1 + std::exp(-x)); }, relative));
  std::printf("tanh %g\n", worst(-20, 20, each([](Vec x) { return tanh(x); }),
                                 [](double x) { return std::tanh(x); }, absolute));
  std::printf("log %g\n", worst(1e-6, 100, each([](Vec x) { return log(x); }),
                                [](double x) { return std::log(x); }, absolute));
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  float x[kChunk] = {nan, infinity, -infinity, 1000, -1000, -0.0f}, y[kChunk];
  each([](Vec v) { return exp(v); })(x, y);
  std::printf("exp_beyond %g %g %g %g\n", y[0], y[2], y[4], y[5]);
  gelu_of(x, y);
  std::printf("gelu_beyond %g %g %g %g\n", y[0], y[1], y[3], y[5]);
  slope_of(x, y);
  std::printf("slope_beyond %g %g %g %g\n", y[0], y[1], y[3], y[5]);
}
