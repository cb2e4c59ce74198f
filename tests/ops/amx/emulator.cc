// AMX for processors without it: executes its instructions when they trap as illegal (SIGILL), and
// grants the request for tiles. Preloaded into a process on Linux on x86-64 with AVX2 and FMA:
//
//     c++ -std=c++17 -O2 -mavx2 -mfma -shared -fPIC emulator.cc -o emulator.so -ldl
//     LD_PRELOAD=./emulator.so python ...
//
// Written from Intel's manual (volume 2, TDPBF16PS and the other instructions), not from the
// kernels. What a processor would refuse ends the process with a line on stderr.

#include <dlfcn.h>
#include <immintrin.h>
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdint>
#include <cstring>

namespace {

struct Tile {
  int rows, row_bytes;
  alignas(64) uint8_t at[16][64];
};
thread_local Tile tiles[8];
thread_local bool configured;

[[noreturn]] void refuse(const char* why) {
  const char* const parts[] = {"AMX emulator: ", why, "\n"};
  for (const char* part : parts)
    if (write(STDERR_FILENO, part, std::strlen(part)) < 0) break;
  _exit(70);
}

void configure(const uint8_t* from) {
  if (from[0] != 1 || from[1] != 0) refuse("a palette that is not 1, or a start row");
  for (int i = 0; i < 8; ++i) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, from + 16 + 2 * i, sizeof row_bytes);
    tiles[i] = Tile{from[48 + i], row_bytes, {}};
    if (tiles[i].rows > 16 || row_bytes > 64) refuse("a tile that is too large");
  }
  configured = true;
}

Tile& tile(int number) {
  if (!configured || number > 7 || tiles[number].rows == 0) refuse("a tile that is not configured");
  return tiles[number];
}

void load(Tile& to, const uint8_t* from, int64_t stride) {
  std::memset(to.at, 0, sizeof to.at);
  for (int row = 0; row < to.rows; ++row)
    std::memcpy(to.at[row], from + row * stride, to.row_bytes);
}

void store(const Tile& from, uint8_t* to, int64_t stride) {
  for (int row = 0; row < from.rows; ++row)
    std::memcpy(to + row * stride, from.at[row], from.row_bytes);
}

// Numbers of pairs, widened.
__m256 lower(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
__m256 upper(__m256i pairs) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_srli_epi32(pairs, 16), 16));
}

// sum += rows * columns. Tiny numbers count as zero.
void multiply(Tile& sum, const Tile& rows, const Tile& columns) {
  if (sum.rows != rows.rows || sum.row_bytes != columns.row_bytes ||
      rows.row_bytes / 4 != columns.rows || &sum == &rows || &sum == &columns || &rows == &columns)
    refuse("tiles that do not fit together");
  constexpr unsigned MASKED = 0x1f80, DAZ = 0x40, FTZ = 0x8000;  // rounding to nearest even
  const unsigned before = _mm_getcsr();
  _mm_setcsr(MASKED | DAZ | FTZ);
  for (int m = 0; m < sum.rows; ++m)
    for (int at = 0; at < sum.row_bytes; at += 32) {  // columns past the last are zero
      __m256 even = _mm256_setzero_ps(), odd = _mm256_setzero_ps();
      for (int k = 0; k < columns.rows; ++k) {
        uint32_t pair;
        std::memcpy(&pair, rows.at[m] + 4 * k, sizeof pair);
        const __m256i left = _mm256_set1_epi32(static_cast<int>(pair));
        const __m256i right =
            _mm256_load_si256(reinterpret_cast<const __m256i*>(columns.at[k] + at));
        even = _mm256_fmadd_ps(lower(left), lower(right), even);
        odd = _mm256_fmadd_ps(upper(left), upper(right), odd);
      }
      float* const to = reinterpret_cast<float*>(sum.at[m] + at);
      _mm256_store_ps(to, _mm256_add_ps(_mm256_load_ps(to), _mm256_add_ps(even, odd)));
    }
  _mm_setcsr(before);
}

int64_t value(const greg_t* registers, int number) {
  static const int ORDER[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                              REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                              REG_R12, REG_R13, REG_R14, REG_R15};
  return registers[ORDER[number]];
}

