// The exact step's attention in bfloat16 on a processor: own rows and the paged context, fused. See
// cpu.py for what it computes and who calls it.
//
// Both products are those of ../bfloat16.h: queries times keys, and weights times values. Keys and
// values lie in panels, in pages from when they are written. A query's scores, maximum and weights
// are its own, weights are summed in 16 places by the number of their key, and keys come in chunks
// that are counted from a row's first token and from the beginning of each page. So the place of a
// query, and beside whom it lies, cannot enter. A masked key has the weight zero, which is an exact
// no-op beside values that are finite: values behind the end of a page are replaced by zeros, and
// those of other rows do not come near. (The sign of a zero may change; the end makes it positive.)
//
// A unit of work is a lane and a key/value head with all its query heads.

#include "../bfloat16.h"
#include "step.h"

namespace {

using namespace itemwise;
using namespace itemwise::bfloat16;

typedef Step<uint16_t, uint16_t> BFloat16Step;

constexpr int64_t PLACES = 16;  // where the weights of a query are summed
constexpr int64_t KEY_CHUNKS = KEYS / CHUNK;

// Keys and their values as the right sides of products: `keys` in panels of 32 keys, `values` in
// panels of 32 dimensions, each of so many chunks as `value_chunks` says.
struct Block {
  const uint16_t *keys, *values;
  int64_t count, value_chunks;

