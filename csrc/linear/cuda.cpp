// CUDA back end of the Hadamard transform, host side.

#ifdef LARGEBATCH_CUDA

#include "linear/cuda.h"

#include "common/cuda_device.h"
#include "linear/linear.h"

namespace largebatch {
namespace {

HadamardElement hadamard_element(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return HadamardElement::kFloat;
    case ScalarType::Double: return HadamardElement::kDouble;
    case ScalarType::Half: return HadamardElement::kHalf;
    default: return HadamardElement::kBFloat16;
  }
}

}  // namespace

Tensor hadamard_cuda(Tensor x, int64_t outputs) {
  const HadamardShape shape = hadamard_shape(x, outputs);
  const int32_t device = x.get_device_index();
  const DeviceGuard guard(device);
  x = torch::stable::contiguous(x);
  Tensor y = hadamard_result(x, outputs);
  if (shape.rows == 0) return y;
  const HadamardElement element = hadamard_element(x);
  const bool large = hadamard_needs_scratch(element, shape.length);
  const Tensor scratch = torch::stable::new_empty(
      x, {large ? shape.rows * shape.length : 0}, accumulate_type(x.scalar_type()));
  const HadamardCall call{
      shape.rows, shape.features, shape.outputs, shape.length, x.const_data_ptr(),
      y.mutable_data_ptr(), large ? scratch.mutable_data_ptr() : nullptr};
  const char* error = launch_hadamard(element, call, current_cuda_stream(device));
  STD_TORCH_CHECK(error == nullptr, "largebatch::hadamard: ", error == nullptr ? "" : error);
  return y;
}

}  // namespace largebatch

#endif  // LARGEBATCH_CUDA
