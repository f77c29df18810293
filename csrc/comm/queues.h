// What hands the chunks from one thread of the schedule to the next.

#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <utility>

#include "message.h"

namespace largebatch::comm {

constexpr int kAbreast = 2;  // chunks in one exchange

class Inbox {
 public:
  void put(ChunkPtr chunk) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      chunks_.push_back(std::move(chunk));
    }
    filled_.notify_one();
  }

  ChunkPtr get() {
    std::unique_lock<std::mutex> lock(mutex_);
    filled_.wait(lock, [this] { return !chunks_.empty(); });
    ChunkPtr chunk = std::move(chunks_.front());
    chunks_.pop_front();
    return chunk;
  }

 private:
  std::mutex mutex_;
  std::condition_variable filled_;
  std::deque<ChunkPtr> chunks_;
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

}  // namespace largebatch::comm
