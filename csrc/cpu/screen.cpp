// The k best items by a table of a quarter of the bytes, and then the exact scores of those few that
// can be among them. One user's ranking is bound by reading the catalogue.
//
// An item's vector x is a q + e, q int8 and a = max |x| / 127, the user's u is b p + f, p int16. With
// the integer sum s = p . q and Cauchy and Schwarz
//
//   |u . x - a b s| <= |f| |x| + |u| |e| + |f| |e| <= |u| R,
//
// where R, kept for every item, holds |e|, |f| <= sqrt(D) |u| / (2 kUser), and what float32 rounds:
// in the exact score (2^-24 a step of D, twice without a fused multiply-add) and in the bounds
// themselves. So the k-th largest lower bound is at most the k-th best score, and an item whose upper
// bound is below it is not among the k best. The others are scored as score_topk scores them.
//
// A block: kWidth items' codes by pairs of dimensions, then their a, then their R. What lies behind
// the last item has R = NaN, which passes no comparison.
#include "screen.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "topk_list.h"
#include "topk_scores.h"
#include "vec.h"

namespace adarec {
namespace {

using namespace topk;

constexpr int kItem = 127, kUser = 32767;
constexpr std::int64_t kMostDims = 512;  // kItem kUser 512 fits int32
constexpr int kTogether = 4;             // blocks whose sums do not wait for each other
// Where products of scales stay normal numbers: entries of users are not all below kLeast, norms'
// products not above kMost; kTiny covers items below.
constexpr float kLeast = 1e-6f, kMost = 1e30f, kTiny = 1e-28f;

// Items that may be among the k best, in their order.
struct Candidates {
  List list;     // by their lower bounds
  float* upper;  // of the items of the list
  std::int64_t room, limit;
  float bar = -std::numeric_limits<float>::infinity();  // an upper bound must reach it

  Candidates(std::int64_t k, Scratch& scratch) {
    room = padded_list(4 * (k + kSlack));
    limit = std::min(room, k + kSlack);
    list = {scratch.zeros<std::uint32_t>(room), scratch.take<std::uint32_t>(room), 0};
    upper = scratch.take(room);
  }
  static std::int64_t padded_list(std::int64_t count) {
    return (count + kWidth - 1) / kWidth * kWidth;
  }

  // False where there is no room.
  bool add(float high, float low, std::uint32_t item, std::int64_t k) {
    upper[list.size] = high;
    list.scores[list.size] = rising(low);
    list.items[list.size++] = item;
    return list.size < limit || cut(k);
  }

  // Drops what cannot be among the k best of those there are, at least k.
  bool cut(std::int64_t k) {
    bar = score_of(list.kth(k));
    std::int64_t kept = 0;
    for (std::int64_t i = 0; i < list.size; ++i) {
      list.scores[kept] = list.scores[i];
      list.items[kept] = list.items[i];
      upper[kept] = upper[i];
      kept += upper[i] >= bar;
    }
    std::fill(list.scores + kept, list.scores + list.size, 0u);
    list.size = kept;
    limit = std::min(room, 2 * kept + kSlack);
    return kept + kSlack <= room;
  }
};

// The user's vector as pairs of int16, low half first; false where it cannot be.
struct Asked {
  std::int32_t* pairs;
  float scale, norm;  // b; no less than |u|

