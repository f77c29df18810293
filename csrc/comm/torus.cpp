// The 2D-torus all-reduce on c10d process groups: the schedule of largebatch/distributed/torus.py,
// without the interpreter. Names and order follow that file, which explains them.
//
// c10d's C++ interface is not stable, so this file is no part of largebatch._C: it is compiled on
// first use against the running torch (largebatch/_ops/torus_library.py).

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/utils/pybind.h>

#include <unistd.h>

#include <array>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace largebatch {
namespace {

using at::Tensor;
using Group = c10::intrusive_ptr<c10d::ProcessGroup>;

constexpr std::array<const char*, 4> kStages = {
    "row scatter", "column scatter", "column gather", "row gather"};
constexpr int kSteps = 5;         // the four exchanges and the end
constexpr int kAbreast = 2;       // chunks in one exchange
constexpr int64_t kTags = 1 << 30;

std::atomic<int64_t> steps_sent{0}, bytes_sent{0};

Tensor sum_shards(const std::vector<Tensor>& shards, Tensor out, int64_t divisor, bool squares) {
  static const auto call =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("largebatch::sum_shards", "")
          .typed<Tensor(at::TensorList, Tensor&, int64_t, bool)>();
  return call.call(shards, out, divisor, squares);
}

class Pending : public c10d::Work {
 public:
  explicit Pending(Tensor flat) : Work(-1, c10d::OpType::ALLREDUCE), flat_(std::move(flat)) {
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

using Place = std::shared_ptr<Chunk>;

class Inbox {
 public:
  void put(Place chunk) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      chunks_.push_back(std::move(chunk));
    }
    filled_.notify_one();
  }

  Place get() {
    std::unique_lock<std::mutex> lock(mutex_);
    filled_.wait(lock, [this] { return !chunks_.empty(); });
    Place chunk = std::move(chunks_.front());
    chunks_.pop_front();
    return chunk;
  }

 private:
  std::mutex mutex_;
  std::condition_variable filled_;
  std::deque<Place> chunks_;
};

class Slots {
 public:
  void acquire() {
    std::unique_lock<std::mutex> lock(mutex_);
    freed_.wait(lock, [this] { return free_ > 0; });
    --free_;
  }

  void release() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ++free_;
    }
    freed_.notify_one();
  }

 private:
  std::mutex mutex_;
  std::condition_variable freed_;
  int free_ = kAbreast;
};

// What the threads share; it lives as long as the last of them.
class Schedule : public std::enable_shared_from_this<Schedule> {
 public:
  Schedule(
      int64_t rank, int64_t columns, int64_t rows, int64_t position, std::vector<int64_t> row_ranks,
      std::vector<int64_t> column_ranks, Group row, Group column, c10::Device device)
      : rank_(rank),
        x_(columns),
        y_(rows),
        position_(position),
        row_ranks_(std::move(row_ranks)),
        column_ranks_(std::move(column_ranks)),
        row_(std::move(row)),
        column_(std::move(column)),
        device_(device) {
    for (size_t place = 0; place < column_ranks_.size(); ++place) {
      if (column_ranks_[place] == rank_) me_ = static_cast<int64_t>(place);
    }
    if (!device_.is_cpu()) {
      stream_ = c10::impl::VirtualGuardImpl(device_.type()).getNewStream(device_);
    }
  }

  c10::intrusive_ptr<c10d::Work> all_reduce(
      const Tensor& flat, int64_t chunks, at::ScalarType wire, int64_t divisor,
      std::optional<Tensor> squares, std::optional<Tensor> target) {
    const int64_t unit = x_ * y_, length = flat.numel();
    const int64_t size = (length + chunks * unit - 1) / (chunks * unit) * unit;
    const int64_t count = length == 0 ? 0 : (length + size - 1) / size;
    auto work = c10::make_intrusive<Pending>(flat);
    auto message = std::make_shared<Message>(
        Message{flat, std::move(target), std::move(squares), wire, divisor, count, work});
    if (const auto error = failure()) {
      work->fail(error);
    } else if (count == 0) {
      complete(*message);
    } else {
      std::vector<Place> parts;
      for (int64_t number = 0; number < count; ++number) {
        auto chunk = std::make_shared<Chunk>();
        chunk->message = message;
        chunk->number = number;
        chunk->count = count;
        chunk->start = number * size;
        chunk->stop = std::min(chunk->start + size, length);
        chunk->tag = sequence_++ % kTags;
        parts.push_back(std::move(chunk));
      }
      carry(parts);
    }
    return work;
  }

