// The machine that runs kernels on the CPU.
//
// Every CUDA thread is a fiber. It runs to its next barrier, warp operation, sleep or end, in an
// order that CUDA_EMULATION_ORDER chooses: forward, backward or random:SEED. What a kernel without
// races computes does not depend on it. Blocks follow the same order, one after another; where one
// waits for others by __nanosleep, and in random order always, several of them take turns.
//
// Shared memory is filled with ones before each block, so that a read before a write shows. Errors
// of the launch are: threads at different barriers, or past one where others wait; a warp operation
// without one of its lanes; blocks that wait for what no other does; an empty or too large grid; too
// many bytes of arguments or shared memory.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

namespace emulation {

struct Index {
  unsigned int x, y, z;
};

extern Index now_thread, now_block, block_size, grid_size;
Index thread_index();
Index block_index();

void barrier(const char* file, int line);
void wait(const char* file, int line);
void fence();
void trap(const char* file, int line);

// A warp operation: lanes of `mask` meet, and each sees what the others brought.
class Exchange {
 public:
  Exchange(unsigned int mask, uint64_t value, const char* file, int line);
  uint64_t of(int lane) const;  // an error if the lane is not in the mask
  int lane() const { return lane_; }

 private:
  unsigned int mask_;
  int lane_, turn_;
};

inline unsigned int mask_of(unsigned int mask = 0xffffffffu) { return mask; }

template <typename T, class From>
T shuffle(unsigned int mask, T value, const From& from, const char* file, int line) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const Exchange exchange(mask, bits, file, line);
  const int lane = from(exchange.lane());
  if (lane < 0 || lane >= 32) return value;
  bits = exchange.of(lane);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline unsigned int ballot(unsigned int mask, bool predicate, const char* file, int line) {
  const Exchange exchange(mask, predicate, file, line);
  unsigned int votes = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1 && exchange.of(lane)) votes |= 1u << lane;
  }
  return votes;
}

// One __shared__ variable: in each block memory of its own, whose ends a sanitizer sees.
struct Shared {
  int number = -1;
};
void* shared_memory(Shared& variable, size_t size);
unsigned char* dynamic_shared();

template <typename T>
T& shared_in(Shared& variable) {
  return *static_cast<T*>(shared_memory(variable, sizeof(T)));
}

struct Launch {
  unsigned int blocks, threads;
  size_t shared, arguments;  // bytes
  void (*body)(const void*);
  const void* context;
};
void run(const Launch& launch);

// What went wrong since the last call, or null; valid until the next.
const char* error();

}  // namespace emulation