  bool read(const float* user, std::int64_t dim, std::int64_t count, Scratch& scratch) {
    double squares = 0.0;
    float most = 0.0f;
    for (std::int64_t d = 0; d < dim; ++d) {
      squares += double{user[d]} * user[d];
      most = std::max(most, std::fabs(user[d]));
    }
    norm = static_cast<float>(std::sqrt(squares) * (1.0 + 1e-6));
    if (!(most >= kLeast && norm <= kMost)) return false;  // NaN is neither
    scale = most / kUser;
    const float inverse = kUser / most;
    auto code = [&](std::int64_t d) {
      const long c = d < dim ? std::lrint(user[d] * inverse) : 0;
      return static_cast<std::uint32_t>(std::clamp<long>(c, -kUser, kUser)) & 0xffffu;
    };
    pairs = scratch.take<std::int32_t>(count);
    for (std::int64_t p = 0; p < count; ++p)
      pairs[p] = static_cast<std::int32_t>(code(2 * p) | code(2 * p + 1) << 16);
    return true;
  }
};

// Upper bounds and the bounds' widths of B blocks.
template <int B>
void bounds(const char* block, std::int64_t stride, std::int64_t pairs, const Asked& user,
            Vec (&high)[B], Vec (&width)[B]) {
  IVec sum[B];
  for (int b = 0; b < B; ++b) sum[b] = (IVec)zero();
  const auto* codes = reinterpret_cast<const std::int8_t*>(block);
  for (std::int64_t p = 0; p < pairs; ++p, codes += 2 * kWidth) {
    const std::int32_t pair = user.pairs[p];
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) sum[b] = add_products(sum[b], codes + b * stride, pair);
  }
  const auto* floats = reinterpret_cast<const float*>(codes);
  for (int b = 0; b < B; ++b, floats += stride / sizeof(float)) {
    width[b] = set1(user.norm) * load(floats + kWidth);
    high[b] = fma(to_float(sum[b]), load(floats) * set1(user.scale), width[b]);
  }
}

}  // namespace

Screen::Screen(const float* table, std::int64_t items, std::int64_t dim)
    : items_(items), dim_(dim), pairs_((dim + 1) / 2), blocks_((items + kWidth - 1) / kWidth),
      block_bytes_(2 * kWidth * pairs_ + 2 * kWidth * sizeof(float)) {
  if (dim > kMostDims || items < 1) return;
  data_ = static_cast<char*>(arena_.take(static_cast<std::size_t>(blocks_ * block_bytes_)));
  usable_ = true;
  for (std::int64_t block = 0; block < blocks_ && usable_; ++block) usable_ = pack(table, block);
}

bool Screen::pack(const float* table, std::int64_t block) {
  char* at = data_ + block * block_bytes_;
  std::fill_n(at, block_bytes_, char{0});
  auto* codes = reinterpret_cast<std::int8_t*>(at);
  auto* scales = reinterpret_cast<float*>(at + 2 * kWidth * pairs_);
  float* radii = scales + kWidth;
  // |f| / |u|, at most: half a step an entry, and what rounds where codes are made.
  const double user = 1.02 * std::sqrt(double(dim_)) / (2.0 * kUser);
  const double rounding = (static_cast<double>(dim_) + 40.0) / (1 << 23);
  for (int lane = 0; lane < kWidth; ++lane) {
    const std::int64_t item = block * kWidth + lane;
    radii[lane] = std::numeric_limits<float>::quiet_NaN();
    if (item >= items_) continue;
    const float* x = table + (item + 1) * dim_;
    float most = 0.0f;
    double squares = 0.0, missed = 0.0;
    for (std::int64_t d = 0; d < dim_; ++d) {
      if (!std::isfinite(x[d])) return false;
      most = std::max(most, std::fabs(x[d]));
      squares += double{x[d]} * x[d];
    }
    const float scale = most / kItem;
    for (std::int64_t d = 0; d < dim_; ++d) {
      const double exact = scale > 0.0f ? x[d] / double{scale} : 0.0;
      const long code = std::lrint(std::clamp(exact, -double(kItem), double(kItem)));
      codes[(d / 2 * kWidth + lane) * 2 + d % 2] = static_cast<std::int8_t>(code);
      const double rest = x[d] - double{scale} * static_cast<double>(code);
      missed += rest * rest;
    }
    const double norm = std::sqrt(squares), error = std::sqrt(missed);
    scales[lane] = scale;
    radii[lane] = static_cast<float>(
        (error * (1.0 + user) + (user + rounding) * (norm + error)) * (1.0 + 1e-6) + kTiny);
    longest_ = std::max(longest_, static_cast<float>((norm + error) * (1.0 + 1e-6)));
  }
  return true;
}

