// CUDA back end of the Hadamard transform, host side.

#ifdef LARGEBATCH_CUDA

#include "linear/cuda.h"

#include "common/cuda_host.h"
#include "linear/linear.h"

namespace largebatch {
Tensor hadamard_cuda(Tensor x, int64_t outputs) {
  const HadamardShape shape = hadamard_shape(x, outputs);
  const int32_t device = x.get_device_index();
  const DeviceGuard guard(device);
  x = torch::stable::contiguous(x);
  Tensor y = hadamard_result(x, outputs);
  if (shape.rows == 0) return y;
  const Element element = element_of(x.scalar_type());
  const bool large = hadamard_needs_scratch(element, shape.length);
  const Tensor scratch = torch::stable::new_empty(
      x, {large ? shape.rows * shape.length : 0}, accumulate_type(x.scalar_type()));
  const HadamardCall call{
      element, shape.rows, shape.features, shape.outputs, shape.length, x.const_data_ptr(),
      y.mutable_data_ptr(), large ? scratch.mutable_data_ptr() : nullptr};
  check_launch(launch_hadamard(call, current_cuda_stream(device)), "largebatch::hadamard");
  return y;
}

}  // namespace largebatch

#endif  // LARGEBATCH_CUDA
