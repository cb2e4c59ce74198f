// Products of bfloat16 numbers: one arithmetic on all processors.
//
// Inputs come in chunks of 32; the last one is filled with zeros. A result takes in chunk by chunk:
//
//     c = c + (even + odd)
//
// where `even` and `odd` are chains of fused multiply-adds from zero over the chunk's inputs at
// even and odd places. All is float32, rounded to nearest even. A number below the smallest normal
// one counts as zero of the same sign: what enters, and a result after it was rounded to 24 bits as
// if exponents had no end. That is what `tdpbf16ps` does (measured on a Xeon), and `vfmadd` under
// DAZ and FTZ. Nothing else enters a result, so blocks of rows, columns and chunks are free.
//
// One side of a product lies in panels of 32 columns, [chunks, 2, 16 pairs, 16 columns, 2]: a pair
// is an even and an odd input, and the columns are two tiles of 16. It is the same on all
// processors. The other side, `Left`, lies as the processor's `multiply` reads it.

#pragma once

#include "cpu.h"

#if defined(ITEMWISE_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace itemwise::bfloat16 {

constexpr int64_t CHUNK = 32;    // inputs of a chunk
constexpr int64_t COLUMNS = 32;  // columns of a panel
constexpr int64_t TILE_COLUMNS = 16;
constexpr int64_t TILE_SIZE = CHUNK * TILE_COLUMNS;    // numbers of a tile
constexpr int64_t PANEL_CHUNK = CHUNK * COLUMNS;       // numbers of a chunk of a panel
constexpr int64_t BLOCK_ROWS = 32;                     // rows that meet a panel one after the other
constexpr uint32_t UPPER = 0xffff0000;                 // of a float's bits: those of a bfloat16

inline int64_t chunks_of(int64_t inputs) { return (inputs + CHUNK - 1) / CHUNK; }
inline int64_t whole_blocks(int64_t rows) {
  return (rows + BLOCK_ROWS - 1) / BLOCK_ROWS * BLOCK_ROWS;
}

inline float widened(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float x;
  std::memcpy(&x, &wide, sizeof x);
  return x;
}
inline float widened(float x) { return x; }

// The nearest bfloat16, as a float; a NaN stays one.
inline Floats rounded(Floats x) {
  const Bits bits = (Bits)x;
  const Bits nearest = (bits + 0x7fff + (bits >> 16 & 1)) & UPPER;
  return x == x ? (Floats)nearest : (Floats)((bits | 0x400000) & UPPER);
}

// The bits of bfloat16 numbers that floats hold.
inline void narrow(uint16_t* to, Floats x) {
  typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH)));
  const Halves halves = __builtin_convertvector((Bits)x >> 16, Halves);
  std::memcpy(to, &halves, sizeof halves);
}

#if defined(__SSE2__) || defined(__x86_64__)
// Whether this thread takes numbers below the smallest normal one for zero; as before at the end.
class Flush {
 public:
  explicit Flush(bool flush) : before_(__builtin_ia32_stmxcsr()) {
    constexpr unsigned DAZ = 1u << 6, FTZ = 1u << 15;
    __builtin_ia32_ldmxcsr(flush ? before_ | DAZ | FTZ : before_ & ~(DAZ | FTZ));
  }
  ~Flush() { __builtin_ia32_ldmxcsr(before_); }
  Flush(const Flush&) = delete;
  Flush& operator=(const Flush&) = delete;

 private:
  unsigned before_;
};
#else
class Flush {
 public:
  explicit Flush(bool) {}
};
#endif

inline float flushed(float x) {
  return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x;
}

// a * b + c. `std::fma` rounds what is below the smallest normal number to multiples of 2^-149;
// what counts is whether it were below when rounded to 24 bits, which a larger scale shows.
inline float chain(float a, float b, float c) {
  constexpr float SMALLEST = std::numeric_limits<float>::min(), LARGER = 0x1p64f;
  a = flushed(a), b = flushed(b), c = flushed(c);
  const float sum = std::fma(a, b, c);
  if (!(std::fabs(sum) <= SMALLEST) || sum == 0) return sum;
  const float scaled = std::fma(a * LARGER, b, c * LARGER);
  return std::fabs(scaled) < SMALLEST * LARGER ? std::copysign(0.0f, sum) : sum;
}

