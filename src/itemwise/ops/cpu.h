// What the kernels for processors share: vectors of floats, a product in registers, and threads.
//
// Products keep each result in a register of its own and add its terms one after the other. So a
// result depends neither on the number of rows, nor on which others are computed beside it.

#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#else
#error "no vectors with fused multiply-add"
#endif

namespace itemwise {

namespace ffi = xla::ffi;

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));

inline Floats load(const float* from) {
  Floats x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
inline void store(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }
inline Floats all(float x) { return x - Floats{}; }

// a * b + c, rounded once. Named, so that no compiler decides place by place.
inline Floats fma(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
  return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#endif
}

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

constexpr int PANEL = 2 * WIDTH;  // columns of a product side by side
constexpr int TILE = 6;           // rows of a product held in registers

// N rows of `out`: rows[i][k] * columns[k][PANEL], summed over k in order. `next_row` and `next_k`
// say how far apart the elements of `rows` lie, `next_out` the rows of `out`. With `add`, the sums
// are added to what `out` holds.
template <int N>
inline void product(const float* rows, int64_t next_row, int64_t next_k, const float* columns,
                    int64_t count, float* out, int64_t next_out, bool add) {
  Floats sums[N][2] = {};
  for (int64_t k = 0; k < count; ++k) {
    const Floats left = load(columns + k * PANEL), right = load(columns + k * PANEL + WIDTH);
    for (int i = 0; i < N; ++i) {
      const Floats a = all(rows[i * next_row + k * next_k]);
      sums[i][0] = fma(a, left, sums[i][0]);
      sums[i][1] = fma(a, right, sums[i][1]);
    }
  }
  for (int i = 0; i < N; ++i) {
    for (int half = 0; half < 2; ++half) {
      float* to = out + i * next_out + half * WIDTH;
      store(to, add ? load(to) + sums[i][half] : sums[i][half]);
    }
  }
}

// As `product`, for any number of rows.
inline void products(int64_t num_rows, const float* rows, int64_t next_row, int64_t next_k,
                     const float* columns, int64_t count, float* out, int64_t next_out, bool add) {
  for (; num_rows >= TILE; num_rows -= TILE) {
    product<TILE>(rows, next_row, next_k, columns, count, out, next_out, add);
    rows += TILE * next_row, out += TILE * next_out;
  }
  switch (num_rows) {
    case 5: return product<5>(rows, next_row, next_k, columns, count, out, next_out, add);
    case 4: return product<4>(rows, next_row, next_k, columns, count, out, next_out, add);
    case 3: return product<3>(rows, next_row, next_k, columns, count, out, next_out, add);
    case 2: return product<2>(rows, next_row, next_k, columns, count, out, next_out, add);
    case 1: return product<1>(rows, next_row, next_k, columns, count, out, next_out, add);
  }
}

// Runs `count` units on the pool's threads and this one. A task that comes too late finds none left.
template <typename Run>
void run_units(ffi::ThreadPool& pool, int64_t count, Run run) {
  struct Progress {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto progress = std::make_shared<Progress>();
  auto work = [progress, count, run] {
    for (int64_t i; (i = progress->next.fetch_add(1)) < count;) {
      run(i);
      progress->done.fetch_add(1, std::memory_order_release);
    }
  };
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(decltype(work)(work));
  work();
  while (progress->done.load(std::memory_order_acquire) < count) std::this_thread::yield();
}

}  // namespace itemwise