  // Waits for what has begun, unless that could be for ever: after a failure a thread may wait for
  // a dead rank yet. Returns false, having done nothing, on one of the threads, where a callback
  // may drop an owner: another is to close, unless this one was the `last`. A forked child has none
  // of the threads, and its locks may be held by nobody.
  bool close(bool last) {
    if (threads_.empty()) return true;
    if (getpid() != process_) {
      new std::vector<std::thread>(std::move(threads_));
      new std::shared_ptr<Schedule>(shared_from_this());
      threads_.clear();
      return true;
    }
    bool inside = false;
    for (const std::thread& thread : threads_) {
      inside = inside || thread.get_id() == std::this_thread::get_id();
    }
    if (inside && !last) return false;
    inboxes_[0].put(nullptr);
    const bool failed = failure() != nullptr;
    if (failed) new std::shared_ptr<Schedule>(shared_from_this());
    for (std::thread& thread : threads_) failed || inside ? thread.detach() : thread.join();
    threads_.clear();
    return true;
  }

 private:
  void carry(const std::vector<Place>& chunks) {
    if (!stream_) {
      if (threads_.empty()) start();
      for (const Place& chunk : chunks) inboxes_[0].put(chunk);
      return;
    }
    // On a device nothing blocks the host, and every rank must launch in one order: no threads.
    const c10::impl::VirtualGuardImpl guard(device_.type());
    c10::Event event(device_.type());
    event.record(guard.getStream(device_));
    event.block(*stream_);
    const auto count = static_cast<int64_t>(chunks.size());
    for (int64_t tick = 0; tick < count + kSteps - 1; ++tick) {
      for (int64_t stage = 0; stage < kSteps; ++stage) {
        const int64_t number = tick - stage;
        if (number >= 0 && number < count) advance(*chunks[number], static_cast<int>(stage));
      }
    }
  }

  void start() {
    process_ = getpid();
    for (int stage = 0; stage < kSteps; ++stage) {
      threads_.emplace_back([self = shared_from_this(), stage] { self->serve(stage); });
    }
  }

  void serve(int stage) {
    while (Place chunk = inboxes_[stage].get()) {
      const bool last = stage + 1 == kSteps;
      if (!last) slots_[stage].acquire();
      advance(*chunk, stage);
      if (stage > 0) slots_[stage - 1].release();
      if (!last) inboxes_[stage + 1].put(std::move(chunk));
    }
    if (stage + 1 < kSteps) inboxes_[stage + 1].put(nullptr);
  }

  void advance(Chunk& chunk, int stage) {
    try {
      if (const auto error = failure()) std::rethrow_exception(error);
      const c10::OptionalStreamGuard on_stream(
          stream_ ? c10::OptionalStreamGuard(*stream_) : c10::OptionalStreamGuard());
      const at::NoGradGuard no_grad;
      step(chunk, stage);
    } catch (...) {
      const auto error = fail(std::current_exception());
      chunk.waiting.clear();
      chunk.message->work->fail(error);
    }
  }

  void step(Chunk& chunk, int stage) {
    switch (stage) {
      case 0: return scatter_rows(chunk);
      case 1: return scatter_columns(chunk);
      case 2: return gather_columns(chunk);
      case 3: return gather_rows(chunk);
      default: return finish(chunk);
    }
  }