// A column's result after it took in a chunk of a row: the meaning of all that follows.
template <typename Number>
inline float with_chunk(float sum, const Number* row, const uint16_t* panel, int64_t column) {
  const uint16_t* pairs =
      panel + column / TILE_COLUMNS * TILE_SIZE + column % TILE_COLUMNS * 2;
  float even = 0.0f, odd = 0.0f;
  for (int64_t k = 0; k < CHUNK; k += 2, pairs += 2 * TILE_COLUMNS) {
    even = chain(widened(row[k]), widened(pairs[0]), even);
    odd = chain(widened(row[k + 1]), widened(pairs[1]), odd);
  }
  return flushed(flushed(sum) + flushed(even + odd));
}

#if defined(ITEMWISE_AMX)

// The left side: tiles [rows / 16, chunks, 16 rows, 32 inputs].
typedef uint16_t Left;
constexpr int64_t TILE_ROWS = 16;

inline int64_t left_place(int64_t row, int64_t chunk, int64_t chunks) {
  return ((row / TILE_ROWS * chunks + chunk) * TILE_ROWS + row % TILE_ROWS) * CHUNK;
}
inline void put_left(Left* to, Floats x) { narrow(to, x); }
inline void put_chunk(Left* to, const uint16_t* from) {
  std::memcpy(to, from, CHUNK * sizeof *to);
}

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// What a thread needs for products, while it lives: tiles, and the treatment of tiny numbers.
class Arithmetic {
 public:
  Arithmetic() {
    const TileConfig config;
    asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
  }
  ~Arithmetic() { asm volatile("tilerelease" ::: "memory"); }
  Arithmetic(const Arithmetic&) = delete;
  Arithmetic& operator=(const Arithmetic&) = delete;

 private:
  Flush flush_{true};
};

