// Matrix products of a few or many rows with weights that stay as they are in memory. See
// cpu.py for what it computes and who calls it.
//
// Weights lie in panels of PANEL outputs, [out / PANEL, in, PANEL]. A unit of work is some panels
// and some rows: a stretch of the panels is widened to float32, then all rows meet it while it is in
// cache; few rows widen it in registers as they meet it. The stretches are the same for any number
// of rows, and so are the sums.

#include "../cpu.h"

namespace {

using namespace itemwise;

constexpr int64_t STRETCH = 1024;           // inputs whose weights are in cache at a time
constexpr int64_t UNIT_PANELS = 64 / PANEL;  // panels of a unit
constexpr int64_t UNIT_ROWS = 256;          // rows of a unit
constexpr int64_t CACHED_ROWS = 48;         // rows that meet all panels before others do
constexpr int64_t FEW_ROWS = 2 * TILE;      // rows that widen weights as they meet them

template <typename Weight>
void run_unit(const float* x, const Weight* panels, float* y, int64_t num_rows, int64_t inputs,
              int64_t outputs, int64_t num_panels) {
  thread_local Lines memory;
  thread_local float* const wide = memory.zeros(UNIT_PANELS * STRETCH * PANEL);
  for (int64_t k = 0; k < inputs; k += STRETCH) {
    const int64_t count = std::min(STRETCH, inputs - k);
    // Some rows meet a panel's stretch.
    const auto meet = [&](int64_t first, int64_t rows, int64_t p, const auto* columns) {
      float* out = y + first * outputs + p * PANEL;
      products(rows, Rows{x + first * inputs + k, inputs, 1}, columns, count,
               [=](int64_t i, int half, Floats sum) {
                 float* to = out + i * outputs + half * WIDTH;
                 store(to, k > 0 ? load(to) + sum : sum);
               });
    };
    if (num_rows <= FEW_ROWS) {
      for (int64_t p = 0; p < num_panels; ++p)
        meet(0, num_rows, p, panels + (p * inputs + k) * PANEL);
      continue;
    }
    for (int64_t p = 0; p < num_panels; ++p) {
      const Weight* from = panels + (p * inputs + k) * PANEL;
      float* to = wide + p * STRETCH * PANEL;
      for (int64_t i = 0; i < count * PANEL; i += WIDTH) store(to + i, load(from + i));
    }
    for (int64_t first = 0; first < num_rows; first += CACHED_ROWS) {
      const int64_t rows = std::min(CACHED_ROWS, num_rows - first);
      for (int64_t p = 0; p < num_panels; ++p) meet(first, rows, p, wide + p * STRETCH * PANEL);
    }
  }
}

template <typename Weight>
void run(xla::ThreadPool pool, const float* x, const Weight* weights, float* y, int64_t num_rows,
         int64_t inputs, int64_t outputs) {
  const int64_t panels = outputs / PANEL;
  const int64_t columns = (panels + UNIT_PANELS - 1) / UNIT_PANELS;
  const int64_t blocks = (num_rows + UNIT_ROWS - 1) / UNIT_ROWS;
  run_units(pool, columns * blocks, [=](int64_t i) {
    const int64_t panel = i / blocks * UNIT_PANELS, first = i % blocks * UNIT_ROWS;
    run_unit(x + first * inputs, weights + panel * inputs * PANEL,
             y + first * outputs + panel * PANEL, std::min(UNIT_ROWS, num_rows - first), inputs,
             outputs, std::min(UNIT_PANELS, panels - panel));
  });
}

void linear(xla::Call& call) {
  const auto x = call.argument<xla::F32>(2);
  const auto weights = call.any_argument(3);
  const int64_t places = x.sizes[0], inputs = x.sizes[1];
  const int64_t rows = std::clamp<int64_t>(call.number(), 0, places);
  const auto y = call.result<xla::F32>(2);
  const int64_t outputs = y.sizes[1];
  if (weights.sizes[0] * PANEL != outputs || weights.sizes[1] != inputs ||
      weights.sizes[2] != PANEL || y.sizes[0] != places)
    throw xla::Fault{"weights have another shape, or other panels"};
  float* const out = y.data;
  std::fill(out + rows * outputs, out + places * outputs, 0.0f);
  const auto run_with = [&](const auto* panels) {
    run(call.pool(), x.data, panels, out, rows, inputs, outputs);
  };
  switch (weights.type) {
    case xla::F32: return run_with(static_cast<const float*>(weights.data));
    case xla::BF16: return run_with(static_cast<const uint16_t*>(weights.data));
    case xla::S8: return run_with(static_cast<const int8_t*>(weights.data));
    default: throw xla::Fault{"weights are neither float32, bfloat16 nor int8"};
  }
}

}  // namespace

extern "C" int itemwise_panel() { return PANEL; }
extern "C" const char* itemwise_lack() { return nullptr; }
extern "C" XLA_FFI_Error* itemwise_linear(XLA_FFI_CallFrame* frame) {
  return xla::answer(frame, linear);
}
