// What the sources of our Metal kernels need, on a CPU: a fiber for each thread of a threadgroup,
// threadgroup by threadgroup. A fiber runs until it must wait for others, so all orders in which
// threads could run between two barriers differ from this one only where a barrier is missing:
// there, with `backwards` or without, a thread sees what another one has not written yet.
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define device
#define thread
#define constant const

using std::min;
using uint = unsigned;
using half = _Float16;
using std::fma;

struct ulong2 {
  unsigned long x, y;
  ulong2(unsigned long x, unsigned long y) : x(x), y(y) {}
};

struct bfloat {
  uint16_t bits;
  bfloat() = default;
  explicit bfloat(float value) {  // to the nearest, ties to even
    uint32_t all;
    memcpy(&all, &value, 4);
    bits = (all + 0x7fff + (all >> 16 & 1)) >> 16;
  }
  explicit operator float() const {
    const uint32_t all = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &all, 4);
    return value;
  }
};

// Fibers

constexpr int WIDTH = 32;
constexpr size_t STACK = 1 << 18;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[STACK]};
  bool done;
  int sums;  // that it took part in
  void* fake_stack = nullptr;
};

static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static void* scheduler_fake_stack;
static const void* scheduler_stack;
static size_t scheduler_size;
static int current, group;
static bool backwards;
static void (*kernel_of_all)();

static void to_scheduler(bool last) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(
      last ? nullptr : &fibers[current].fake_stack, scheduler_stack, scheduler_size);
#endif
  swapcontext(&fibers[current].context, &scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fibers[current].fake_stack, nullptr, nullptr);
#endif
}

static void begin() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
#endif
  kernel_of_all();
  fibers[current].done = true;
  to_scheduler(true);
}

struct Barrier {
  int waiting = 0, turn = 0;
  void wait(int threads) {
    const int mine = turn;
    if (++waiting == threads) {
      waiting = 0;
      turn++;
    } else {
      while (turn == mine) to_scheduler(false);
    }
  }
};

static Barrier group_barrier;
static std::vector<Barrier> simd_barriers;
static std::vector<float> shown[2];  // by the threads of a SIMD-group to each other, in turn

struct Position {
  unsigned x;
};
#define threadgroup_position_in_grid (Position{(unsigned)group})
#define thread_index_in_threadgroup ((uint)current)
#define thread_index_in_simdgroup ((uint)(current % WIDTH))
#define simdgroup_index_in_threadgroup ((uint)(current / WIDTH))

enum class mem_flags { mem_threadgroup };
static void simdgroup_barrier(mem_flags) { simd_barriers[current / WIDTH].wait(WIDTH); }
static void threadgroup_barrier(mem_flags) { group_barrier.wait(fibers.size()); }

static float simd_sum(float value) {
  auto& all_shown = shown[fibers[current].sums++ % 2];
  all_shown[current] = value;
  simdgroup_barrier(mem_flags::mem_threadgroup);
  float all[WIDTH];
  std::copy_n(&all_shown[current / WIDTH * WIDTH], WIDTH, all);
  for (int step = WIDTH / 2; step; step /= 2)
    for (int i = 0; i < step; i++) all[i] += all[i + step];
  return all[0];
}

// Threadgroup memory: of the exact size, and full of NaN when a threadgroup begins.
static std::map<int, std::unique_ptr<float[]>> memory;
static float* threadgroup_memory(int which, size_t values) {
  auto& found = memory[which];
  if (!found) {
    found.reset(new float[values]);
    std::fill_n(found.get(), values, std::numeric_limits<float>::quiet_NaN());
  }
  return found.get();
}

// The first thread of a SIMD-group holds the whole matrix.
struct simdgroup_float8x8 {
  float at[8][8];
};

template <typename T, int C, int R>
static simdgroup_float8x8 make_filled_simdgroup_matrix(T value) {
  simdgroup_float8x8 made;
  std::fill_n(&made.at[0][0], 64, value);
  return made;
}

static void simdgroup_load(
    simdgroup_float8x8& to, const float* from, unsigned long in_row, ulong2 = ulong2(0, 0),
    bool transpose = false) {
  if (current % WIDTH) return;
  for (int i = 0; i < 8; i++)
    for (int j = 0; j < 8; j++) (transpose ? to.at[j][i] : to.at[i][j]) = from[i * in_row + j];
}

static void simdgroup_store(const simdgroup_float8x8& from, float* to, unsigned long in_row) {
  if (current % WIDTH) return;
  for (int i = 0; i < 8; i++) std::copy_n(from.at[i], 8, to + i * in_row);
}

static void simdgroup_multiply_accumulate(
    simdgroup_float8x8& to, const simdgroup_float8x8& a, const simdgroup_float8x8& b,
    const simdgroup_float8x8& c) {
  if (current % WIDTH) return;
  simdgroup_float8x8 made = c;
  for (int i = 0; i < 8; i++)
    for (int k = 0; k < 8; k++)
      for (int j = 0; j < 8; j++) made.at[i][j] = std::fma(a.at[i][k], b.at[k][j], made.at[i][j]);
  to = made;
}

static void launch(int threads, int threads_of_group, void (*kernel)()) {
  if (threads % threads_of_group || threads_of_group % WIDTH) abort();
  kernel_of_all = kernel;
  for (group = 0; group < threads / threads_of_group; group++) {
    if (fibers.empty()) fibers = std::vector<Fiber>(threads_of_group);
    simd_barriers.assign(threads_of_group / WIDTH, {});
    group_barrier = {};
    for (auto& values : shown) values.assign(threads_of_group, 0);
    memory.clear();
    for (auto& fiber : fibers) {
      fiber.done = false, fiber.sums = 0, fiber.fake_stack = nullptr;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = STACK;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, begin, 0);
    }
    // All wait at most as often as the kernel's loops turn: a barrier that some never reach shows.
    int left = threads_of_group;
    for (int turn = 0; left; turn++) {
      if (turn > 1 << 20) abort();
      for (int i = 0; i < threads_of_group; i++) {
        current = backwards ? threads_of_group - 1 - i : i;
        if (fibers[current].done) continue;
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_start_switch_fiber(
            &scheduler_fake_stack, fibers[current].stack.get(), STACK);
#endif
        swapcontext(&scheduler, &fibers[current].context);
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
        left -= fibers[current].done;
      }
    }
  }
}

static void* taken(size_t bytes) {  // from standard input, at the end of a block of its size
  void* to = malloc(bytes);
  if (fread(to, 1, bytes, stdin) != bytes) abort();
  return to;
}
