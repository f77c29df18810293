// The 2D-torus all-reduce on c10d process groups: the schedule of largebatch/distributed/torus.py,
// without the interpreter. Names and order follow that file, which explains them.
//
// c10d's C++ interface is not stable, so this folder is no part of largebatch._C: it is compiled on
// first use against the running torch (largebatch/_ops/torus_library.py).

#include <torch/csrc/utils/pybind.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "exchange.h"
#include "schedule.h"

namespace largebatch::comm {

// The schedule as Python owns it: its threads end when the last owner has gone.
class Torus {
 public:
  explicit Torus(Exchange exchange) : schedule_(std::make_shared<Schedule>(std::move(exchange))) {}
  ~Torus() {
    const py::gil_scoped_release release;  // a thread may run the operator's reference in Python
    schedule_->close(true);
  }
  Torus(const Torus&) = delete;
  Torus& operator=(const Torus&) = delete;

  Schedule& schedule() { return *schedule_; }

 private:
  std::shared_ptr<Schedule> schedule_;
};

}  // namespace largebatch::comm

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  using namespace largebatch::comm;
  py::module_::import("torch.distributed");
  py::class_<Torus>(module, "Torus")
      .def(
          py::init([](int64_t rank, int64_t columns, int64_t rows, int64_t position,
                      std::vector<int64_t> row_ranks, std::vector<int64_t> column_ranks, Group row,
                      std::optional<Group> column, const std::string& device) {
            return std::make_unique<Torus>(Exchange(
                rank, columns, rows, position, std::move(row_ranks), std::move(column_ranks),
                std::move(row), column.value_or(Group()), c10::Device(device)));
          }))
      .def(
          "all_reduce",
          [](Torus& self, const at::Tensor& flat, int64_t chunks, at::ScalarType wire,
             int64_t divisor, std::optional<at::Tensor> squares, std::optional<at::Tensor> target) {
            const py::gil_scoped_release release;
            return self.schedule().all_reduce(
                flat, chunks, wire, divisor, std::move(squares), std::move(target));
          })
      .def("close", [](Torus& self) {
        const py::gil_scoped_release release;
        return self.schedule().close(false);
      });
  module.def("sent", [] {
    return std::pair<int64_t, int64_t>(steps_sent.load(), bytes_sent.load());
  });
}
