// The k best items of a few users: the catalogue is shared out among the threads, each share has its
// own candidates, and a user's are put together at the end.
#include <algorithm>
#include <limits>

#include "catalogue.h"
#include "parallel.h"
#include "topk_list.h"
#include "topk_scores.h"
#include "vec.h"

namespace adarec {
namespace {

using namespace topk;

constexpr std::int64_t kBlocks = 16;   // of kWidth items: a tile
constexpr std::int64_t kShares = 16;   // of the catalogue, whatever the thread count

// What is known of one user's best in a share of the catalogue.
struct Candidates {
  List list;
  float bar = std::numeric_limits<float>::quiet_NaN();  // lets every score pass

  void collect(const TopK& op, std::int64_t room, std::int64_t item, int items,
               const float* scores) {
    for (int i = 0; i < items; i += kWidth) {
      // Not "greater than": a NaN, in the score or as the bar, must pass.
      std::uint32_t left = bits(first(std::min(kWidth, items - i))) &
                           ~bits(at_most(load(scores + i), set1(bar)));
      for (; left != 0; left &= left - 1) {
        const int at = i + __builtin_ctz(left);
        list.scores[list.size] = rising(scores[at]);
        list.items[list.size++] = static_cast<std::uint32_t>(item + at + 1);
        if (list.size == room) bar = list.cut(op.k);
      }
    }
  }
};

}  // namespace

void score_topk_few(const TopK& op) {
  constexpr std::int64_t kTile = kBlocks * kWidth;
  const std::int64_t tiles = (op.items + kTile - 1) / kTile, shares = std::min(tiles, kShares);
  const std::int64_t room = room_for(op), most = std::min(room, op.k);
  Scratch scratch;
  const std::int64_t all_seen = op.seen_offsets[op.users];
  std::int64_t* seen = scratch.take<std::int64_t>(all_seen);
  std::copy_n(op.seen, all_seen, seen);
  for (std::int64_t u = 0; u < op.users; ++u)
    std::sort(seen + op.seen_offsets[u], seen + op.seen_offsets[u + 1]);
  std::uint64_t* keys = scratch.take<std::uint64_t>(op.users * shares * most);
  std::int64_t* found = scratch.take<std::int64_t>(op.users * shares);

  parallel_for(shares, [&](std::int64_t share) {
    Scratch local;
    float* scores = local.take(op.users * kTile);
    Candidates users[kFewUsers];
    const std::int64_t* cursor[kFewUsers];
    const std::int64_t begin = tiles * share / shares * kTile;
    const std::int64_t end = std::min(op.items, tiles * (share + 1) / shares * kTile);
    for (std::int64_t u = 0; u < op.users; ++u) {
      users[u].list = {local.zeros<std::uint32_t>(room), local.take<std::uint32_t>(room), 0};
      cursor[u] = std::upper_bound(seen + op.seen_offsets[u], seen + op.seen_offsets[u + 1], begin);
    }
    for (std::int64_t item = begin; item < end; item += kTile) {
      const int items = static_cast<int>(std::min(kTile, end - item));
      score_items(op, item, items, scores, kTile);
      for (std::int64_t u = 0; u < op.users; ++u) {
        float* line = scores + u * kTile;
        for (; cursor[u] != seen + op.seen_offsets[u + 1] && *cursor[u] <= item + items; ++cursor[u])
          line[*cursor[u] - item - 1] = op.seen_score;
        users[u].collect(op, room, item, items, line);
      }
    }
    for (std::int64_t u = 0; u < op.users; ++u) {
      List& list = users[u].list;
      if (list.size > most) list.cut(op.k);
      std::uint64_t* to = keys + (u * shares + share) * most;
      for (std::int64_t i = 0; i < list.size; ++i) to[i] = key_of(list.scores[i], list.items[i]);
      found[u * shares + share] = list.size;
    }
  });

  for (std::int64_t u = 0; u < op.users; ++u) {
    std::uint64_t* mine = keys + u * shares * most;
    std::int64_t count = 0;
    for (std::int64_t share = 0; share < shares; ++share) {
      std::copy_n(mine + share * most, found[u * shares + share], mine + count);
      count += found[u * shares + share];
    }
    write_ranking(op, u, mine, count);
  }
}

}  // namespace adarec
