// What the kernels for processors share: vectors of floats, a product in registers, and threads.
//
// Products keep each result in a register of its own and add its terms one after the other. So a
// result depends neither on the number of rows, nor on which others are computed beside it.

#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "xla.h"

#if defined(ITEMWISE_PLAIN)
// C++ for any processor, slow: what the others are compared with.
#elif defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#else
#error "no vectors with fused multiply-add"
#endif

namespace itemwise {

#if defined(__AVX512F__) && !defined(ITEMWISE_PLAIN)
constexpr int WIDTH = 16;
#elif defined(__AVX2__) && defined(__FMA__) && !defined(ITEMWISE_PLAIN)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t Bits __attribute__((vector_size(4 * WIDTH)));

inline Floats load(const float* from) {
  Floats x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
// Narrower numbers are widened, which is exact.
inline Floats load(const uint16_t* from) {  // the bits of bfloat16
  uint16_t __attribute__((vector_size(2 * WIDTH))) x;
  std::memcpy(&x, from, sizeof x);
  return (Floats)(__builtin_convertvector(x, Bits) << 16);
}
inline Floats load(const int8_t* from) {
  typedef int16_t Shorts __attribute__((vector_size(2 * WIDTH)));
  int8_t __attribute__((vector_size(WIDTH))) x;
  std::memcpy(&x, from, sizeof x);
  // Step by step: GCC takes apart what it cannot widen in one.
  return __builtin_convertvector(__builtin_convertvector(__builtin_convertvector(x, Shorts), Ints),
                                 Floats);
}
inline void store(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }
inline Floats all(float x) { return x - Floats{}; }

// a * b + c, rounded once. Named, so that no compiler decides place by place.
inline Floats fma(Floats a, Floats b, Floats c) {
#if defined(ITEMWISE_PLAIN)
  for (int i = 0; i < WIDTH; ++i) c[i] = std::fma(a[i], b[i], c[i]);
  return c;
#elif defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
  return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#endif
}

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

constexpr int PANEL = 2 * WIDTH;  // columns of a product side by side
constexpr int TILE = 6;           // rows of a product held in registers, at most

// Memory for vectors, at addresses that none of them straddles a line of the cache.
struct alignas(64) Line {
  float at[16];
};
class Lines {
 public:
  // As many floats, all zero; what was there before is gone.
  float* zeros(int64_t floats) {
    lines_.assign((floats + 15) / 16, Line{});
    return lines_.data()->at;
  }
  // As many floats, of any value; what was there before may be gone.
  float* some(int64_t floats) {
    const size_t lines = (floats + 15) / 16;
    if (lines_.size() < lines) lines_.resize(lines);
    return lines_.data()->at;
  }

 private:
  std::vector<Line> lines_;
};

// Rows of a product in memory: `next_row` and `next_k` say how far apart their elements lie.
struct Rows {
  const float* at;
  int64_t next_row, next_k;

  Rows tile(int64_t first, int64_t /*size*/) const {
    return {at + first * next_row, next_row, next_k};
  }
};

// Splits rows into tiles of much the same size: a tile of one or two has too few sums to hide how
// long a sum takes.
template <typename Run>
inline void for_tiles(int64_t num_rows, Run run) {
  int64_t first = 0;
  for (int64_t tiles = (num_rows + TILE - 1) / TILE; tiles > 0; --tiles) {
    const int64_t size = (num_rows - first + tiles - 1) / tiles;
    run(first, size);
    first += size;
  }
}

// `run` with the size of a tile as a constant.
template <typename Run>
inline void with_size(int64_t size, Run run) {
  static_assert(TILE == 6);  // as the pragmas below
  switch (size) {
    case 6: return run(std::integral_constant<int, 6>());
    case 5: return run(std::integral_constant<int, 5>());
    case 4: return run(std::integral_constant<int, 4>());
    case 3: return run(std::integral_constant<int, 3>());
    case 2: return run(std::integral_constant<int, 2>());
    case 1: return run(std::integral_constant<int, 1>());
  }
}

// N rows: rows[i][k] * columns[k][PANEL], summed over k in order. `finish(i, half, sum)` takes
// the results.
template <int N, typename Column, typename Finish>
inline void product(const Rows& rows, const Column* columns, int64_t count, Finish finish) {
  Floats sums[N][2];
  // Unrolled, or sums go through memory.
#pragma GCC unroll 6
  for (int i = 0; i < N; ++i) sums[i][0] = sums[i][1] = Floats{};
  for (int64_t k = 0; k < count; ++k) {
    const Floats left = load(columns + k * PANEL), right = load(columns + k * PANEL + WIDTH);
#pragma GCC unroll 6
    for (int i = 0; i < N; ++i) {
      const Floats a = all(rows.at[i * rows.next_row + k * rows.next_k]);
      sums[i][0] = fma(a, left, sums[i][0]);
      sums[i][1] = fma(a, right, sums[i][1]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < N; ++i) {
    finish(i, 0, sums[i][0]);
    finish(i, 1, sums[i][1]);
  }
}

// As `product`, for any number of rows. `rows.tile(first, size)` says where those of a tile lie.
template <typename AllRows, typename Column, typename Finish>
inline void products(int64_t num_rows, const AllRows& rows, const Column* columns, int64_t count,
                     Finish finish) {
  for_tiles(num_rows, [&](int64_t first, int64_t size) {
    with_size(size, [&](auto n) {
      product<n>(rows.tile(first, size), columns, count,
                 [&](int i, int half, Floats sum) { finish(first + i, half, sum); });
    });
  });
}

// How long to look for the others' last unit before sleeping: as long as a sleeper takes to wake.
constexpr std::chrono::microseconds SPIN{50};

// Runs `count` units on the pool's threads and this one. A task that comes too late finds none left.
template <typename Pool, typename Run>
void run_units(Pool& pool, int64_t count, Run run) {
  struct Progress {
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable all_done;
  };
  auto progress = std::make_shared<Progress>();
  auto work = [progress, count, run] {
    for (int64_t i; (i = progress->next.fetch_add(1)) < count;) {
      run(i);
      if (progress->done.fetch_add(1, std::memory_order_acq_rel) + 1 < count) continue;
      const std::lock_guard<std::mutex> lock(progress->mutex);  // or a sleeper might miss it
      progress->all_done.notify_one();
    }
  };
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(decltype(work)(work));
  work();
  const auto is_done = [&] { return progress->done.load(std::memory_order_acquire) >= count; };
  const auto until = std::chrono::steady_clock::now() + SPIN;
  while (!is_done() && std::chrono::steady_clock::now() < until) std::this_thread::yield();
  if (is_done()) return;
  std::unique_lock<std::mutex> lock(progress->mutex);
  progress->all_done.wait(lock, is_done);
}

}  // namespace itemwise