  int64_t chunks() const { return chunks_of(count); }
};

// Where a number lies in a panel of so many chunks.
inline int64_t panel_place(int64_t input, int64_t column, int64_t chunks) {
  return (column / COLUMNS * chunks + input / CHUNK) * PANEL_CHUNK +
         column % COLUMNS / TILE_COLUMNS * TILE_SIZE + input % CHUNK / 2 * 2 * TILE_COLUMNS +
         column % TILE_COLUMNS * 2 + input % 2;
}

// Keys [count, head_dim], `stride` apart, in panels.
void put_keys(uint16_t* to, const uint16_t* from, int64_t stride, int64_t count, int64_t head_dim) {
  const int64_t chunks = chunks_of(head_dim);
  std::fill_n(to, chunks_of(count) * chunks * PANEL_CHUNK, 0);
  for (int64_t key = 0; key < count; ++key)
    for (int64_t d = 0; d < head_dim; d += 2)
      std::memcpy(to + panel_place(d, key, chunks), from + key * stride + d, 2 * sizeof *to);
}

// Values [count, head_dim], `stride` apart, in panels.
void put_values(uint16_t* to, const uint16_t* from, int64_t stride, int64_t count,
                int64_t head_dim) {
  const int64_t chunks = chunks_of(count);
  for (int64_t d = 0; d < head_dim; d += TILE_COLUMNS)
    for (int64_t key = 0; key < chunks * CHUNK; key += 2) {
      uint16_t* pairs = to + panel_place(key, d, chunks);
      const uint16_t* values = from + key * stride + d;
      for (int64_t i = 0; i < TILE_COLUMNS; ++i) {
        pairs[2 * i] = key < count ? values[i] : 0;
        pairs[2 * i + 1] = key + 1 < count ? values[stride + i] : 0;
      }
    }
}

// A copy of a block's values with zeros behind its last key, in panels of KEY_CHUNKS.
Block with_zeros(const Block& block, int64_t head_dim, uint16_t* to) {
  for (int64_t panel = 0; panel < head_dim / COLUMNS; ++panel)
    std::memcpy(to + panel * KEY_CHUNKS * PANEL_CHUNK,
                block.values + panel * block.value_chunks * PANEL_CHUNK,
                block.chunks() * PANEL_CHUNK * sizeof *to);
  for (int64_t key = block.count; key < block.chunks() * CHUNK; ++key)
    for (int64_t d = 0; d < head_dim; ++d) to[panel_place(key, d, KEY_CHUNKS)] = 0;
  return {block.keys, to, block.count, KEY_CHUNKS};
}

inline Ints numbers_from(int64_t first) {
  constexpr int32_t FROM_ZERO[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  Ints numbers;
  std::memcpy(&numbers, FROM_ZERO, sizeof numbers);
  return numbers + static_cast<int32_t>(first);
}

// The highest of a vector's numbers, none of which is NaN.
template <int COUNT, typename Vector>
inline float highest_of(Vector x) {
  if constexpr (COUNT == 1) {
    return x[0];
  } else {
    typedef float Half __attribute__((vector_size(2 * COUNT)));
    Half left, right;
    std::memcpy(&left, &x, sizeof left);
    std::memcpy(&right, reinterpret_cast<const char*>(&x) + sizeof left, sizeof right);
    return highest_of<COUNT / 2>(left > right ? left : right);
  }
}

// Running state of the online softmax of a unit's queries.
struct Queries {
  int64_t head_dim;
  float scale;
  float* total;   // [queries + BLOCK_ROWS, head_dim]; tiles write over those behind
  float* top;     // [queries], of the scores, which count in powers of two
  float* weight;  // [queries, PLACES]
  float* scores;  // [BLOCK_ROWS, KEYS]
  Left* weights;  // [BLOCK_ROWS, KEYS]

  // Makes weights of a query's scores, of which the first `visible` count.
  template <bool ALL>
  void soften(int64_t query, int64_t row, int64_t count, int64_t visible, bool fresh) const {
    float* const mine = scores + row * KEYS;
    Floats highest = all(fresh ? LOWEST : top[query]);
    for (int64_t key = 0; key < count; key += WIDTH) {
      Floats score = load(mine + key) * scale;
      if (!ALL) score = numbers_from(key) < static_cast<int32_t>(visible) ? score : all(NEVER);
      store(mine + key, score);
      highest = larger(score, highest);
    }
    const float now = highest_of<WIDTH>(highest);
    const float shrink = fresh ? 0.0f : exp2_of_nonpositive(all(top[query] - now))[0];
    top[query] = now;

    constexpr int64_t VECTORS = PLACES / WIDTH;
    float* const summed = weight + query * PLACES;
    Floats sums[VECTORS];
    for (int64_t i = 0; i < VECTORS; ++i)
      sums[i] = fresh ? Floats{} : load(summed + i * WIDTH) * shrink;
    for (int64_t key = 0; key < count; key += PLACES)
      for (int64_t i = 0; i < VECTORS; ++i) {
        const int64_t at = key + i * WIDTH;
        const Floats p = rounded(exp2_of_nonpositive(load(mine + at) - now));
        put_left(weights + left_place(row, at / CHUNK, KEY_CHUNKS) + at % CHUNK, p);
        sums[i] = sums[i] + p;
      }
    for (int64_t i = 0; i < VECTORS; ++i) store(summed + i * WIDTH, sums[i]);
    if (fresh || shrink == 1.0f) return;
    float* const sum = total + query * head_dim;
    for (int64_t d = 0; d < head_dim; d += WIDTH) store(sum + d, load(sum + d) * shrink);
  }

  // Takes a block into queries, at most BLOCK_ROWS, whose vectors lie at `left`. `visible(query)`
  // says how many of its keys a query sees; `fresh`: it is the first block that they take in.
  template <bool ALL, typename Visible>
  void take_in(int64_t first, int64_t count, const Left* left, const Block& block, bool fresh,
               Visible visible) const {
    const int64_t chunks = chunks_of(head_dim);
    for (int64_t panel = 0; panel < block.chunks(); ++panel)
      multiply(count, left, chunks, block.keys + panel * chunks * PANEL_CHUNK, chunks,
               scores + panel * COLUMNS, KEYS, false);
    for (int64_t i = 0; i < count; ++i)
      soften<ALL>(first + i, i, block.chunks() * CHUNK, visible(first + i), fresh);
    for (int64_t panel = 0; panel < head_dim / COLUMNS; ++panel)
      multiply(count, weights, KEY_CHUNKS, block.values + panel * block.value_chunks * PANEL_CHUNK,
               block.chunks(), total + first * head_dim + panel * COLUMNS, head_dim, !fresh);
  }

  // The attention of a query. Adding zero makes a zero positive.
  void finish(int64_t query, uint16_t* to) const {
    float sums[PLACES];
    std::memcpy(sums, weight + query * PLACES, sizeof sums);
    for (int64_t half = PLACES / 2; half > 0; half /= 2)
      for (int64_t i = 0; i < half; ++i) sums[i] += sums[i + half];
    for (int64_t d = 0; d < head_dim; d += WIDTH)
      narrow(to + d, rounded((load(total + query * head_dim + d) + 0.0f) / sums[0]));
  }
};

// A lane and a key/value head.
class Unit {
 public:
  Unit(const BFloat16Step& step, int64_t lane, int64_t head)
      : step_(step),
        lane_(lane),
        head_(head),
        places_(step.places.data() + step.lane_places[lane]),
        num_places_(step.lane_places[lane + 1] - step.lane_places[lane]) {}

  void run() {
    if (num_places_ == 0) return;
    thread_local Lines memory;
    take_memory(memory);
    const Arithmetic arithmetic;
    for (int64_t first = 0, end; first < num_places_; first = end) {
      const int32_t row = step_.row_start[places_[first]];
      for (end = first + 1; end < num_places_ && step_.row_start[places_[end]] == row;) ++end;
      take_in_own(row, first, end);
    }
    take_in_context();
    const int64_t num_queries = num_places_ * step_.group();
    for (int64_t query = 0; query < num_queries; ++query)
      state_.finish(query, step_.out + place_of(query));
  }

 private:
  // Where the vector of a query begins in q and out.
  int64_t place_of(int64_t query) const {
    const int64_t group = step_.group();
    return (places_[query / group] * step_.num_heads + head_ * group + query % group) *
           step_.head_dim;
  }

  void take_memory(Lines& memory) {
    const int64_t head_dim = step_.head_dim, num_queries = num_places_ * step_.group();
    const int64_t rows = whole_blocks(num_queries) + BLOCK_ROWS;
    // In floats; numbers of the left side take no more, and each part is a multiple of a line.
    const int64_t left = rows * head_dim, own = BLOCK_ROWS * head_dim;
    const int64_t longest = places_[num_places_ - 1] + 1 - step_.row_start[places_[0]];
    const int64_t block = chunks_of(std::max(KEYS, longest)) * CHUNK * head_dim;
    const int64_t scores = BLOCK_ROWS * KEYS;
    float* at = memory.some(2 * left + own + block + 2 * scores + rows * (PLACES + 1));
    const auto take = [&at](int64_t floats) {
      float* const part = at;
      at += floats;
      return part;
    };
    state_.head_dim = head_dim;
    state_.scale = score_scale(head_dim);
    state_.total = take(left);
    state_.scores = take(scores);
    state_.weights = reinterpret_cast<Left*>(take(scores));
    state_.weight = take(rows * PLACES);
    left_ = reinterpret_cast<Left*>(take(left));
    own_left_ = reinterpret_cast<Left*>(take(own));
    keys_ = reinterpret_cast<uint16_t*>(take(block / 2));
    values_ = reinterpret_cast<uint16_t*>(take(block / 2));
    state_.top = take(rows);
  }

  // The own keys of the queries of some places, all of one row, up to each query itself.
  void take_in_own(int32_t row, int64_t first_place, int64_t end_place) {
    const int64_t group = step_.group(), head_dim = step_.head_dim;
    const int64_t from = (row * step_.num_kv_heads + head_) * head_dim;
    const int64_t stride = step_.num_kv_heads * head_dim;
    const int64_t num_keys = places_[end_place - 1] + 1 - row;
    put_keys(keys_, step_.k + from, stride, num_keys, head_dim);
    put_values(values_, step_.v + from, stride, num_keys, head_dim);
    const int64_t end = end_place * group;
    for (int64_t first = first_place * group, count; first < end; first += count) {
      count = std::min(BLOCK_ROWS, end - first);
      for (int64_t i = 0; i < count; ++i)
        put_row(own_left_, i, step_.q + place_of(first + i), head_dim);
      const int64_t seen = places_[(first + count - 1) / group] + 1 - row;
      for (int64_t key = 0; key < seen; key += KEYS)
        state_.take_in<false>(first, count, own_left_,
                              block_of(keys_, values_, key, num_keys, chunks_of(num_keys)),
                              key == 0, [&](int64_t query) {
                                return places_[query / group] + 1 - row - key;
                              });
    }
  }

  // The block from a key on, of `num_keys` keys and values in panels.
  Block block_of(const uint16_t* keys, const uint16_t* values, int64_t first, int64_t num_keys,
                 int64_t value_chunks) const {
    return {keys + first / COLUMNS * chunks_of(step_.head_dim) * PANEL_CHUNK,
            values + first / CHUNK * PANEL_CHUNK, std::min(KEYS, num_keys - first), value_chunks};
  }

  // The lane's context, page by page; all queries see all of it.
  void take_in_context() {
    const int64_t head_dim = step_.head_dim, num_queries = num_places_ * step_.group();
    const int32_t* lens = step_.context_lens + lane_ * step_.max_context_pages;
    const int32_t* pages = step_.context_pages + lane_ * step_.max_context_pages;
    if (step_.max_context_pages == 0 || lens[0] == 0) return;
    for (int64_t query = 0; query < num_queries; ++query)
      put_row(left_, query, step_.q + place_of(query), head_dim);
    for (int64_t i = 0; i < step_.max_context_pages && lens[i] > 0; ++i) {
      const int64_t page = (pages[i] * step_.num_kv_heads + head_) * step_.page_tokens * head_dim;
      for (int64_t key = 0; key < lens[i]; key += KEYS)
        take_in_block(block_of(step_.k_pages + page, step_.v_pages + page, key, lens[i],
                               step_.page_tokens / CHUNK));
    }
  }

  void take_in_block(Block block) {
    const bool full = block.count % CHUNK == 0;
    if (!full) block = with_zeros(block, step_.head_dim, values_);
    const int64_t num_queries = num_places_ * step_.group();
    const auto visible = [&](int64_t) { return block.count; };
    for (int64_t first = 0; first < num_queries; first += BLOCK_ROWS) {
      const int64_t count = std::min(BLOCK_ROWS, num_queries - first);
      const Left* left = left_ + left_place(first, 0, chunks_of(step_.head_dim));
      if (full)
        state_.take_in<true>(first, count, left, block, false, visible);
      else
        state_.take_in<false>(first, count, left, block, false, visible);
    }
  }

  const BFloat16Step& step_;
  const int64_t lane_, head_;
  const int32_t* places_;
  const int64_t num_places_;
  Queries state_;
  Left *left_, *own_left_;
  uint16_t *keys_, *values_;
};

void run_unit(const BFloat16Step& step, int64_t lane, int64_t head) {
  Unit(step, lane, head).run();
}

}  // namespace

extern "C" XLA_FFI_Error* itemwise_attend(XLA_FFI_CallFrame* frame) {
  return xla::answer(frame, [](xla::Call& call) { attend<xla::BF16, xla::U16>(call, run_unit); });
}