  void scatter_rows(Chunk& chunk) {
    const Tensor& flat = chunk.message->flat;
    const int64_t length = chunk.stop - chunk.start, unit = x_ * y_;
    const int64_t padded = (length + unit - 1) / unit * unit;
    chunk.data = flat.slice(0, chunk.start, chunk.stop);
    if (padded != length) {
      Tensor data = at::zeros({padded}, flat.options());
      data.slice(0, 0, length).copy_(chunk.data);
      chunk.data = data;
    }
    chunk.data = chunk.data.view({x_, -1});
    const auto row = static_cast<int64_t>(row_ranks_.size());
    Peers sends, receives;
    for (const int64_t peer : others(x_, position_)) sends.emplace_back(peer, chunk.data[peer]);
    if (column_) {
      chunk.received = at::empty({row, chunk.data.size(1)}, flat.options()).unbind();
      chunk.received[position_] = chunk.data[position_];
      for (const int64_t peer : others(row, position_)) {
        receives.emplace_back(peer, chunk.received[peer]);
      }
    }
    post(chunk, 0, row_, row_ranks_, sends, receives);
  }

  void scatter_columns(Chunk& chunk) {
    wait(chunk, 0);
    if (!column_) return;
    Message& message = *chunk.message;
    const Tensor own = chunk.data[position_];
    const bool narrow = message.wire != own.scalar_type();
    chunk.wired = narrow ? at::empty_like(own, own.options().dtype(message.wire)) : own;
    // Divided before a narrow wire: sums of many ranks could exceed float16.
    const Tensor found = sum_shards(
        chunk.received, chunk.wired, narrow ? message.divisor : 1, message.squares.has_value());
    if (message.squares) message.squares->select(0, 0).add_(found.select(0, 0));
    const Tensor pieces = chunk.wired.view({y_, -1});
    chunk.received = at::empty_like(pieces).unbind();
    chunk.received[me_] = pieces[me_];
    Peers sends, receives;
    for (const int64_t peer : others(y_, me_)) {
      sends.emplace_back(peer, pieces[peer]);
      receives.emplace_back(peer, chunk.received[peer]);
    }
    post(chunk, 1, column_, column_ranks_, sends, receives);
  }

  void gather_columns(Chunk& chunk) {
    wait(chunk, 1);
    if (!column_) return;
    Message& message = *chunk.message;
    const Tensor pieces = chunk.wired.view({y_, -1});
    const int64_t divisor = message.wire == chunk.data.scalar_type() ? message.divisor : 1;
    const Tensor mine = pieces[me_];
    const Tensor found = sum_shards(chunk.received, mine, divisor, message.squares.has_value());
    if (message.squares) message.squares->select(0, 1).add_(found.select(0, 1));
    chunk.received.clear();
    Peers sends, receives;
    for (const int64_t peer : others(y_, me_)) {
      sends.emplace_back(peer, mine);
      receives.emplace_back(peer, pieces[peer]);
    }
    post(chunk, 2, column_, column_ranks_, sends, receives);
  }

  void gather_rows(Chunk& chunk) {
    wait(chunk, 2);
    Peers sends, receives;
    if (column_) {
      const Tensor own = chunk.data[position_];
      if (chunk.wired.scalar_type() != own.scalar_type()) own.copy_(chunk.wired);
      const auto row = static_cast<int64_t>(row_ranks_.size());
      for (const int64_t peer : others(row, position_)) sends.emplace_back(peer, own);
    }
    for (const int64_t peer : others(x_, position_)) receives.emplace_back(peer, chunk.data[peer]);
    post(chunk, 3, row_, row_ranks_, sends, receives);
  }

  void finish(Chunk& chunk) {
    wait(chunk, 3);
    Message& message = *chunk.message;
    const int64_t length = chunk.stop - chunk.start;
    if (chunk.data.numel() != length) {
      message.flat.slice(0, chunk.start, chunk.stop).copy_(chunk.data.view(-1).slice(0, 0, length));
    }
    if (--message.left == 0) complete(message);
  }

  static void complete(Message& message) {
    if (message.target) message.target->copy_(message.flat.view(message.target->sizes()));
    message.work->succeed();
  }

