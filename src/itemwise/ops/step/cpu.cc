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

#include <limits>

#include "../cpu.h"

namespace {

using namespace itemwise;

// Blocks of keys

constexpr int BLOCK = 128;        // keys of a block
constexpr float LOWEST = -1e30f;  // finite, below any score
constexpr float NEVER = -std::numeric_limits<float>::infinity();

// 2^x for x up to zero, to 1 unit in the last place; exactly 1 at 0, and 0 below -125. NaN stays
// NaN. The polynomial has the least relative error on [-1/2, 1/2] of its degree with 1 at 0.
inline Floats exp2_of_nonpositive(Floats x) {
  // 1.5 * 2^23 rounds to an integer, which 127 makes an exponent's bits.
  const Floats magic = all(12582912.0f + 127.0f);
  const Floats rounded = x + magic;
  const Floats r = x - (rounded - magic);
  Floats y = all(1.5353362e-4f);
  y = fma(y, r, all(1.3398875e-3f));
  y = fma(y, r, all(9.61843692e-3f));
  y = fma(y, r, all(5.55033237e-2f));
  y = fma(y, r, all(2.40226477e-1f));
  y = fma(y, r, all(6.93147182e-1f));
  y = fma(y, r, all(1.0f));
  const Floats power = (Floats)((Bits)rounded << 23);
  return x < -125.0f ? Floats{} : y * power;
}

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

// The step

struct Step {
  const float *q, *k, *v, *k_pages, *v_pages;
  const int32_t *lane_start, *context_pages, *context_lens;
  float* out;
  std::vector<int32_t> row_start;    // [T], the first place of the row that holds a place
  std::vector<int32_t> places;       // whose attention is wanted, lane by lane
  std::vector<int32_t> lane_places;  // [lanes + 1], where those of a lane begin
  int64_t num_tokens, num_heads, num_kv_heads, head_dim, page_tokens, max_context_pages;
  int64_t num_lanes, lane_tokens;
  int64_t end;  // of the last row, or a little behind

