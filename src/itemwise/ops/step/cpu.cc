// The exact step's attention on a processor: own rows and the paged context, fused. See
// cpu.py for what it computes and who calls it.
//
// Queries lie side by side in the vector registers, keys come one after the other. So a query's
// sums never meet another query's, and the order of its keys is the only order there is: the place
// of a row, and beside whom it lies, cannot enter. A masked place is an exact no-op: its weight is
// zero. (Not so where its value is no number; but that is of the query's own row, all of which then
// counts for nothing: `keep` guards the others.)
//
// A unit of work is a lane and a key/value head with all its query heads. Its queries are laid out
// in panels of PANEL columns, [head_dim, PANEL], which stay in cache while blocks of keys pass by:
//
//     scores [keys, PANEL] = K [keys, head_dim]  * Q [head_dim, PANEL]
//     total [head_dim, PANEL] += V^T [head_dim, keys] * 2^(scores - top) [keys, PANEL]

#include "step.h"

namespace {

using namespace itemwise;

// Running state of the online softmax of a panel's queries.
struct Panel {
  float* queries;  // [head_dim, PANEL]
  float* total;    // [head_dim, PANEL]
  float* top;      // [PANEL], of the scores, which count in powers of two
  float* weight;   // [PANEL]
};

// The values of a block, copied so that those of a tile of dimensions lie side by side.
struct Tiled {
  const float* at;
  int64_t count;  // of keys

  Rows tile(int64_t first, int64_t size) const { return {at + first * count, 1, size}; }
};

Tiled copy_tiled(const float* values, int64_t count, int64_t head_dim, float* to) {
  for_tiles(head_dim, [&](int64_t first, int64_t size) {
    with_size(size, [&](auto n) {
      for (int64_t s = 0; s < count; ++s)
        std::memcpy(to + first * count + s * n, values + s * head_dim + first, n * sizeof(float));
    });
  });
  return {to, count};
}

// All queries of a panel see all keys of a block.
struct Open {
  Floats hide(int64_t, int, Floats score) const { return score; }
  Floats keep(int, Floats after, Floats) const { return after; }
};

// A query sees the keys of its own row up to itself.
struct Causal {
  const int32_t* place;  // [PANEL], of each query
  const int32_t* row;    // [PANEL], the first place of its row
  int32_t keys_row;      // the row of the keys
  int32_t keys_place;    // the place of the first key

