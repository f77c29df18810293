// The order of all chunks' exchanges: a thread for each exchange, or one stream of a device.

#pragma once

#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <unistd.h>

#include <algorithm>
#include <array>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "exchange.h"
#include "message.h"
#include "queues.h"

namespace largebatch::comm {

// What the threads share; it lives as long as the last of them.
class Schedule : public std::enable_shared_from_this<Schedule> {
 public:
  explicit Schedule(Exchange exchange) : exchange_(std::move(exchange)) {
    const c10::Device device = exchange_.device();
    if (!device.is_cpu()) stream_ = c10::impl::VirtualGuardImpl(device.type()).getNewStream(device);
  }

  c10::intrusive_ptr<c10d::Work> all_reduce(
      const Tensor& flat, int64_t chunks, at::ScalarType wire, int64_t divisor,
      std::optional<Tensor> squares, std::optional<Tensor> target) {
    const int64_t unit = exchange_.unit(), length = flat.numel();
    const int64_t size = (length + chunks * unit - 1) / (chunks * unit) * unit;
    const int64_t count = length == 0 ? 0 : (length + size - 1) / size;
    auto work = c10::make_intrusive<Pending>(flat);
    auto message = std::make_shared<Message>(
        Message{flat, std::move(target), std::move(squares), wire, divisor, count, work});
    if (const auto error = failure()) {
      work->fail(error);
    } else if (count == 0) {
      Exchange::complete(*message);
    } else {
      std::vector<ChunkPtr> parts;
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
  // of the threads, and its locks may be held by nobody. May be called from several threads at once.
  bool close(bool last) {
    if (process_ == 0) return true;
    if (getpid() != process_) {
      new std::vector<std::thread>(std::move(threads_));
      new std::shared_ptr<Schedule>(shared_from_this());
      threads_.clear();
      return true;
    }
    const bool inside = serving_ == this;
    if (inside && !last) return false;
    const std::lock_guard<std::mutex> lock(closing_);
    if (threads_.empty()) return true;
    inboxes_[0].put(nullptr);
    const bool failed = failure() != nullptr;
    if (failed) new std::shared_ptr<Schedule>(shared_from_this());
    for (std::thread& thread : threads_) failed || inside ? thread.detach() : thread.join();
    threads_.clear();
    return true;
  }

 private:
  void carry(const std::vector<ChunkPtr>& chunks) {
    if (!stream_) {
      if (threads_.empty()) start();
      for (const ChunkPtr& chunk : chunks) inboxes_[0].put(chunk);
      return;
    }
    // On a device nothing blocks the host, and every rank must launch in one order: no threads.
    const c10::Device device = exchange_.device();
    const c10::impl::VirtualGuardImpl guard(device.type());
    c10::Event event(device.type());
    event.record(guard.getStream(device));
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
    serving_ = this;
    while (ChunkPtr chunk = inboxes_[stage].get()) {
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
      exchange_.step(chunk, stage);
    } catch (...) {
      const auto error = fail(std::current_exception());
      chunk.waiting.clear();
      chunk.message->work->fail(error);
    }
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

  Exchange exchange_;
  std::optional<c10::Stream> stream_;
  int64_t sequence_ = 0;
  std::vector<std::thread> threads_;
  std::mutex closing_;
  pid_t process_ = 0;  // that the threads belong to; 0: none was started
  inline static thread_local const Schedule* serving_ = nullptr;  // whose thread this one is
  std::array<Inbox, kSteps> inboxes_;
  std::array<Slots, kSteps - 1> slots_;
  std::mutex mutex_;
  std::exception_ptr error_;
};

}  // namespace largebatch::comm
