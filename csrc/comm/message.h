// One message of the torus all-reduce, its chunks, and the Work that its caller waits for.

#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <chrono>
#include <exception>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace largebatch::comm {

using at::Tensor;

class Pending : public c10d::Work {
 public:
  // The title is what torch.profiler shows, from the beginning to the end of the message.
  explicit Pending(const Tensor& flat)
      : Work(-1, c10d::OpType::ALLREDUCE, "torus:all_reduce", std::vector<Tensor>{flat}),
        flat_(flat) {
    std::vector<c10::Device> devices;
    if (!flat_.is_cpu()) devices.push_back(flat_.device());
    future_ = c10::make_intrusive<c10::ivalue::Future>(
        c10::ListType::create(c10::TensorType::get()), devices);
  }

  void succeed() {
    future_->markCompleted(at::IValue(std::vector<Tensor>{flat_}));
    finish();
  }

  void fail(const std::exception_ptr& error) {
    if (future_->completed()) return;
    future_->setError(error);
    finish(error);
  }

  bool wait(std::chrono::milliseconds timeout) override {
    Work::wait(timeout);
    future_->wait();  // on CUDA the current stream waits
    return true;
  }

  std::vector<Tensor> result() override { return {flat_}; }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return future_; }

 private:
  Tensor flat_;
  c10::intrusive_ptr<c10::ivalue::Future> future_;
};

struct Message {
  Tensor flat;
  std::optional<Tensor> target, squares;
  at::ScalarType wire;
  int64_t divisor;
  int64_t left;
  c10::intrusive_ptr<Pending> work;
};

struct Chunk {
  std::shared_ptr<Message> message;
  int64_t number, count, start, stop, tag;
  Tensor data, wired;
  std::vector<Tensor> received;
  std::vector<std::pair<int64_t, c10::intrusive_ptr<c10d::Work>>> waiting;
};

using ChunkPtr = std::shared_ptr<Chunk>;  // null: no more will come

}  // namespace largebatch::comm