// The memory that an instruction names, and the index that is a stride. Moves `at` behind it.
uint8_t* address(const greg_t* registers, const uint8_t*& at, int vex, int64_t& stride) {
  const int mod = *at >> 6, rm = *at & 7;
  ++at;
  int64_t sum = 0;
  int base = rm | (vex & 0x20 ? 0 : 8);
  if (rm == 4) {
    const int index = (*at >> 3 & 7) | (vex & 0x40 ? 0 : 8);
    base = (*at & 7) | (vex & 0x20 ? 0 : 8);
    stride = index == 4 ? 0 : value(registers, index) << (*at >> 6);
    ++at;
  }
  const bool is_wide = mod == 2 || (mod == 0 && (base & 7) == 5);
  if (is_wide) {
    int32_t wide;
    std::memcpy(&wide, at, sizeof wide);
    at += 4, sum = wide;
  } else if (mod == 1) {
    sum = static_cast<int8_t>(*at++);
  }
  if (mod != 0 || (base & 7) != 5)
    sum += value(registers, base);
  else if (rm == 5)
    sum += reinterpret_cast<int64_t>(at);
  return reinterpret_cast<uint8_t*>(sum);
}

// Executes an instruction; false if it is none of AMX.
bool execute(greg_t* registers) {
  const uint8_t* at = reinterpret_cast<const uint8_t*>(registers[REG_RIP]);
  if (at[0] != 0xc4 || (at[1] & 0x1f) != 2 || (at[2] & 0x84) != 0) return false;
  const int vex = at[1], columns = ~at[2] >> 3 & 15, prefix = at[2] & 3, opcode = at[3];
  const int to = at[4] >> 3 & 7, rm = at[4] & 7;
  const bool in_memory = at[4] >> 6 != 3;
  int64_t stride = 0;
  at += 4;
  enum Prefix { NONE, P66, PF3, PF2 };
  if (opcode == 0x49 && prefix == NONE && in_memory) {  // ldtilecfg
    configure(address(registers, at, vex, stride));
  } else if (opcode == 0x49 && prefix == NONE && *at == 0xc0) {  // tilerelease
    configured = false;
    ++at;
  } else if (opcode == 0x49 && prefix == PF2 && !in_memory) {  // tilezero
    std::memset(tile(to).at, 0, sizeof(Tile::at));
    ++at;
  } else if (opcode == 0x4b && (prefix == PF2 || prefix == P66) && in_memory) {  // tileloadd, -t1
    uint8_t* const from = address(registers, at, vex, stride);
    load(tile(to), from, stride);
  } else if (opcode == 0x4b && prefix == PF3 && in_memory) {  // tilestored
    uint8_t* const place = address(registers, at, vex, stride);
    store(tile(to), place, stride);
  } else if (opcode == 0x5c && prefix == PF3 && !in_memory) {  // tdpbf16ps
    multiply(tile(to), tile(rm), tile(columns));
    ++at;
  } else {
    return false;
  }
  registers[REG_RIP] = reinterpret_cast<greg_t>(at);
  return true;
}

void on_illegal(int, siginfo_t*, void* context) {
  if (!execute(static_cast<ucontext_t*>(context)->uc_mcontext.gregs))
    refuse("an illegal instruction that is none of AMX");
}

typedef int (*SigAction)(int, const struct sigaction*, struct sigaction*);
SigAction real_sigaction() { return reinterpret_cast<SigAction>(dlsym(RTLD_NEXT, "sigaction")); }

__attribute__((constructor)) void start() {
  struct sigaction action = {};
  action.sa_sigaction = on_illegal;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  real_sigaction()(SIGILL, &action, nullptr);
}

}  // namespace

// Others, such as Python's faulthandler, leave the signal alone.
extern "C" int sigaction(int number, const struct sigaction* action, struct sigaction* before) {
  if (number != SIGILL) return real_sigaction()(number, action, before);
  if (before != nullptr) *before = {};
  return 0;
}

// Grants tiles; all other system calls go on.
extern "C" long syscall(long number, ...) {
  constexpr long ARCH_REQ_XCOMP_PERM = 0x1023;
  long a[6];
  va_list arguments;
  va_start(arguments, number);
  for (long& one : a) one = va_arg(arguments, long);
  va_end(arguments);
  if (number == SYS_arch_prctl && a[0] == ARCH_REQ_XCOMP_PERM) return 0;
  static long (*real)(long, ...);
  if (real == nullptr) real = reinterpret_cast<decltype(real)>(dlsym(RTLD_NEXT, "syscall"));
  return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
