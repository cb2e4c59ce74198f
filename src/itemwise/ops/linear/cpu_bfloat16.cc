// Matrix products of bfloat16 rows with bfloat16 weights that stay as they are in memory, summed as
// ../bfloat16.h says. See cpu.py for what it computes and who calls it.
//
// All rows are laid out once as the left side of products. A unit of work is some panels of weights
// and some rows: a stretch of the inputs passes by all of them while it is in cache, then the next.

#include "../bfloat16.h"

namespace {

using namespace itemwise;
using namespace itemwise::bfloat16;

constexpr int64_t STRETCH = TILE_ROWS == 1 ? 8 : 16;  // chunks in cache at a time
constexpr int64_t UNIT_PANELS = 2;   // panels of a unit
constexpr int64_t UNIT_ROWS = 256;   // rows of a unit
constexpr bool IN_PLACE = TILE_ROWS == 1;  // tiles would write over the rows of other units

struct Product {
  const Left* rows;
  const uint16_t* weights;  // [panels, chunks, CHUNK, COLUMNS]
  float* y;                 // [rows, panels * COLUMNS]
  int64_t num_rows, chunks, panels;

  void run_unit(int64_t first_row, int64_t first_panel) const {
    const int64_t count = std::min(UNIT_ROWS, num_rows - first_row), outputs = panels * COLUMNS;
    const int64_t last_panel = std::min(first_panel + UNIT_PANELS, panels);
    thread_local Lines memory;
    float* const apart = IN_PLACE ? nullptr : memory.some(UNIT_PANELS * UNIT_ROWS * COLUMNS);
    const Arithmetic arithmetic;
    for (int64_t chunk = 0; chunk < chunks; chunk += STRETCH) {
      const int64_t stretch = std::min(STRETCH, chunks - chunk);
      for (int64_t panel = first_panel; panel < last_panel; ++panel) {
        const uint16_t* columns = weights + (panel * chunks + chunk) * PANEL_CHUNK;
        float* const out = y + first_row * outputs + panel * COLUMNS;
        float* const sums =
            IN_PLACE ? out : apart + (panel - first_panel) * UNIT_ROWS * COLUMNS;
        const int64_t stride = IN_PLACE ? outputs : COLUMNS;
        for (int64_t row = 0; row < count; row += BLOCK_ROWS)
          multiply(std::min(BLOCK_ROWS, count - row),
                   rows + left_place(first_row + row, chunk, chunks), chunks, columns, stretch,
                   sums + row * stride, stride, chunk > 0);
        if (IN_PLACE || chunk + stretch < chunks) continue;
        for (int64_t row = 0; row < count; ++row)
          std::memcpy(out + row * outputs, sums + row * COLUMNS, COLUMNS * sizeof(float));
      }
    }
  }
};

void linear(xla::Call& call) {
  const auto x = call.argument<xla::BF16>(2);
  const auto weights = call.argument<xla::BF16>(3);
  const int64_t places = x.sizes[0], inputs = x.sizes[1], chunks = chunks_of(inputs);
  const int64_t count = std::clamp<int64_t>(call.number(), 0, places);
  const auto y = call.result<xla::F32>(2);
  const int64_t outputs = y.sizes[1], panels = weights.sizes[0];
  if (panels * COLUMNS != outputs || weights.sizes[1] != chunks * CHUNK ||
      weights.sizes[2] != COLUMNS || y.sizes[0] != places)
    throw xla::Fault{"weights have another shape, or other panels"};
  std::fill(y.data + count * outputs, y.data + places * outputs, 0.0f);

  thread_local Lines memory;
  const int64_t numbers = whole_blocks(count) * chunks * CHUNK;
  Left* const left = reinterpret_cast<Left*>(
      memory.some(numbers * static_cast<int64_t>(sizeof(Left)) / sizeof(float)));
  const uint16_t* const from = x.data;
  xla::ThreadPool pool = call.pool();
  run_units(pool, (count + BLOCK_ROWS - 1) / BLOCK_ROWS, [=](int64_t block) {
    const int64_t end = std::min((block + 1) * BLOCK_ROWS, count);
    for (int64_t row = block * BLOCK_ROWS; row < end; ++row)
      put_row(left, row, from + row * inputs, inputs);
  });

  const Product product{left, weights.data, y.data, count, chunks, panels};
  const int64_t blocks = (count + UNIT_ROWS - 1) / UNIT_ROWS;
  const int64_t columns = (panels + UNIT_PANELS - 1) / UNIT_PANELS;
  run_units(pool, columns * blocks, [=](int64_t i) {
    product.run_unit(i % blocks * UNIT_ROWS, i / blocks * UNIT_PANELS);
  });
}

// The bits of bfloat16 numbers of a range of magnitudes; the same at each run.
class Numbers {
 public:
  // The exponent is one of `count` from `first` on, as the bits have it: 0 means zero or tiny.
  uint16_t next(uint32_t first, uint32_t count) {
    state_ = state_ * 1664525 + 1013904223;
    const uint32_t exponent = first + (state_ >> 8 & 0xffff) % count;
    return static_cast<uint16_t>(state_ >> 31 << 15 | exponent << 7 | (state_ >> 24 & 0x7f));
  }