  using Peers = std::vector<std::pair<int64_t, Tensor>>;

  // All but `me` of the first `count`, from the next one on: ranks that began with the same peer
  // would wait for its link together.
  static std::vector<int64_t> others(int64_t count, int64_t me) {
    std::vector<int64_t> peers;
    for (int64_t step = 1; step <= count; ++step) {
      if ((me + step) % count != me) peers.push_back((me + step) % count);
    }
    return peers;
  }

  void post(
      Chunk& chunk, int stage, const Group& group, const std::vector<int64_t>& ranks,
      const Peers& sends, const Peers& receives) {
    const int tag = static_cast<int>(chunk.tag * 4 % kTags) + stage;
    const bool together = stream_.has_value() && !(sends.empty() && receives.empty());
    if (together) group->startCoalescing(device_.type());
    for (const auto& [peer, tensor] : receives) {
      std::vector<Tensor> box = {tensor};
      chunk.waiting.emplace_back(ranks[peer], group->recv(box, static_cast<int>(peer), tag));
    }
    for (const auto& [peer, tensor] : sends) {
      std::vector<Tensor> box = {tensor};
      chunk.waiting.emplace_back(ranks[peer], group->send(box, static_cast<int>(peer), tag));
      steps_sent += 1;
      bytes_sent += static_cast<int64_t>(tensor.nbytes());
    }
    if (together) chunk.waiting = {{ranks[0], group->endCoalescing(device_.type())}};
  }

  void wait(Chunk& chunk, int stage) {
    for (auto& [peer, work] : chunk.waiting) {
      try {
        work->wait();
      } catch (const std::exception& error) {
        std::string reason = error.what();  // "[file:line] First sentence. Advice ..."
        if (reason.rfind('[', 0) == 0) reason.erase(0, reason.find("] ") + 2);
        reason.erase(std::min({reason.find('\n'), reason.find(". "), reason.size()}));
        throw std::runtime_error(c10::str(
            "torus all-reduce: rank ", rank_, " in step '", kStages[stage], "' with rank ", peer,
            ", chunk ", chunk.number + 1, " of ", chunk.count, ": ", reason));
      }
    }
    chunk.waiting.clear();
  }

  std::exception_ptr failure() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return error_;
  }

  // Returns the first error, which stands.
  std::exception_ptr fail(std::exception_ptr error) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!error_) error_ = std::move(error);
    return error_;
  }

  const int64_t rank_, x_, y_, position_;
  int64_t me_ = -1;
  const std::vector<int64_t> row_ranks_, column_ranks_;
  const Group row_, column_;
  const c10::Device device_;
  std::optional<c10::Stream> stream_;
  int64_t sequence_ = 0;
  std::vector<std::thread> threads_;
  pid_t process_ = 0;  // that the threads belong to
  std::array<Inbox, kSteps> inboxes_;
  std::array<Slots, kSteps - 1> slots_;
  std::mutex mutex_;
  std::exception_ptr error_;
};

class Torus {
 public:
  template <class... Arguments>
  explicit Torus(Arguments&&... arguments)
      : schedule_(std::make_shared<Schedule>(std::forward<Arguments>(arguments)...)) {}
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

}  // namespace
}  // namespace largebatch

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  using largebatch::Group;
  using largebatch::Torus;
  py::module_::import("torch.distributed");
  py::class_<Torus>(module, "Torus")
      .def(
          py::init([](int64_t rank, int64_t columns, int64_t rows, int64_t position,
                      std::vector<int64_t> row_ranks, std::vector<int64_t> column_ranks, Group row,
                      std::optional<Group> column, const std::string& device) {
            return std::make_unique<Torus>(
                rank, columns, rows, position, std::move(row_ranks), std::move(column_ranks),
                std::move(row), column.value_or(Group()), c10::Device(device));
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
    return std::pair<int64_t, int64_t>(largebatch::steps_sent, largebatch::bytes_sent);
  });
}
