// Fibers, blocks and their scheduler; see machine.h.

#include "machine.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define UNWATCHED __attribute__((no_sanitize("thread"), noinline))
#else
#define UNWATCHED
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulation {
namespace {

// No powers of two, or all stacks would share a cache's few sets.
#if defined(__SANITIZE_THREAD__)
constexpr size_t kStack = 16 * 1024 + 576;  // with four times as much of TSan's, new for each block
#else
constexpr size_t kStack = 64 * 1024 + 576;
#endif
constexpr size_t kMostArguments = 32764;  // of a kernel, from CUDA 12.1 on
constexpr size_t kMostShared = 48 * 1024;
constexpr size_t kResident = 64;     // blocks that run together at most, as on a small chip
constexpr size_t kRandomBlocks = 3;  // that take turns in random order
constexpr int kPatience = 1000;      // rounds in which all blocks do nothing but wait

enum class State { kReady, kHeld, kBarrier, kWarp, kWaits, kDone };

struct Block;

struct Fiber {
  Block* block;
  unsigned int thread;
  State state;
  void* stack = nullptr;
#if defined(__x86_64__)
  void* pointer;
#else
  ucontext_t context;
#endif
  void* fake = nullptr;    // ASan's
  void* shadow = nullptr;  // TSan's
  const char* file;
  int line;
  unsigned int mask;
  uint64_t brought[2];  // to warp operations, in turn
  int barriers, exchanges;
};

// What TSan takes barriers and warp operations for: two of each, used in turn, because a thread may
// be at the next before another has left the last.
struct Tokens {
  uint64_t barrier[2], warps[32][2];
};

struct Memory {
  void* data = nullptr;
  size_t size = 0;
  uint64_t serial = 0;  // of the block that it was made ready for
};

struct Block {
  unsigned int index;
  uint64_t serial;
  std::vector<Fiber> fibers;
  char* stacks = nullptr;
  size_t stacks_size = 0;
  std::vector<Memory> shared;  // by the number of the variable
  Memory dynamic;
  Tokens* tokens = nullptr;
  uint32_t held = 0;  // warps that are held back, a bit each, and for how many rounds
  unsigned int held_rounds = 0;
};

struct Machine {
  std::mutex mutex;  // one launch at a time
  Fiber* current = nullptr;
  Launch launch;
  uint64_t serial = 0;  // of blocks, over all launches
  uint64_t arrivals = 0;  // of threads at barriers, warp operations and ends
  int variables = 0;
  std::vector<std::unique_ptr<Block>> idle;
  std::string error, told;
  int order = 0;  // 0 forward, 1 backward, 2 random
  std::mt19937 random;
  std::vector<unsigned int> threads, blocks;  // in the order they run
  size_t position = 0;                        // in `threads`
  std::set<std::pair<const char*, int>> barriers;  // that a thread has come to
  std::string skipped;                        // a barrier that is left out
  char fence, end;                            // tokens of TSan
  const void* main_bottom = nullptr;
  size_t main_size = 0;
  void* main_fake = nullptr;
  void* main_shadow = nullptr;
  uint64_t launches = 0;
#if defined(__x86_64__)
  void* main_pointer;
#else
  ucontext_t main_context;
#endif
};

void choose_order(Machine& m, const std::string& wish) {
  m.order = wish == "backward" ? 1 : wish.rfind("random", 0) == 0 ? 2 : 0;
  m.random.seed(wish.size() > 7 ? atoi(wish.c_str() + 7) : 1);
}

Machine* make_machine() {
  auto* const created = new Machine;
  const char* const order = getenv("CUDA_EMULATION_ORDER");
  choose_order(*created, order ? order : "forward");
  const char* const skipped = getenv("CUDA_EMULATION_SKIP");
  if (skipped != nullptr) created->skipped = skipped;
  return created;
}

Machine* const the_machine = make_machine();

inline Machine& machine() { return *the_machine; }

#if defined(__x86_64__)
extern "C" void emulation_switch(void** from, void* to);
asm(R"(
.text
.globl emulation_switch
.hidden emulation_switch
.type emulation_switch, @function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#endif

// From a fiber to the next that may run, or to the scheduler.
UNWATCHED void leave(bool last = false) {
  Machine& m = machine();
  Fiber& fiber = *m.current;
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  if (m.position + 1 < m.threads.size()) {
    Fiber& next = fiber.block->fibers[m.threads[m.position + 1]];
    if (next.state == State::kReady) {
      ++m.position;
      m.current = &next;
      now_thread = {next.thread, 0, 0};
      return emulation_switch(&fiber.pointer, next.pointer);
    }
  }
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &fiber.fake, m.main_bottom, m.main_size);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(m.main_shadow, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__x86_64__)
  emulation_switch(&fiber.pointer, m.main_pointer);
#else
  swapcontext(&fiber.context, &m.main_context);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber.fake, &m.main_bottom, &m.main_size);
#endif
  (void)last;
}

UNWATCHED void enter() {
  Machine& m = machine();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &m.main_bottom, &m.main_size);
#endif
  m.launch.body(m.launch.context);
#if defined(__SANITIZE_THREAD__)
  __tsan_release(&m.end);
#endif
  m.current->state = State::kDone;
  ++m.arrivals;
  leave(true);
  abort();
}

