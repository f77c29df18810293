// CUDA back end of `sum_shards`, host side: arguments checked, launched on the current stream.

#ifdef LARGEBATCH_CUDA

#include "shards/cuda.h"

#include "common/cuda_host.h"
#include "shards/shards.h"

namespace largebatch {
Tensor sum_shards_cuda(TensorList shards, Tensor out, int64_t divisor, bool squares) {
  check_shards(shards, out, divisor);
  STD_TORCH_CHECK(
      shards.size() <= kMostShards, "largebatch::sum_shards: ", shards.size(),
      " shards, at most ", kMostShards, " on CUDA");
  const int32_t device = out.get_device_index();
  check_device({out}, device);
  check_device(shards, device);
  const DeviceGuard guard(device);
  const Tensor found = torch::stable::new_zeros(out, {2}, ScalarType::Double);
  if (out.numel() == 0) return found;
  const ScalarType in = shards[0].scalar_type();
  const bool wanted = squares && is_supported(in);
  const Tensor partial = torch::stable::new_empty(
      out, {wanted ? 2 * shard_partials(out.numel()) : 0}, ScalarType::Double);
  std::vector<const void*> data;
  for (const Tensor& shard : shards) data.push_back(shard.const_data_ptr());
  const SumShardsCall call = {
      element_of(in),
      element_of(out.scalar_type()),
      data.data(),
      data.size(),
      out.mutable_data_ptr(),
      out.numel(),
      divisor,
      wanted ? static_cast<double*>(partial.mutable_data_ptr()) : nullptr,
      static_cast<double*>(found.mutable_data_ptr())};
  check_launch(launch_sum_shards(call, current_cuda_stream(device)), "largebatch::sum_shards");
  return found;
}

}  // namespace largebatch

#endif  // LARGEBATCH_CUDA
