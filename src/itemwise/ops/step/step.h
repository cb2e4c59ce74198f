// What the kernels of the step's attention share, whatever the type of activations: a step's
// arrays, which of its places are computed, and how the exponential is taken.

#pragma once

#include "../cpu.h"

namespace itemwise {

constexpr int64_t KEYS = 128;     // keys of a block
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

// What scores are multiplied with, so that they count in powers of two.
inline float score_scale(int64_t head_dim) {
  return 1.44269504088896341f / std::sqrt(static_cast<float>(head_dim));
}

// A step as units of work see it: arrays, and which of its places are computed.
template <typename Number, typename Stored>
struct Step {
  const Number *q, *k, *v;
  const Stored *k_pages, *v_pages;
  const int32_t *lane_start, *context_pages, *context_lens;
  Number* out;
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

  // Query heads that share a key/value head.
  int64_t group() const { return num_heads / num_kv_heads; }

  // Granules come in the order of their start; one of index 0 begins a row.
  void find_rows(const int32_t* start, const int32_t* index, int64_t count, int64_t tokens) {
    end = count == 0 ? 0 : std::min(start[count - 1] + tokens, num_tokens);
    row_start.resize(num_tokens);
    int64_t granule = 0;
    int32_t row = 0;
    for (int32_t t = 0; t < num_tokens; ++t) {
      for (; granule < count && start[granule] == t; ++granule)
        if (index[granule] == 0) row = t;
      row_start[t] = row;
    }
  }

  // False if a place lies outside the step.
  bool find_places(const int32_t* wanted, int64_t count) {
    std::vector<bool> is_wanted(num_tokens);
    for (int64_t i = 0; i < count; ++i) {
      if (wanted[i] < 0 || wanted[i] >= num_tokens) return false;
      is_wanted[wanted[i]] = true;
    }
    lane_places.push_back(0);
    for (int64_t lane = 0; lane < num_lanes; ++lane) {
      for (int64_t t = lane_start[lane]; t < lane_end(lane); ++t)
        if (is_wanted[t]) places.push_back(t);
      lane_places.push_back(places.size());
    }
    return true;
  }

  // Places that are not computed hold zero.
  void clear_others() const {
    const int64_t numbers = num_heads * head_dim;
    int64_t written = 0;
    for (const int64_t place : places) {
      std::fill(out + written * numbers, out + place * numbers, Number{});
      written = place + 1;
    }
    std::fill(out + written * numbers, out + num_tokens * numbers, Number{});
  }
};

// Runs a step; `run_unit(step, lane, head)` computes a lane and a key/value head.
template <xla::Type NUMBER, xla::Type STORED, typename RunUnit>
void attend(xla::Call& call, RunUnit run_unit) {
  const auto q = call.argument<NUMBER>(3), k = call.argument<NUMBER>(3);
  const auto v = call.argument<NUMBER>(3);
  const auto k_pages = call.argument<STORED>(4), v_pages = call.argument<STORED>(4);
  const auto lane_start = call.argument<xla::S32>(1);
  const int64_t num_lanes = call.number();
  const auto context_pages = call.argument<xla::S32>(2);
  const auto context_lens = call.argument<xla::S32>(2);
  const auto granule_start = call.argument<xla::S32>(1);
  const auto granule_index = call.argument<xla::S32>(1);
  const int64_t num_granules = call.number();
  const auto wanted = call.argument<xla::S32>(1);
  const int64_t num_wanted = call.number();
  const auto out = call.result<NUMBER>(3);

  const auto same = [](const auto& a, const auto& b, int64_t rank) {
    return std::equal(a.sizes, a.sizes + rank, b.sizes);
  };
  if (!same(k, v, 3) || !same(q, out, 3) || !same(k_pages, v_pages, 4) ||
      q.sizes[1] % k.sizes[1] != 0)
    throw xla::Fault{"arrays of queries, keys and values do not fit together"};
  Step<xla::Number<NUMBER>, xla::Number<STORED>> step;
  step.q = q.data, step.k = k.data, step.v = v.data;
  step.k_pages = k_pages.data, step.v_pages = v_pages.data;
  step.lane_start = lane_start.data;
  step.context_pages = context_pages.data, step.context_lens = context_lens.data;
  step.out = out.data;
  step.num_tokens = q.sizes[0], step.num_heads = q.sizes[1];
  step.num_kv_heads = k.sizes[1], step.head_dim = k.sizes[2];
  step.page_tokens = k_pages.sizes[2];
  step.max_context_pages = context_pages.sizes[1];
  step.num_lanes = num_lanes, step.lane_tokens = call.attribute("lane_tokens");
  step.find_rows(granule_start.data, granule_index.data, num_granules,
                 call.attribute("granule_tokens"));
  if (!step.find_places(wanted.data, std::min(num_wanted, wanted.sizes[0])))
    throw xla::Fault{"a wanted place lies outside the step"};
  step.clear_others();
  // Lanes of a head one after the other: they often share their context, which then is in cache.
  xla::ThreadPool pool = call.pool();
  run_units(pool, step.num_lanes * step.num_kv_heads, [&step, run_unit](int64_t i) {
    run_unit(step, i % step.num_lanes, i / step.num_lanes);
  });
}

}  // namespace itemwise
