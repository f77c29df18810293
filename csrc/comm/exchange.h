// The four exchanges of one chunk and its end: what is sent to whom, and what is added where.

#pragma once

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/Stream.h>
#include <c10/util/StringUtil.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "message.h"

namespace largebatch::comm {

using Group = c10::intrusive_ptr<c10d::ProcessGroup>;

constexpr std::array<const char*, 4> kStages = {
    "row scatter", "column scatter", "column gather", "row gather"};
constexpr int kSteps = 5;  // the four exchanges and the end
constexpr int64_t kTags = 1 << 30;

inline std::atomic<int64_t> steps_sent{0}, bytes_sent{0};

inline Tensor sum_shards(
    const std::vector<Tensor>& shards, Tensor out, int64_t divisor, bool squares) {
  static const auto call =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("largebatch::sum_shards", "")
          .typed<Tensor(at::TensorList, Tensor&, int64_t, bool)>();
  return call.call(shards, out, divisor, squares);
}

// One rank's part in a grid of `columns` ranks in each row by `rows` ranks in each column.
class Exchange {
 public:
  Exchange(
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
  }

  c10::Device device() const { return device_; }

  // Chunks are cut at multiples of this number of elements.
  int64_t unit() const { return x_ * y_; }

  void step(Chunk& chunk, int stage) {
    switch (stage) {
      case 0: return scatter_rows(chunk);
      case 1: return scatter_columns(chunk);
      case 2: return gather_columns(chunk);
      case 3: return gather_rows(chunk);
      default: return finish(chunk);
    }
  }

  static void complete(Message& message) {
    if (message.target) message.target->copy_(message.flat.view(message.target->sizes()));
    message.work->succeed();
  }

 private:
  using Peers = std::vector<std::pair<int64_t, Tensor>>;

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
    const bool together = !device_.is_cpu() && !(sends.empty() && receives.empty());
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

  const int64_t rank_, x_, y_, position_;
  int64_t me_ = -1;  // this rank's place in its column
  const std::vector<int64_t> row_ranks_, column_ranks_;
  const Group row_, column_;
  const c10::Device device_;
};

}  // namespace largebatch::comm