bool Screen::rank(const TopK& op, std::int64_t user, const float* gains) const {
  Scratch scratch;
  Asked asked;
  if (4 * op.k > items_) return false;
  if (!usable_ || !asked.read(op.user_vectors + user * dim_, dim_, pairs_, scratch)) return false;
  if (!(asked.norm * longest_ <= kMost)) return false;
  const std::int64_t begin = op.seen_offsets[user], count = op.seen_offsets[user + 1] - begin;
  std::int64_t* seen = scratch.take<std::int64_t>(count);
  std::copy_n(op.seen + begin, count, seen);
  std::sort(seen, seen + count);
  const std::int64_t *next = seen, *end = seen + count;
  Candidates found(op.k, scratch);
  bool room = true;
  // Rounding does not turn an order round: bounds of a score are bounds with the same gain added.
  auto look = [&](std::int64_t block, Vec high, Vec width) {
    const Vec gain = gains == nullptr ? zero() : load(gains + block * kWidth + 1);
    std::uint32_t left = bits(at_most(set1(found.bar), high + gain));
    if (left == 0) return;
    float highs[kWidth], lows[kWidth];
    store(highs, high + gain);
    store(lows, high - (width + width) + gain);
    for (; left != 0 && room; left &= left - 1) {
      const int lane = __builtin_ctz(left);
      const std::int64_t item = block * kWidth + lane + 1;
      while (next != end && *next < item) ++next;
      if (next != end && *next == item) continue;
      room = found.add(highs[lane], lows[lane], static_cast<std::uint32_t>(item), op.k);
    }
  };
  std::int64_t block = 0;
  for (; block + kTogether <= blocks_ && room; block += kTogether) {
    Vec high[kTogether], width[kTogether];
    bounds<kTogether>(data_ + block * block_bytes_, block_bytes_, pairs_, asked, high, width);
    for (int b = 0; b < kTogether; ++b) look(block + b, high[b], width[b]);
  }
  for (; block < blocks_ && room; ++block) {
    Vec high[1], width[1];
    bounds<1>(data_ + block * block_bytes_, block_bytes_, pairs_, asked, high, width);
    look(block, high[0], width[0]);
  }
  // Where fewer than k may come, the seen ones follow, which the screen has passed over.
  if (!room || found.list.size < op.k) return false;
  found.cut(op.k);

  const std::int64_t some = found.list.size;
  float* rows = scratch.take((some + 1) * dim_);
  for (std::int64_t i = 0; i < some; ++i)
    for (std::int64_t d = 0; d < dim_; d += 16)
      prefetch(op.item_vectors + found.list.items[i] * dim_ + d);
  for (std::int64_t i = 0; i < some; ++i)
    std::copy_n(op.item_vectors + found.list.items[i] * dim_, dim_, rows + (i + 1) * dim_);
  TopK exact = op;
  exact.users = 1;
  exact.items = some;
  exact.user_vectors = op.user_vectors + user * dim_;
  exact.item_vectors = rows;
  float* scores = scratch.take((some + kWidth - 1) / kWidth * kWidth);
  score_items(exact, 0, static_cast<int>(some), scores, 0);
  std::uint64_t* keys = scratch.take<std::uint64_t>(some);
  for (std::int64_t i = 0; i < some; ++i) {
    const std::uint32_t item = found.list.items[i];
    keys[i] = key_of(rising(gains == nullptr ? scores[i] : scores[i] + gains[item]), item);
  }
  write_ranking(op, user, keys, some);
  return true;
}

void score_topk_screened(const TopK& op, const Screen& screen) {
  parallel_for(op.users, [&](std::int64_t user) {
    if (op.seen_score == -std::numeric_limits<float>::infinity() && screen.rank(op, user)) return;
    score_topk_few(of_user(op, user));
  });
}

}  // namespace adarec
