// The exact step's attention on a processor: own rows and the paged context, fused. See
// cpu_step.py for what it computes and who calls it.
//
// Queries lie side by side in the vector registers, keys come one after the other. So a query's
// sums never meet another query's, and the order of its keys is the only order there is: the place
// of a row, and beside whom it lies, cannot enter. A masked place is an exact no-op: its weight is
// zero.
//
// A unit of work is a lane and a key/value head with all its query heads. Its queries are laid out
// in panels of PANEL columns, [head_dim, PANEL], which stay in cache while blocks of keys pass by:
//
//     scores [keys, PANEL] = K [keys, head_dim]  * Q [head_dim, PANEL]
//     total [head_dim, PANEL] += V^T [head_dim, keys] * exp(scores - top) [keys, PANEL]

#include <limits>
#include <vector>

#include "cpu.h"

namespace {

using namespace itemwise;

// Blocks of keys

constexpr int BLOCK = 128;        // keys of a block
constexpr float LOWEST = -1e30f;  // finite, below any score
constexpr float NEVER = -std::numeric_limits<float>::infinity();

// exp of numbers up to zero, to 2 units in the last place; exactly 1 at 0, and 0 below -87. NaN
// stays NaN.
// Range reduction and polynomial as in Cephes' expf (Moshier, 1992).
inline Floats exp_of_nonpositive(Floats x) {
  const Floats magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Ints vanishes = x < -87.0f;
  x = vanishes ? all(-87.0f) : x;
  const Floats n = fma(x, all(1.44269504088896341f), magic) - magic;
  Floats r = fma(n, all(-0.693359375f), x);
  r = fma(n, all(2.12194440e-4f), r);
  Floats y = all(1.9875691500e-4f);
  y = fma(y, r, all(1.3981999507e-3f));
  y = fma(y, r, all(8.3334519073e-3f));
  y = fma(y, r, all(4.1665795894e-2f));
  y = fma(y, r, all(1.6666665459e-1f));
  y = fma(y, r, all(5.0000001201e-1f));
  y = fma(y, r * r, r) + 1.0f;
  const Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
  Floats scale;
  std::memcpy(&scale, &power, sizeof scale);
  return vanishes ? Floats{} : y * scale;
}

// Running state of the online softmax of a panel's queries.
struct Panel {
  float* queries;  // [head_dim, PANEL]
  float* total;    // [head_dim, PANEL]
  float* top;      // [PANEL]
  float* weight;   // [PANEL]
};

// Keys and values one after the other, so many floats apart.
struct Keys {
  const float* k;
  const float* v;
  int64_t stride;
  int64_t count;  // at most BLOCK
};

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

// Takes one block of keys into a panel; `mask` says what each query sees.
template <typename Mask>
inline void take_in(const Panel& panel, const Keys& keys, int64_t head_dim, float scale,
                    float* scores, float* seen, const Mask& mask) {
  products(keys.count, keys.k, keys.stride, 1, panel.queries, head_dim, scores, PANEL, false);
  Floats shrink[2];
  for (int half = 0; half < 2; ++half) {
    float* column = scores + half * WIDTH;
    const Floats before = load(panel.top + half * WIDTH);
    Floats top = before, weight = {};
    for (int64_t s = 0; s < keys.count; ++s) {
      const Floats score = mask.hide(s, half, load(column + s * PANEL) * scale);
      store(column + s * PANEL, score);
      top = larger(score, top);
    }
    for (int64_t s = 0; s < keys.count; ++s) {
      const Floats p = exp_of_nonpositive(load(column + s * PANEL) - top);
      store(column + s * PANEL, p);
      weight = weight + p;
    }
    shrink[half] = exp_of_nonpositive(before - top);
    store(panel.top + half * WIDTH, top);
    weight = fma(load(panel.weight + half * WIDTH), shrink[half], weight);
    store(panel.weight + half * WIDTH, weight);
  }
  products(head_dim, keys.v, 1, keys.stride, scores, keys.count, seen, PANEL, false);
  for (int64_t d = 0; d < head_dim; ++d) {
    for (int half = 0; half < 2; ++half) {
      float* total = panel.total + d * PANEL + half * WIDTH;
      const Floats before = load(total), more = load(seen + d * PANEL + half * WIDTH);
      store(total, mask.keep(half, fma(before, shrink[half], more), before));
    }
  }
}

// The step

struct Step {
  const float *q, *k, *v, *k_pages, *v_pages;
  const int32_t *lane_start, *context_pages, *context_lens;
  float* out;
  std::vector<int32_t> row_start;  // [T], the first place of the row that holds a place
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
  const int64_t first = step.lane_start[lane], end = step.lane_end(lane);
  const int64_t num_queries = (end - first) * group;
  const int64_t num_panels = (num_queries + PANEL - 1) / PANEL;
  const int64_t panel_floats = (2 * head_dim + 2) * PANEL;
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));

  thread_local std::vector<float> memory;
  memory.assign(num_panels * panel_floats + (BLOCK + head_dim) * PANEL, 0.0f);
  std::vector<Panel> panels(num_panels);
  for (int64_t p = 0; p < num_panels; ++p) {
    float* base = memory.data() + p * panel_floats;
    panels[p] = {base, base + head_dim * PANEL, base + 2 * head_dim * PANEL,
                 base + (2 * head_dim + 1) * PANEL};
    std::fill_n(panels[p].top, PANEL, LOWEST);
  }
  float* scores = memory.data() + num_panels * panel_floats;
  float* seen = scores + BLOCK * PANEL;

  // Where the vector of query n begins in q and out.
  auto place_of = [&](int64_t n) {
    const int64_t query_head = head * group + n % group;
    return ((first + n / group) * step.num_heads + query_head) * head_dim;
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
      place[c] = n < num_queries ? first + n / group : -1;
      row[c] = n < num_queries ? step.row_start[place[c]] : -1;
    }
    for (int c = 0; c < PANEL; ++c) {
      if (row[c] < 0 || (c + 1 < PANEL && row[c + 1] == row[c])) continue;
      // The last query of a row here.
      for (int64_t s = row[c]; s <= place[c]; s += BLOCK) {
        const int64_t from = s * own_stride + head * head_dim;
        const int64_t count = std::min<int64_t>(BLOCK, place[c] + 1 - s);
        const Causal causal{place, row, row[c], static_cast<int32_t>(s)};
        take_in(panels[p], {step.k + from, step.v + from, own_stride, count}, head_dim, scale,
                scores, seen, causal);
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
      for (const Panel& panel : panels)
        take_in(panel, {step.k_pages + from, step.v_pages + from, head_dim, count}, head_dim,
                scale, scores, seen, Open{});
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

  // Places of no lane get zero.
  const int64_t floats = step.num_heads * step.head_dim;
  int64_t written = 0;
  for (int64_t lane = 0; lane <= step.num_lanes; ++lane) {
    const int64_t start = lane < step.num_lanes ? step.lane_start[lane] : step.num_tokens;
    std::fill(step.out + written * floats, step.out + start * floats, 0.0f);
    if (lane < step.num_lanes) written = step.lane_end(lane);
  }
  run_units(pool, step.num_lanes * step.num_kv_heads, [&step](int64_t i) {
    run_unit(step, i / step.num_kv_heads, i % step.num_kv_heads);
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
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int64_t>("lane_tokens")
                                  .Attr<int64_t>("granule_tokens"));
