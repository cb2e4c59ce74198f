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

}  // namespace

extern "C" int itemwise_panel() { return COLUMNS; }
extern "C" int itemwise_is_ready() { return is_ready(); }
extern "C" XLA_FFI_Error* itemwise_linear(XLA_FFI_CallFrame* frame) {
  return xla::answer(frame, linear);
}
