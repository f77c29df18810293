// CPU kernel of softsign.

#include "softsign/softsign.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <cstdint>

namespace largebatch {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <typename T, typename Acc>
void run(const Tensor& x, Tensor& y) {
  const auto* const from = static_cast<const T*>(x.const_data_ptr());
  auto* const to = static_cast<T*>(y.mutable_data_ptr());
  for (int64_t i = 0; i < x.numel(); ++i) {
    const Acc value = static_cast<Acc>(from[i]);
    to[i] = static_cast<T>(value / (1 + std::abs(value)));
  }
}

}  // namespace

Tensor softsign_cpu(Tensor x) {
  STD_TORCH_CHECK(
      is_supported(x.scalar_type()),
      "largebatch::softsign: x must be float32, float64, float16 or bfloat16");
  check_stored("largebatch::softsign", x);
  x = torch::stable::contiguous(x);
  Tensor y = torch::stable::new_empty(x, x.sizes(), x.scalar_type());
  switch (x.scalar_type()) {
    case ScalarType::Float: run<float, float>(x, y); break;
    case ScalarType::Double: run<double, double>(x, y); break;
    case ScalarType::Half: run<Half, float>(x, y); break;
    default: run<BFloat16, float>(x, y);
  }
  return y;
}

}  // namespace largebatch