// From the scheduler to a fiber.
UNWATCHED void resume(Fiber& fiber) {
  Machine& m = machine();
  m.current = &fiber;
#if !defined(__SANITIZE_THREAD__)
  now_thread = {fiber.thread, 0, 0};
  now_block = {fiber.block->index, 0, 0};
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&m.main_fake, fiber.stack, kStack);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(fiber.shadow, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__x86_64__)
  emulation_switch(&m.main_pointer, fiber.pointer);
#else
  swapcontext(&m.main_context, &fiber.context);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(m.main_fake, nullptr, nullptr);
#endif
}

void prepare(Fiber& fiber, Block& block, unsigned int thread) {
  fiber.block = &block;
  fiber.thread = thread;
  fiber.state = State::kReady;
  fiber.barriers = fiber.exchanges = 0;
#if defined(__SANITIZE_THREAD__)  // a stack that another block has used would be memory they share
  if (thread == 0 && block.stacks != nullptr) munmap(block.stacks, block.stacks_size);
  if (thread == 0) block.stacks_size = 0;
#endif
  if (const size_t all = machine().launch.threads * kStack; block.stacks_size < all) {
    if (block.stacks_size > 0) munmap(block.stacks, block.stacks_size);
    block.stacks = static_cast<char*>(mmap(
        nullptr, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    block.stacks_size = all;
  }
  fiber.stack = block.stacks + thread * kStack;
#if defined(__x86_64__)
  auto** top = reinterpret_cast<void**>(static_cast<char*>(fiber.stack) + kStack) - 2;
  *top = reinterpret_cast<void*>(&enter);  // leaves the stack as a call would
  fiber.pointer = top - 6;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStack;
  makecontext(&fiber.context, enter, 0);
#endif
#if defined(__SANITIZE_THREAD__)
  fiber.shadow = __tsan_create_fiber(0);
#endif
}

std::string place(const char* file, int line) { return std::string(file) + ":" + std::to_string(line); }

void fail(const std::string& what) {
  Machine& m = machine();
  if (m.error.empty()) {
    m.error = "CUDA emulation: " + what;
    fprintf(stderr, "%s\n", m.error.c_str());
  }
}

#if defined(__SANITIZE_THREAD__)
// Memory that no other block of the launch has: nothing orders blocks, so sharing would be a race,
// and malloc would count as a write.
alignas(64) unsigned char arena[512 << 20];
size_t arena_used = 0;

UNWATCHED void* from_arena(size_t size) {
  if (arena_used + size > sizeof(arena)) abort();
  void* const found = arena + arena_used;
  arena_used += (size + 63) / 64 * 64;
  return found;
}
#endif

// Makes memory ready for a block: filled with ones.
UNWATCHED void* ready(Memory& memory, size_t size, uint64_t serial) {
  if (memory.serial == serial) return memory.data;
  memory.serial = serial;
#if defined(__SANITIZE_THREAD__)
  memory.data = from_arena(size);
#else
  if (memory.size != size) {
    free(memory.data);
    memory.data = malloc(size);
    memory.size = size;
  }
#endif
  auto* const bytes = static_cast<volatile unsigned char*>(memory.data);
  for (size_t i = 0; i < size; ++i) bytes[i] = 0xff;
  return memory.data;
}

void put_in_order(std::vector<unsigned int>& order, unsigned int count) {
  Machine& m = machine();
  if (m.order != 2 && order.size() == count) return;
  order.resize(count);
  for (unsigned int i = 0; i < count; ++i) order[i] = i;
  if (m.order == 1) std::reverse(order.begin(), order.end());
  if (m.order == 2) std::shuffle(order.begin(), order.end(), m.random);
}

// Whether all lanes of a fiber's warp operation are at it.
bool is_complete(const std::vector<Fiber>& fibers, unsigned int count, const Fiber& one) {
  const unsigned int warp = one.thread / 32 * 32;
  for (unsigned int lane = 0; lane < 32; ++lane) {
    if (!(one.mask >> lane & 1)) continue;
    if (warp + lane >= count) return false;
    const Fiber& other = fibers[warp + lane];
    if (other.state != State::kWarp || other.mask != one.mask || other.line != one.line) return false;
  }
  return true;
}

// Lets the lanes of a complete warp operation go on. Returns whether
// any may; if none may and none is asleep or held back, that is an error.
bool release(std::vector<Fiber>& fibers, unsigned int count) {
  unsigned int at_barrier = 0, done = 0, others = 0;
  const Fiber* first = nullptr;
  const Fiber* in_warp = nullptr;
  for (unsigned int i = 0; i < count; ++i) {
    done += fibers[i].state == State::kDone;
    others += fibers[i].state == State::kWaits || fibers[i].state == State::kReady;
    if (fibers[i].state == State::kWarp) in_warp = &fibers[i];
    if (fibers[i].state != State::kBarrier) continue;
    ++at_barrier;
    if (first == nullptr) first = &fibers[i];
    if (first->line != fibers[i].line || first->file != fibers[i].file) {
      fail("threads wait at different barriers, " + place(first->file, first->line) + " and " +
           place(fibers[i].file, fibers[i].line));
      return false;
    }
  }
  bool any = false;
  for (unsigned int i = 0; i < count; ++i) {
    if (fibers[i].state != State::kWarp || !is_complete(fibers, count, fibers[i])) continue;
    const unsigned int mask = fibers[i].mask, warp = i / 32 * 32;
    for (unsigned int lane = 0; lane < 32; ++lane) {
      if (mask >> lane & 1) fibers[warp + lane].state = State::kReady;
    }
    any = true;
  }
  if (!any && others == 0) {
    fail(in_warp != nullptr
             ? "a warp operation at " + place(in_warp->file, in_warp->line) +
                 " without one of its lanes"
             : "a barrier at " + place(first->file, first->line) + " that " +
                 std::to_string(done) + " threads have passed by");
  }
  return any;
}

// In random order some warps miss a number of rounds, so that others get ahead of them.
UNWATCHED void hold_back(Block& block) {
  Machine& m = machine();
  if (m.order != 2) return;
  if (block.held_rounds == 0) {
    block.held = m.random() % 2 ? static_cast<uint32_t>(m.random()) : 0;
    block.held_rounds = 1 + m.random() % 12;
  }
  --block.held_rounds;
  bool any = false;
  for (unsigned int i = 0; i < m.launch.threads; ++i) {
    State& state = block.fibers[i].state;
    if (state == State::kReady && block.held >> (i / 32) & 1) state = State::kHeld;
    any = any || state == State::kReady;
  }
  if (!any) block.held_rounds = 0;  // nobody else may go on
}

enum class Progress { kSome, kNone, kDone };

// Runs each thread of a block that may run to where it waits.
UNWATCHED Progress step(Block& block) {
  Machine& m = machine();
  const unsigned int count = m.launch.threads;
  unsigned int done = 0, together = 0;  // at the barrier of the first
  const uint64_t before = m.arrivals;
  put_in_order(m.threads, count);
  hold_back(block);
  for (m.position = 0; m.position < count; ++m.position) {
    Fiber& fiber = block.fibers[m.threads[m.position]];
    if (fiber.state == State::kReady || fiber.state == State::kWaits) resume(fiber);
  }
  for (unsigned int i = 0; i < count && m.order == 2; ++i) {
    if (block.fibers[i].state == State::kHeld) block.fibers[i].state = State::kReady;
  }
  const Fiber& first = block.fibers[0];
  for (unsigned int i = 0; i < count; ++i) {
    const Fiber& fiber = block.fibers[i];
    done += fiber.state == State::kDone;
    together += fiber.state == State::kBarrier && fiber.line == first.line && fiber.file == first.file;
  }
  if (done == count) return Progress::kDone;
  if (together == count) {
    for (unsigned int i = 0; i < count; ++i) block.fibers[i].state = State::kReady;
    return Progress::kSome;
  }
  // Called whatever has moved: warps go on while others are held back.
  const bool any = release(block.fibers, count);
  const bool held = std::any_of(
      block.fibers.begin(), block.fibers.begin() + count,
      [](const Fiber& fiber) { return fiber.state == State::kReady; });
  return any || held || m.arrivals != before ? Progress::kSome : Progress::kNone;
}

UNWATCHED std::unique_ptr<Block> start(unsigned int index) {
  Machine& m = machine();
  std::unique_ptr<Block> block;
  if (m.idle.empty()) {
    block = std::make_unique<Block>();
  } else {
    block = std::move(m.idle.back());
    m.idle.pop_back();
  }
  block->index = index;
  block->serial = ++m.serial;
#if defined(__SANITIZE_THREAD__)
  block->tokens = static_cast<Tokens*>(from_arena(sizeof(Tokens)));
#endif
  if (m.launch.shared > 0) ready(block->dynamic, m.launch.shared, block->serial);
  if (block->fibers.size() < m.launch.threads) block->fibers.resize(m.launch.threads);
  for (unsigned int i = 0; i < m.launch.threads; ++i) prepare(block->fibers[i], *block, i);
  return block;
}

UNWATCHED void finish(std::unique_ptr<Block> block) {
  Machine& m = machine();
#if defined(__SANITIZE_THREAD__)
  for (unsigned int i = 0; i < m.launch.threads; ++i) __tsan_destroy_fiber(block->fibers[i].shadow);
#endif
  m.idle.push_back(std::move(block));
}

UNWATCHED void run_blocks() {
  Machine& m = machine();
  std::vector<std::unique_ptr<Block>> active;
  size_t next = 0, wanted = m.order == 2 ? kRandomBlocks : 1, turn = 0;
  int idle_rounds = 0;
  while (m.error.empty()) {
    while (next < m.blocks.size() && active.size() < wanted) active.push_back(start(m.blocks[next++]));
    if (active.empty()) return;
    turn = m.order == 2 ? m.random() % active.size() : turn % active.size();
    const Progress progress = step(*active[turn]);
    if (progress == Progress::kDone) {
      finish(std::move(active[turn]));
      active.erase(active.begin() + turn);
    }
    if (progress != Progress::kNone) {
      idle_rounds = 0;
      continue;
    }
    // It waits for another block: one that has not begun, if there is room, or the next.
    if (active.size() < std::min(kResident, active.size() + m.blocks.size() - next)) {
      wanted = active.size() + 1;
    }
    ++turn;
    if (++idle_rounds > kPatience * static_cast<int>(active.size())) {
      const Fiber* waits = nullptr;
      for (const Fiber& fiber : active[0]->fibers) {
        if (fiber.state == State::kWaits) waits = &fiber;
      }
      fail("blocks that wait for ever" + (waits ? " at " + place(waits->file, waits->line) : ""));
    }
  }
  for (auto& block : active) finish(std::move(block));
}

}  // namespace

Index now_thread, now_block, block_size, grid_size;

UNWATCHED Index thread_index() { return {machine().current->thread, 0, 0}; }
UNWATCHED Index block_index() { return {machine().current->block->index, 0, 0}; }

UNWATCHED void barrier(const char* file, int line) {
  Machine& m = machine();
  Fiber& fiber = *m.current;
  if (fiber.thread == 0) m.barriers.emplace(file, line);
  if (!m.skipped.empty() && m.skipped == place(file, line)) return;
#if defined(__SANITIZE_THREAD__)
  void* const token = &fiber.block->tokens->barrier[fiber.barriers++ & 1];
  __tsan_release(token);
#endif
  fiber.state = State::kBarrier;
  ++m.arrivals;
  fiber.file = file;
  fiber.line = line;
  leave();
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(token);
#endif
}

UNWATCHED void wait(const char* file, int line) {
  Fiber& fiber = *machine().current;
  fiber.state = State::kWaits;
  fiber.file = file;
  fiber.line = line;
  leave();
}

UNWATCHED void fence() {
#if defined(__SANITIZE_THREAD__)  // what came before a fence is seen after another
  __tsan_acquire(&machine().fence);
  __tsan_release(&machine().fence);
#endif
}

UNWATCHED void trap(const char* file, int line) { fail("a trap at " + place(file, line)); }

UNWATCHED Exchange::Exchange(unsigned int mask, uint64_t value, const char* file, int line)
    : mask_(mask) {
  Fiber& fiber = *machine().current;
  lane_ = static_cast<int>(fiber.thread % 32);
  if (!(mask >> lane_ & 1)) fail("a warp operation by a lane outside of its mask, " + place(file, line));
  turn_ = fiber.exchanges++ & 1;
  fiber.brought[turn_] = value;
  fiber.mask = mask;
  fiber.file = file;
  fiber.line = line;
  fiber.state = State::kWarp;
  ++machine().arrivals;
#if defined(__SANITIZE_THREAD__)
  void* const token = &fiber.block->tokens->warps[fiber.thread / 32][turn_];
  __tsan_release(token);
#endif
  leave();
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(token);
#endif
}

UNWATCHED uint64_t Exchange::of(int lane) const {
  const Fiber& fiber = *machine().current;
  if (!(mask_ >> lane & 1)) {
    fail("a value of a lane outside of the mask, " + place(fiber.file, fiber.line));
    return 0;
  }
  return fiber.block->fibers[fiber.thread / 32 * 32 + lane].brought[turn_];
}

UNWATCHED void* shared_memory(Shared& variable, size_t size) {
  Machine& m = machine();
  if (variable.number < 0) variable.number = m.variables++;
  Block& block = *m.current->block;
  const auto number = static_cast<size_t>(variable.number);
  if (block.shared.size() <= number) block.shared.resize(number + 1);
  return ready(block.shared[number], size, block.serial);
}

UNWATCHED unsigned char* dynamic_shared() {
  return static_cast<unsigned char*>(machine().current->block->dynamic.data);
}

UNWATCHED void run(const Launch& launch) {
  Machine& m = machine();
  const std::lock_guard<std::mutex> lock(m.mutex);
  m.launch = launch;
  ++m.launches;
  if (launch.blocks == 0 || launch.blocks > 2147483647u || launch.threads == 0 ||
      launch.threads > 1024) {
    return fail("invalid configuration, " + std::to_string(launch.blocks) + " blocks of " +
                std::to_string(launch.threads));
  }
  if (launch.shared > kMostShared) return fail("too much dynamic shared memory");
  if (launch.arguments > kMostArguments) return fail("too many bytes of arguments");
  block_size = {launch.threads, 1, 1};
  grid_size = {launch.blocks, 1, 1};
#if defined(__SANITIZE_THREAD__)
  m.main_shadow = __tsan_get_current_fiber();
  arena_used = 0;
#endif
  m.threads.clear();
  m.blocks.clear();
  put_in_order(m.blocks, launch.blocks);
  run_blocks();
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(&m.end);
#endif
}

const char* error() {
  Machine& m = machine();
  m.told.swap(m.error);
  m.error.clear();
  return m.told.empty() ? nullptr : m.told.c_str();
}

}  // namespace emulation

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void emulation_order(const char* order) {
  emulation::choose_order(emulation::machine(), order);
}

EXPORT void emulation_skip(const char* barrier) { emulation::machine().skipped = barrier; }

EXPORT uint64_t emulation_launches() { return emulation::machine().launches; }

// The barriers that threads have come to, a line each.
EXPORT const char* emulation_barriers() {
  static std::string text;
  text.clear();
  for (const auto& [file, line] : emulation::machine().barriers) {
    text += std::string(file) + ":" + std::to_string(line) + "\n";
  }
  return text.c_str();
}