  Ints mine(int half) const {
    Ints rows;
    std::memcpy(&rows, row + half * WIDTH, sizeof rows);
    return rows == keys_row;
  }
  Floats hide(int64_t key, int half, Floats score) const {
    Ints places;
    std::memcpy(&places, place + half * WIDTH, sizeof places);
    const int32_t at = keys_place + static_cast<int32_t>(key);
    return (places >= at) & mine(half) ? score : all(NEVER);
  }
  // Zero times a value that is not finite would be no no-op.
  Floats keep(int half, Floats after, Floats before) const { return mine(half) ? after : before; }
};

// Takes one block of keys [count, head_dim] and their values [head_dim, count] into a panel; `mask`
// says what each query sees.
template <typename Values, typename Mask>
inline void take_in(const Panel& panel, const Rows& keys, const Values& values, int64_t count,
                    int64_t head_dim, float scale, float* scores, const Mask& mask) {
  Floats top[2], shrink[2];
  for (int half = 0; half < 2; ++half) top[half] = load(panel.top + half * WIDTH);
  products(count, keys, panel.queries, head_dim, [&](int64_t s, int half, Floats sum) {
    const Floats score = mask.hide(s, half, sum * scale);
    store(scores + s * PANEL + half * WIDTH, score);
    top[half] = larger(score, top[half]);
  });
  for (int half = 0; half < 2; ++half) {
    float* column = scores + half * WIDTH;
    Floats weight = {};
    for (int64_t s = 0; s < count; ++s) {
      const Floats p = exp2_of_nonpositive(load(column + s * PANEL) - top[half]);
      store(column + s * PANEL, p);
      weight = weight + p;
    }
    shrink[half] = exp2_of_nonpositive(load(panel.top + half * WIDTH) - top[half]);
    store(panel.top + half * WIDTH, top[half]);
    weight = fma(load(panel.weight + half * WIDTH), shrink[half], weight);
    store(panel.weight + half * WIDTH, weight);
  }
  products(head_dim, values, scores, count, [&](int64_t d, int half, Floats sum) {
    float* total = panel.total + d * PANEL + half * WIDTH;
    const Floats before = load(total);
    store(total, mask.keep(half, fma(before, shrink[half], sum), before));
  });
}

// A lane and a key/value head: lays the queries out in panels, takes in each row's own keys, then
// the context, and writes the result.
void run_unit(const Step<float, float>& step, int64_t lane, int64_t head) {
  const int64_t group = step.num_heads / step.num_kv_heads, head_dim = step.head_dim;
  const int32_t* places = step.places.data() + step.lane_places[lane];
  const int64_t num_queries = (step.lane_places[lane + 1] - step.lane_places[lane]) * group;
  if (num_queries == 0) return;
  const int64_t num_panels = (num_queries + PANEL - 1) / PANEL;
  const int64_t panel_floats = (2 * head_dim + 2) * PANEL;
  const float scale = score_scale(head_dim);

  thread_local Lines memory;
  float* base = memory.zeros(num_panels * panel_floats + KEYS * (PANEL + head_dim));
  std::vector<Panel> panels(num_panels);
  for (Panel& panel : panels) {
    panel = {base, base + head_dim * PANEL, base + 2 * head_dim * PANEL,
             base + (2 * head_dim + 1) * PANEL};
    std::fill_n(panel.top, PANEL, LOWEST);
    base += panel_floats;
  }
  float* scores = base;
  float* tiled = base + KEYS * PANEL;

  // Where the vector of query n begins in q and out.
  auto place_of = [&](int64_t n) {
    return (places[n / group] * step.num_heads + head * group + n % group) * head_dim;
  };
  for (int64_t n = 0; n < num_queries; ++n) {
    const float* from = step.q + place_of(n);
    float* to = panels[n / PANEL].queries + n % PANEL;
    for (int64_t d = 0; d < head_dim; ++d) to[d * PANEL] = from[d];
  }

  // Own rows. A panel may hold queries of several rows: each row's keys pass by all of them.
  const int64_t own_stride = step.num_kv_heads * head_dim;
  for (int64_t p = 0; p < num_panels; ++p) {
    int32_t place[PANEL], row[PANEL];  // of each query; padding sees nothing
    for (int c = 0; c < PANEL; ++c) {
      const int64_t n = p * PANEL + c;
      place[c] = n < num_queries ? places[n / group] : -1;
      row[c] = n < num_queries ? step.row_start[place[c]] : -1;
    }
    for (int c = 0; c < PANEL; ++c) {
      if (row[c] < 0 || (c + 1 < PANEL && row[c + 1] == row[c])) continue;
      // The last query of a row here.
      for (int64_t s = row[c]; s <= place[c]; s += KEYS) {
        const int64_t from = s * own_stride + head * head_dim;
        const int64_t count = std::min<int64_t>(KEYS, place[c] + 1 - s);
        const Causal causal{place, row, row[c], static_cast<int32_t>(s)};
        take_in(panels[p], Rows{step.k + from, own_stride, 1}, Rows{step.v + from, 1, own_stride},
                count, head_dim, scale, scores, causal);
      }
    }
  }

  // Context, page by page; all queries of the lane see all of it.
  const int64_t slots = lane * step.max_context_pages;
  for (int64_t i = slots; i < slots + step.max_context_pages && step.context_lens[i] > 0; ++i) {
    const int64_t page = (step.context_pages[i] * step.num_kv_heads + head) * step.page_tokens;
    for (int64_t s = 0; s < step.context_lens[i]; s += KEYS) {
      const int64_t from = (page + s) * head_dim;
      const int64_t count = std::min<int64_t>(KEYS, step.context_lens[i] - s);
      const Tiled values = copy_tiled(step.v_pages + from, count, head_dim, tiled);
      for (const Panel& panel : panels)
        take_in(panel, Rows{step.k_pages + from, head_dim, 1}, values, count, head_dim, scale,
                scores, Open{});
    }
  }

  for (int64_t n = 0; n < num_queries; ++n) {
    const Panel& panel = panels[n / PANEL];
    const float weight = panel.weight[n % PANEL];
    float* to = step.out + place_of(n);
    for (int64_t d = 0; d < head_dim; ++d) to[d] = panel.total[d * PANEL + n % PANEL] / weight;
  }
}

}  // namespace

extern "C" XLA_FFI_Error* itemwise_attend(XLA_FFI_CallFrame* frame) {
  return xla::answer(frame, [](xla::Call& call) { attend<xla::F32, xla::F32>(call, run_unit); });
}