 private:
  uint32_t state_ = 1;
};

// Whether `multiply` gives the bits that `with_chunk` defines, for rows of usual numbers, of numbers
// whose products lie around the smallest normal one, and of large beside small ones. `multiply` is
// called as by kernels: for a whole block of rows and one of a single row, in two stretches.
bool is_exact() {
  constexpr int64_t ROWS = BLOCK_ROWS + 1, CHUNKS = 2, INPUTS = CHUNKS * CHUNK;
  constexpr uint32_t MAGNITUDES[][2] = {{122, 8}, {0, 9}, {87, 80}};
  Numbers numbers;
  std::vector<uint16_t> x(ROWS * INPUTS), panel(CHUNKS * PANEL_CHUNK);
  for (int64_t i = 0; i < ROWS * INPUTS; ++i) {
    // The last row is like the first, whose results are in its tiles until they are zeroed.
    const auto& [first, count] = MAGNITUDES[i / INPUTS % BLOCK_ROWS % 3];
    x[i] = numbers.next(first, count);
  }
  for (uint16_t& weight : panel) weight = numbers.next(123, 8);
  // 2^-126 - 1.5 * 2^-151, which is tiny when rounded to 24 bits, and not to multiples of 2^-149.
  std::fill_n(&x[INPUTS], INPUTS, 0);
  x[INPUTS] = 0x0080, x[INPUTS + 2] = 0x80c0;  // 2^-126 and -1.5 times that
  for (int64_t i = 0; i < COLUMNS; ++i) {
    uint16_t* const pairs = &panel[i / TILE_COLUMNS * TILE_SIZE + i % TILE_COLUMNS * 2];
    pairs[0] = 0x3f80, pairs[2 * TILE_COLUMNS] = 0x3300;  // 1 and 2^-25
  }
  Lines memory, results;
  Left* const left = reinterpret_cast<Left*>(memory.zeros(whole_blocks(ROWS) * INPUTS));
  float* const sums = results.some(whole_blocks(ROWS) * COLUMNS);
  std::fill_n(sums, whole_blocks(ROWS) * COLUMNS, std::numeric_limits<float>::quiet_NaN());
  for (int64_t i = 0; i < ROWS; ++i) put_row(left, i, x.data() + i * INPUTS, INPUTS);
  {
    const Arithmetic arithmetic;
    for (int64_t chunk = 0; chunk < CHUNKS; ++chunk)
      for (int64_t row = 0; row < ROWS; row += BLOCK_ROWS)
        multiply(std::min(BLOCK_ROWS, ROWS - row), left + left_place(row, chunk, CHUNKS), CHUNKS,
                 panel.data() + chunk * PANEL_CHUNK, 1, sums + row * COLUMNS, COLUMNS, chunk > 0);
  }
  const Flush as_written{false};
  for (int64_t i = 0; i < ROWS; ++i)
    for (int64_t column = 0; column < COLUMNS; ++column) {
      float expected = 0.0f;
      for (int64_t chunk = 0; chunk < CHUNKS; ++chunk)
        expected = with_chunk(expected, x.data() + i * INPUTS + chunk * CHUNK,
                              panel.data() + chunk * PANEL_CHUNK, column);
      if (std::memcmp(&expected, sums + i * COLUMNS + column, sizeof expected) != 0) return false;
    }
  return true;
}

}  // namespace

extern "C" int itemwise_panel() { return COLUMNS; }
extern "C" const char* itemwise_lack() {
  if (!is_granted()) return "the operating system refuses AMX tiles";
  if (!is_exact()) return "its products have other bits than they should, on this processor";
  return nullptr;
}
extern "C" XLA_FFI_Error* itemwise_linear(XLA_FFI_CallFrame* frame) {
  return xla::answer(frame, linear);
}