// Asks the operating system for what products need, on behalf of all threads: Linux for tiles.
inline bool is_granted() {
  constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

// Own instructions: GCC 12 moves stores over its `_tile_loadd`. Tiles 0 to 3 hold results, 4 and 5
// rows, 6 and 7 columns.
#define ITEMWISE_TILE_ZERO(tile) asm volatile("tilezero %%tmm" #tile ::)
#define ITEMWISE_TILE_LOAD(tile, from, stride) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"(stride) : "memory")
// For what passes by once: it stays out of the first cache.
#define ITEMWISE_TILE_STREAM(tile, from, stride) \
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm" #tile ::"r"(from), "r"(stride) : "memory")
#define ITEMWISE_TILE_STORE(tile, to, stride) \
  asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"(stride) : "memory")
#define ITEMWISE_TILE_PRODUCT(sum, rows, columns) \
  asm volatile("tdpbf16ps %%tmm" #columns ", %%tmm" #rows ", %%tmm" #sum ::)

constexpr int64_t AHEAD = 4096;  // bytes of a panel that are asked for before few rows meet them

// 16 or 32 rows by 32 columns.
template <bool TWO>
inline void multiply_tiles(const Left* rows, int64_t next_tile, const uint16_t* panel,
                           int64_t chunks, float* sums, int64_t stride, bool add) {
  const int64_t line = CHUNK * sizeof(uint16_t), row = stride * sizeof(float);
  float* const below = sums + TILE_ROWS * stride;
  if (add) {
    ITEMWISE_TILE_LOAD(0, sums, row);
    ITEMWISE_TILE_LOAD(1, sums + TILE_COLUMNS, row);
    if (TWO) ITEMWISE_TILE_LOAD(2, below, row);
    if (TWO) ITEMWISE_TILE_LOAD(3, below + TILE_COLUMNS, row);
  } else {
    ITEMWISE_TILE_ZERO(0);
    ITEMWISE_TILE_ZERO(1);
    if (TWO) ITEMWISE_TILE_ZERO(2);
    if (TWO) ITEMWISE_TILE_ZERO(3);
  }
  for (int64_t i = 0; i < chunks; ++i, rows += TILE_SIZE, panel += PANEL_CHUNK) {
    if (!TWO)
      for (int64_t at = 0; at < PANEL_CHUNK * 2; at += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(panel) + AHEAD + at);
    ITEMWISE_TILE_STREAM(4, rows, line);
    ITEMWISE_TILE_LOAD(6, panel, line);
    ITEMWISE_TILE_PRODUCT(0, 4, 6);
    ITEMWISE_TILE_LOAD(7, panel + TILE_SIZE, line);
    ITEMWISE_TILE_PRODUCT(1, 4, 7);
    if (TWO) ITEMWISE_TILE_STREAM(5, rows + next_tile, line);
    if (TWO) ITEMWISE_TILE_PRODUCT(2, 5, 6);
    if (TWO) ITEMWISE_TILE_PRODUCT(3, 5, 7);
  }
  ITEMWISE_TILE_STORE(0, sums, row);
  ITEMWISE_TILE_STORE(1, sums + TILE_COLUMNS, row);
  if (TWO) ITEMWISE_TILE_STORE(2, below, row);
  if (TWO) ITEMWISE_TILE_STORE(3, below + TILE_COLUMNS, row);
}

inline void multiply(int64_t num_rows, const Left* rows, int64_t row_chunks, const uint16_t* panel,
                     int64_t chunks, float* sums, int64_t stride, bool add) {
  const int64_t next_tile = row_chunks * TILE_SIZE;
  int64_t row = 0;
  for (; row + TILE_ROWS < num_rows; row += 2 * TILE_ROWS)
    multiply_tiles<true>(rows + row * row_chunks * CHUNK, next_tile, panel, chunks,
                         sums + row * stride, stride, add);
  if (row < num_rows)
    multiply_tiles<false>(rows + row * row_chunks * CHUNK, next_tile, panel, chunks,
                          sums + row * stride, stride, add);
}

#else

// The left side: rows, widened.
typedef float Left;
constexpr int64_t TILE_ROWS = 1;

inline int64_t left_place(int64_t row, int64_t chunk, int64_t chunks) {
  return (row * chunks + chunk) * CHUNK;
}
inline void put_left(Left* to, Floats x) { store(to, x); }
inline void put_chunk(Left* to, const uint16_t* from) {
  for (int64_t k = 0; k < CHUNK; k += WIDTH) store(to + k, load(from + k));
}

// What a thread needs for products, while it lives: the treatment of tiny numbers.
class Arithmetic {
 private:
  Flush flush_{true};
};

inline bool is_granted() { return true; }

#if defined(ITEMWISE_PLAIN)

inline void multiply(int64_t num_rows, const Left* rows, int64_t row_chunks, const uint16_t* panel,
                     int64_t chunks, float* sums, int64_t stride, bool add) {
  const Flush as_written{false};
  for (int64_t i = 0; i < num_rows; ++i)
    for (int64_t column = 0; column < COLUMNS; ++column) {
      float sum = add ? sums[i * stride + column] : 0.0f;
      for (int64_t chunk = 0; chunk < chunks; ++chunk)
        sum = with_chunk(sum, rows + left_place(i, chunk, row_chunks),
                         panel + chunk * PANEL_CHUNK, column);
      sums[i * stride + column] = sum;
    }
}

#else

constexpr int64_t NEXT_VECTOR = WIDTH == 16 ? TILE_SIZE : 2 * WIDTH;  // numbers between vectors
constexpr int64_t AT_A_TIME = 2 * WIDTH;                              // columns in registers

// The inputs at even or odd places of a chunk.
enum Parity { EVEN, ODD };
template <Parity PARITY>
inline Floats weights_of(const uint16_t* pairs) {
  Bits bits;
  std::memcpy(&bits, pairs, sizeof bits);
  if (PARITY == ODD) bits >>= 16;
  asm("" : "+v"(bits));  // or a mask takes the register that the sixth row needs
  return (Floats)(bits << 16);
}

// Adds a pair's products to the chains of one parity.
template <Parity PARITY, int N>
inline void add_pair(const Left* rows, int64_t next_row, const uint16_t* pairs,
                     Floats (&chains)[N][2]) {
  const Floats left = weights_of<PARITY>(pairs), right = weights_of<PARITY>(pairs + NEXT_VECTOR);
#pragma GCC unroll 6
  for (int i = 0; i < N; ++i) {
    const Floats a = all(rows[i * next_row + PARITY]);
    chains[i][0] = fma(a, left, chains[i][0]);
    chains[i][1] = fma(a, right, chains[i][1]);
  }
}

// Adds the chains of a chunk. There are registers for both parities of two rows side by side, or
// for one parity of six.
template <int N>
inline void add_chunk(const Left* rows, int64_t next_row, const uint16_t* columns,
                      Floats (&total)[N][2]) {
  Floats even[N][2] = {}, odd[N][2] = {};
  if (WIDTH == 16 || N <= 2) {
#pragma GCC unroll 16
    for (int64_t k = 0; k < CHUNK; k += 2) {
      add_pair<EVEN>(rows + k, next_row, columns + k * TILE_COLUMNS, even);
      add_pair<ODD>(rows + k, next_row, columns + k * TILE_COLUMNS, odd);
    }
#pragma GCC unroll 6
    for (int i = 0; i < N; ++i)
      for (int v = 0; v < 2; ++v) total[i][v] = total[i][v] + (even[i][v] + odd[i][v]);
    return;
  }
#pragma GCC unroll 4
  for (int64_t k = 0; k < CHUNK; k += 2)
    add_pair<EVEN>(rows + k, next_row, columns + k * TILE_COLUMNS, even);
  Floats first[N][2];
#pragma GCC unroll 6
  for (int i = 0; i < N; ++i)
    for (int v = 0; v < 2; ++v) first[i][v] = even[i][v];
  asm("" : "+m"(first));  // waits in memory, or the other chains do
#pragma GCC unroll 4
  for (int64_t k = 0; k < CHUNK; k += 2)
    add_pair<ODD>(rows + k, next_row, columns + k * TILE_COLUMNS, odd);
#pragma GCC unroll 6
  for (int i = 0; i < N; ++i)
    for (int v = 0; v < 2; ++v) total[i][v] = total[i][v] + (first[i][v] + odd[i][v]);
}

// N rows by two vectors of columns.
template <int N>
inline void multiply_rows(const Left* rows, int64_t next_row, const uint16_t* columns,
                          int64_t chunks, float* sums, int64_t stride, bool add) {
  Floats total[N][2];
  for (int i = 0; i < N; ++i)
    for (int v = 0; v < 2; ++v)
      total[i][v] = add ? load(sums + i * stride + v * WIDTH) : Floats{};
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    add_chunk<N>(rows + chunk * CHUNK, next_row, columns + chunk * PANEL_CHUNK, total);
  for (int i = 0; i < N; ++i)
    for (int v = 0; v < 2; ++v) store(sums + i * stride + v * WIDTH, total[i][v]);
}

inline void multiply(int64_t num_rows, const Left* rows, int64_t row_chunks, const uint16_t* panel,
                     int64_t chunks, float* sums, int64_t stride, bool add) {
  const int64_t next_row = row_chunks * CHUNK;
  for (int64_t first = 0; first < COLUMNS; first += AT_A_TIME) {
    const int64_t tile = first / TILE_COLUMNS;
    const uint16_t* columns = panel + tile * TILE_SIZE + first % TILE_COLUMNS * 2;
    for_tiles(num_rows, [&](int64_t row, int64_t size) {
      with_size(size, [&](auto n) {
        multiply_rows<n>(rows + row * next_row, next_row, columns, chunks,
                         sums + row * stride + first, stride, add);
      });
    });
  }
}

#endif
#endif

// Lays a row of bfloat16 numbers out as a row of the left side.
inline void put_row(Left* left, int64_t row, const uint16_t* from, int64_t inputs) {
  const int64_t chunks = chunks_of(inputs);
  for (int64_t chunk = 0; chunk < inputs / CHUNK; ++chunk)
    put_chunk(left + left_place(row, chunk, chunks), from + chunk * CHUNK);
  if (inputs % CHUNK == 0) return;
  uint16_t last[CHUNK] = {};
  std::memcpy(last, from + (chunks - 1) * CHUNK, inputs % CHUNK * sizeof *last);
  put_chunk(left + left_place(row, chunks - 1, chunks), last);
}

}  // namespace itemwise::bfloat16