  int64_t lane_end(int64_t lane) const {
    const int64_t end = std::min<int64_t>(lane_start[lane] + lane_tokens, this->end);
    return lane + 1 < num_lanes ? std::min<int64_t>(end, lane_start[lane + 1]) : end;
  }
};

// A lane and a key/value head: lays the queries out in panels, takes in each row's own keys, then
// the context, and writes the result.
void run_unit(const Step& step, int64_t lane, int64_t head) {
  const int64_t group = step.num_heads / step.num_kv_heads, head_dim = step.head_dim;
  const int32_t* places = step.places.data() + step.lane_places[lane];
  const int64_t num_queries = (step.lane_places[lane + 1] - step.lane_places[lane]) * group;
  if (num_queries == 0) return;
  const int64_t num_panels = (num_queries + PANEL - 1) / PANEL;
  const int64_t panel_floats = (2 * head_dim + 2) * PANEL;
  const float log2_e = 1.44269504088896341f;
  const float scale = log2_e / std::sqrt(static_cast<float>(head_dim));

  thread_local Lines memory;
  float* base = memory.zeros(num_panels * panel_floats + BLOCK * (PANEL + head_dim));
  std::vector<Panel> panels(num_panels);
  for (Panel& panel : panels) {
    panel = {base, base + head_dim * PANEL, base + 2 * head_dim * PANEL,
             base + (2 * head_dim + 1) * PANEL};
    std::fill_n(panel.top, PANEL, LOWEST);
    base += panel_floats;
  }
  float* scores = base;
  float* tiled = base + BLOCK * PANEL;

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
      for (int64_t s = row[c]; s <= place[c]; s += BLOCK) {
        const int64_t from = s * own_stride + head * head_dim;
        const int64_t count = std::min<int64_t>(BLOCK, place[c] + 1 - s);
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
    for (int64_t s = 0; s < step.context_lens[i]; s += BLOCK) {
      const int64_t from = (page + s) * head_dim;
      const int64_t count = std::min<int64_t>(BLOCK, step.context_lens[i] - s);
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

ffi::Error attend(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> q, ffi::Buffer<ffi::F32> k,
                  ffi::Buffer<ffi::F32> v, ffi::Buffer<ffi::F32> k_pages,
                  ffi::Buffer<ffi::F32> v_pages, ffi::Buffer<ffi::S32> lane_start,
                  ffi::Buffer<ffi::S32> num_lanes, ffi::Buffer<ffi::S32> context_pages,
                  ffi::Buffer<ffi::S32> context_lens, ffi::Buffer<ffi::S32> granule_start,
                  ffi::Buffer<ffi::S32> granule_index, ffi::Buffer<ffi::S32> num_granules,
                  ffi::Buffer<ffi::S32> wanted, ffi::Buffer<ffi::S32> num_wanted,
                  ffi::ResultBuffer<ffi::F32> out, int64_t lane_tokens, int64_t granule_tokens) {
  const auto same = [](const auto& a, const auto& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end());
  };
  if (!same(k.dimensions(), v.dimensions()) || !same(q.dimensions(), out->dimensions()) ||
      !same(k_pages.dimensions(), v_pages.dimensions()) ||
      q.dimensions()[1] % k.dimensions()[1] != 0)
    return ffi::Error::InvalidArgument("arrays of queries, keys and values do not fit together");
  Step step;
  step.q = q.typed_data(), step.k = k.typed_data(), step.v = v.typed_data();
  step.k_pages = k_pages.typed_data(), step.v_pages = v_pages.typed_data();
  step.lane_start = lane_start.typed_data();
  step.context_pages = context_pages.typed_data();
  step.context_lens = context_lens.typed_data();
  step.out = out->typed_data();
  step.num_tokens = q.dimensions()[0], step.num_heads = q.dimensions()[1];
  step.num_kv_heads = k.dimensions()[1], step.head_dim = k.dimensions()[2];
  step.page_tokens = k_pages.dimensions()[2];
  step.max_context_pages = context_pages.dimensions()[1];
  step.num_lanes = num_lanes.typed_data()[0], step.lane_tokens = lane_tokens;

  // Granules come in the order of their start; one of index 0 begins a row.
  const int32_t last = num_granules.typed_data()[0] - 1;
  step.end = last < 0 ? 0 : granule_start.typed_data()[last] + granule_tokens;
  step.end = std::min(step.end, step.num_tokens);
  step.row_start.resize(step.num_tokens);
  int32_t granule = 0, row = 0;
  for (int32_t t = 0; t < step.num_tokens; ++t) {
    for (; granule < num_granules.typed_data()[0] && granule_start.typed_data()[granule] == t;
         ++granule)
      if (granule_index.typed_data()[granule] == 0) row = t;
    step.row_start[t] = row;
  }

  std::vector<bool> is_wanted(step.num_tokens);
  const int64_t count = std::min<int64_t>(num_wanted.typed_data()[0], wanted.element_count());
  for (int64_t i = 0; i < count; ++i) {
    const int32_t place = wanted.typed_data()[i];
    if (place < 0 || place >= step.num_tokens)
      return ffi::Error::InvalidArgument("a wanted place lies outside the step");
    is_wanted[place] = true;
  }
  step.lane_places.push_back(0);
  for (int64_t lane = 0; lane < step.num_lanes; ++lane) {
    for (int64_t t = step.lane_start[lane]; t < step.lane_end(lane); ++t)
      if (is_wanted[t]) step.places.push_back(t);
    step.lane_places.push_back(step.places.size());
  }

  // Other places get zero.
  const int64_t floats = step.num_heads * step.head_dim;
  int64_t written = 0;
  for (const int64_t place : step.places) {
    std::fill(step.out + written * floats, step.out + place * floats, 0.0f);
    written = place + 1;
  }
  std::fill(step.out + written * floats, step.out + step.num_tokens * floats, 0.0f);

  // Lanes of a head one after the other: they often share their context, which then is in cache.
  run_units(pool, step.num_lanes * step.num_kv_heads, [&step](int64_t i) {
    run_unit(step, i % step.num_lanes, i / step.num_lanes);
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(itemwise_attend, attend,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int64_t>("lane_tokens")
                                  .Attr<int64_t>("granule_tokens"));
