// Kernels with one mistake each, and blocks that meet: what the machine says of them. Already
// rewritten as emulation.py does it.

#include <cstdio>
#include <cstring>

#include "common/launch.cuh"

using largebatch::launch;
using largebatch::launch_error;

static void divergent() {
  if (threadIdx.x < 40) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

static void passed_by() {
  if (threadIdx.x < 40) __syncthreads();
}

static void missing_lane(int* out) {
  if (threadIdx.x == 7) return;
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, int(threadIdx.x), 1);
}

static void outside_of_mask(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_down_sync(0x0000ffffu, int(threadIdx.x), 8);
}

static void unwritten(float* out) {
  static emulation::Shared values_shared;
  auto& values = emulation::shared_in<float[64]>(values_shared);
  if (threadIdx.x < 63) values[threadIdx.x] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = values[63 - threadIdx.x];
}

// Each block adds its number, waits for all, and reads the sum.
static void meet(unsigned int* counter, unsigned int* sum, unsigned int* out, unsigned int blocks) {
  if (threadIdx.x == 0) {
    atomicAdd(sum, blockIdx.x);
    __threadfence();
    atomicAdd(counter, 1u);
    while (atomicAdd(counter, 0u) < blocks) __nanosleep(100);
    __threadfence();
    out[blockIdx.x] = atomicAdd(sum, 0u);
  }
  __syncthreads();
}

static void votes(unsigned int* out) {
  out[threadIdx.x] = __ballot_sync(0xffffffffu, threadIdx.x % 2 == 0);
  __syncwarp();
}

static void say(const char* name) {
  const char* const error = launch_error();
  printf("%s: %s\n", name, error == nullptr ? "fine" : error);
}

int main() {
  int out[64] = {};
  float numbers[64] = {};
  launch(divergent, {1, 64, nullptr});
  say("divergent");
  launch(passed_by, {1, 64, nullptr});
  say("passed_by");
  launch(missing_lane, {1, 32, nullptr}, &out[0]);
  say("missing_lane");
  launch(outside_of_mask, {1, 32, nullptr}, &out[0]);
  say("outside_of_mask");
  launch(votes, {0, 32, nullptr}, static_cast<unsigned int*>(nullptr));
  say("empty_grid");
  launch(unwritten, {1, 64, nullptr}, &numbers[0]);
  say(numbers[0] != numbers[0] && numbers[1] == 1.0f ? "unwritten_is_nan" : "unwritten_is_lost");
  unsigned int counter = 0, sum = 0, sums[65] = {}, ballots[32];
  launch(meet, {40, 32, nullptr}, &counter, &sum, &sums[0], 40u);
  for (int block = 0; block < 40; ++block) counter += sums[block] != 780;
  say(counter == 40 ? "meet" : "meet_too_early");
  counter = 0;
  launch(meet, {65, 32, nullptr}, &counter, &sum, &sums[0], 65u);
  say("more_than_fit");
  launch(votes, {1, 32, nullptr}, &ballots[0]);
  say(ballots[31] == 0x55555555u ? "votes" : "votes_lost");
}
