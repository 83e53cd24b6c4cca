// What the sources of our CUDA kernels need, on a CPU: a thread of the host for each thread of a
// block, block by block. What a warp does together waits at a barrier of the warp. Copies to shared
// memory that a GPU makes in the background are made at once, so waits are not tested here.
#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __device__
#define __forceinline__ inline

using std::max;
using std::min;

struct Index {
  int x, y, z;
};
static thread_local Index threadIdx, blockIdx;
static Index gridDim, blockDim;

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct float2 {
  float x, y;
};

static float as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float value) {  // to the nearest, ties to even
    uint32_t all;
    memcpy(&all, &value, 4);
    bits = (all + 0x7fff + (all >> 16 & 1)) >> 16;
  }
  operator float() const { return as_float((uint32_t)bits << 16); }
};
struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
static float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x, v.y}; }
static float __int_as_float(uint32_t bits) { return as_float(bits); }
static float __uint_as_float(uint32_t bits) { return as_float(bits); }
static float rsqrtf(float x) { return 1 / sqrtf(x); }
static float __fmul_rn(float a, float b) { return a * b; }

// One block at a time.
constexpr int WARP = 32, MOST_WARPS = 32;
static std::vector<uint4> shared_memory(16384);  // 256 KB
static std::unique_ptr<std::barrier<>> block_barrier, warp_barriers[MOST_WARPS];
static thread_local int thread_number;

struct Exchange {  // what the threads of a warp show each other
  float value[WARP];
  unsigned a[WARP][4], b[WARP][2];
  const void* row[WARP];
};
static Exchange exchanges[MOST_WARPS];

static Exchange& exchange() { return exchanges[thread_number / WARP]; }
static void meet() { warp_barriers[thread_number / WARP]->arrive_and_wait(); }
static void __syncthreads() { block_barrier->arrive_and_wait(); }

static float __shfl_sync(unsigned, float value, int lane) {
  exchange().value[thread_number % WARP] = value;
  meet();
  const float other = exchange().value[lane];
  meet();
  return other;
}

static float __shfl_xor_sync(unsigned warp, float value, int mask) {
  return __shfl_sync(warp, value, thread_number % WARP ^ mask);
}

static bool __any_sync(unsigned, bool value) {
  exchange().value[thread_number % WARP] = value;
  meet();
  const bool any = std::any_of(exchange().value, exchange().value + WARP, [](float v) { return v; });
  meet();
  return any;
}

static float power_of_two(float x) { return exp2f(x); }

static float half_of(unsigned pair, int i) { return as_float((pair >> 16 * i & 0xffff) << 16); }

// mma.m16n8k16, row by column, as the PTX manual shares it out among threads.
static void multiply_add(
    float* sum, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  Exchange& all = exchange();
  const int lane = thread_number % WARP;
  const unsigned a[] = {a0, a1, a2, a3};
  std::copy(a, a + 4, all.a[lane]);
  all.b[lane][0] = b0, all.b[lane][1] = b1;
  meet();
  for (int i = 0; i < 4; i++) {
    const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
    for (int k = 0; k < 16; k++) {
      const int giver = k % 8 / 2;
      const unsigned left = all.a[row % 8 * 4 + giver][row / 8 + 2 * (k / 8)];
      const unsigned right = all.b[column * 4 + giver][k / 8];
      sum[i] += half_of(left, k % 2) * half_of(right, k % 2);
    }
  }
  meet();
}

// ldmatrix.x4
static void read_four(unsigned* to, const void* from, bool transposed) {
  Exchange& all = exchange();
  const int lane = thread_number % WARP;
  all.row[lane] = from;
  meet();
  for (int matrix = 0; matrix < 4; matrix++) {
    to[matrix] = 0;
    for (int i = 0; i < 2; i++) {
      int row = lane / 4, column = 2 * (lane % 4) + i;
      if (transposed) std::swap(row, column);
      const auto values = static_cast<const uint16_t*>(all.row[8 * matrix + row]);
      to[matrix] |= (unsigned)values[column] << 16 * i;
    }
  }
  meet();
}
static void read_matrices(unsigned* to, const void* from) { read_four(to, from, false); }
static void read_transposed(unsigned* to, const void* from) { read_four(to, from, true); }
static void read_ahead(void* to, const void* from) { memcpy(to, from, 16); }

static unsigned pair(float low, float high) {
  return __nv_bfloat16(low).bits | (unsigned)__nv_bfloat16(high).bits << 16;
}

template <typename Kernel>
static void launch(const int* grid, const int* block, Kernel kernel) {
  const int threads = block[0] * block[1] * block[2];
  blockDim = {block[0], block[1], block[2]};
  gridDim = {(grid[0] + block[0] - 1) / block[0], (grid[1] + block[1] - 1) / block[1],
             (grid[2] + block[2] - 1) / block[2]};
  for (int number = 0; number < gridDim.x * gridDim.y * gridDim.z; number++) {
    block_barrier = std::make_unique<std::barrier<>>(threads);
    for (int warp = 0; warp * WARP < threads; warp++)
      warp_barriers[warp] = std::make_unique<std::barrier<>>(min(WARP, threads - warp * WARP));
    std::vector<std::thread> running;
    for (int i = 0; i < threads; i++)
      running.emplace_back([=] {
        thread_number = i;
        threadIdx = {i % block[0], i / block[0] % block[1], i / block[0] / block[1]};
        blockIdx = {number % gridDim.x, number / gridDim.x % gridDim.y,
                    number / gridDim.x / gridDim.y};
        kernel();
        block_barrier->arrive_and_drop();  // some return early
      });
    for (auto& thread : running) thread.join();
  }
}
