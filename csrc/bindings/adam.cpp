#include "../cpu/adam.h"

#include <vector>

#include "../cpu/gradient_norm.h"
#include "common.h"

namespace adarec::bindings::adam_op {
namespace {

using at::TensorList;

// What the kernels take: float32, no strides.
void check_plain(const Tensor& t, at::IntArrayRef shape, const char* name, std::size_t place) {
  TORCH_CHECK_VALUE(t.sizes() == shape && t.is_contiguous(), name, "[", place, "] has shape ",
                    t.sizes(), " and strides ", t.strides(), "; it must be ", shape,
                    ", contiguous");
  TORCH_CHECK_VALUE(t.device().is_cpu() && t.scalar_type() == at::kFloat, name, "[", place,
                    "] is ", t.scalar_type(), " on ", t.device(),
                    "; backend cpp takes float32 on cpu");
}

void check_all(TensorList tensors, TensorList parameters, const char* name) {
  TORCH_CHECK_VALUE(tensors.size() == parameters.size(), name, " are ", tensors.size(), " for ",
                    parameters.size(), " parameters");
  for (std::size_t i = 0; i < tensors.size(); ++i)
    check_plain(tensors[i], parameters[i].sizes(), name, i);
}

float number(const Tensor& t, const char* name) {
  TORCH_CHECK_VALUE(t.dim() == 0, name, " has shape ", t.sizes(), "; it must be []");
  return *data(as_float(t, name));
}

Tensor norm(TensorList gradients, Tensor& done) {
  std::vector<Elements> given;
  given.reserve(gradients.size());
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    check_plain(gradients[i], gradients[i].sizes(), "gradients", i);
    given.push_back({data(gradients[i]), gradients[i].numel()});
  }
  Tensor found = empty({});
  *out(found) = gradient_norm(given);
  return found;
}

void update(TensorList parameters, TensorList gradients, TensorList firsts, TensorList seconds,
            TensorList steps, Tensor& done, const Tensor& norm, const Tensor& found,
            const Tensor& lr, double beta1, double beta2, double eps, double weight_decay,
            double max_norm) {
  check_all(parameters, parameters, "parameters");
  check_all(gradients, parameters, "gradients");
  check_all(firsts, parameters, "firsts");
  check_all(seconds, parameters, "seconds");
  TORCH_CHECK_VALUE(steps.size() == parameters.size(), "steps are ", steps.size(), " for ",
                    parameters.size(), " parameters");
  std::vector<AdamTensor> tensors;
  tensors.reserve(parameters.size());
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    check_plain(steps[i], {}, "steps", i);
    tensors.push_back({parameters[i].numel(), parameters[i].mutable_data_ptr<float>(),
                       data(gradients[i]), firsts[i].mutable_data_ptr<float>(),
                       seconds[i].mutable_data_ptr<float>(), steps[i].mutable_data_ptr<float>()});
  }
  const float rate = number(lr, "lr"), length = number(norm, "norm");
  if (number(found, "found") != 0.0f) return;
  double scale = 1.0;
  if (max_norm > 0.0) {
    scale = max_norm / (double{length} + 1e-6);
    if (scale > 1.0) scale = 1.0;  // NaN stays NaN, as in torch's clamp
  }
  adam(tensors, {rate, beta1, beta2, eps, weight_decay, scale});
}

// Mutated in place, as the schema says.
TORCH_LIBRARY_FRAGMENT(adarec_fast_cpp, m) {
  m.def("gradient_norm_fwd(Tensor[] gradients, Tensor(a!) done) -> Tensor", &norm);
  m.def(
      "adam_fwd(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] firsts, "
      "Tensor(c!)[] seconds, Tensor(d!)[] steps, Tensor(e!) done, Tensor norm, Tensor found, "
      "Tensor lr, float beta1, float beta2, float eps, float weight_decay, float max_norm) -> ()",
      &update);
}

}  // namespace
}  // namespace adarec::bindings::adam_op
