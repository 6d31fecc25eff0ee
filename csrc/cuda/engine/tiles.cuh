// How a dense tensor with parameters a channel is cut for one launch of blocks of kTeamThreads, and what each thread of
// it visits.
//
// By run: the `inner` elements of one channel lie together. A warp takes a tile of them at once, every load before the
// first use, and a few tiles of a large tensor. Long runs give a block tiles of one run, side by side, and one partial
// sum (wide); of short ones each warp takes its own. By column: a channel's elements lie apart (channels_last). A block
// takes a strip of whole channels and goes down a group of rows, neighbours read neighbours.
//
// All indices but those of elements have 32 bits: a division of 64 is a subroutine of a hundred instructions. Host code
// too: the tests run it there.
#pragma once

#include "math/quant_math.h"

namespace mbq::cuda {

constexpr unsigned kTeamThreads = 256;
constexpr unsigned kTeamWarps = kTeamThreads / 32;
constexpr int64_t kEnoughBlocks = 8192;  // beyond that a warp takes more tiles: what each costs at its ends is shared
constexpr int64_t kMostRounds = 8;       // tiles of a warp
constexpr int64_t kColumnRun = 32;       // shorter runs are walked by column
constexpr int64_t kFewestRows = 16;      // that a thread goes down,
constexpr int64_t kMostRows = 256;
constexpr int64_t kEnoughStrips = 1024;  // and more than the fewest, where there are so many blocks

// What one thread visits: tiles of a run, which its warp shares, `hop` elements apart and `left` elements up to the end
// of the last; or `left` elements of a column, `hop` apart.
struct Share {
  int64_t begin, hop;
  int left;
  unsigned channel;
  unsigned team;  // whose partial sum it adds to: a warp or a block; in a strip, its group of rows
};

struct Tiles {
  int64_t outer = 0, inner = 0;
  unsigned channels = 0;
  unsigned per_run = 0, repeats = 0, teams = 0;         // teams a run; runs a channel, or groups of rows; teams of all
  unsigned rounds = 0;                                  // tiles of a warp, or rows of a thread
  unsigned strip = 1, strips = 1, width = 1, subs = 1;  // channels of a strip; strips; its columns; rows at a time
  bool by_run = false, wide = false, aligned = false, packed = false;

  Tiles() = default;  // unset: the room for more in a batch
  // tile: elements that a warp takes at once, in accesses of `access`. is_aligned: all pointers are to 16 bytes.
  Tiles(int64_t o, int64_t c, int64_t i, int tile, int access, bool is_aligned, int64_t enough = kEnoughBlocks)
      : outer(o), inner(i), channels(static_cast<unsigned>(c)), by_run(c <= 1 || i >= kColumnRun), aligned(is_aligned) {
    packed = by_run && aligned && (inner % access == 0 || outer * c == 1);
    if (outer * c * inner == 0) return;
    if (by_run) {
      cut_runs(tile, enough);
    } else {
      cut_columns();
    }
  }

  void cut_runs(int tile, int64_t enough) {
    const int64_t pieces = (inner + tile - 1) / tile, all = pieces * outer * channels;
    wide = pieces > kTeamWarps / 2;
    const int64_t many = all / (kTeamWarps * enough), most = wide ? (pieces - 1) / kTeamWarps + 1 : pieces;
    rounds = static_cast<unsigned>(many < 1 ? 1 : many > kMostRounds ? kMostRounds : many);
    if (rounds > most) rounds = static_cast<unsigned>(most);
    const int64_t each = int64_t{rounds} * (wide ? kTeamWarps : 1);
    per_run = static_cast<unsigned>((pieces + each - 1) / each);
    repeats = static_cast<unsigned>(outer);
    teams = repeats * channels * per_run;
  }

  void cut_columns() {
    const int64_t fits = kTeamThreads / inner;
    strip = static_cast<unsigned>(channels < fits ? channels : fits);
    strips = (channels + strip - 1) / strip;
    width = strip * static_cast<unsigned>(inner);
    subs = kTeamThreads / width;
    const int64_t each = outer / (subs * kEnoughStrips / strips + 1);
    rounds = static_cast<unsigned>(each < kFewestRows ? kFewestRows : each > kMostRows ? kMostRows : each);
    const int64_t rows = int64_t{rounds} * subs;
    per_run = 1;
    repeats = static_cast<unsigned>((outer + rows - 1) / rows);
    teams = repeats;
  }

  // Partial sums: of all channels, and of one.
  MBQ_HD int64_t sums() const { return int64_t{repeats} * channels * per_run; }
  MBQ_HD unsigned sums_of_channel() const { return repeats * per_run; }

  int64_t blocks() const {
    if (!by_run) return int64_t{repeats} * strips;
    return wide ? teams : (int64_t{teams} + kTeamWarps - 1) / kTeamWarps;
  }
  // Tickets are counted a channel, or a strip.
  int64_t counters() const { return sums_of_channel() < 2 ? 0 : by_run ? channels : strips; }

  template <int tile>
  MBQ_HD Share share(unsigned block, unsigned thread) const {
    return by_run ? share_of_run<tile>(block, thread / 32) : share_of_column(block, thread);
  }

  template <int tile>
  MBQ_HD Share share_of_run(unsigned block, unsigned warp) const {
    const unsigned team = wide ? block : block * kTeamWarps + warp;
    if (team >= teams) return {0, 0, 0, 0, team};
    const unsigned run = per_run == teams ? 0 : per_run == 1 ? team : team / per_run, part = team - run * per_run;
    const int hop = (wide ? kTeamWarps : 1) * tile, most = static_cast<int>(rounds - 1) * hop + tile;
    const int64_t first = int64_t{part * rounds} * hop + (wide ? warp * tile : 0), left = inner - first;
    const int kept = left > most ? most : left < 0 ? 0 : static_cast<int>(left);
    return {run * inner + first, hop, kept, repeats == 1 ? run : run % channels, team};
  }

  MBQ_HD Share share_of_column(unsigned block, unsigned thread) const {
    const unsigned group = strips == 1 ? block : block / strips, at = block - group * strips;
    const unsigned sub = thread / width, place = thread - sub * width;
    const unsigned channel = at * strip + place / static_cast<unsigned>(inner);
    const int64_t columns = channels * inner, row = int64_t{group} * rounds * subs + sub, left = outer - row;
    if (sub >= subs || channel >= channels || left <= 0) return {0, 0, 0, 0, group};
    const bool whole = left >= int64_t{rounds} * subs;
    const unsigned count = whole ? rounds : (static_cast<unsigned>(left) + subs - 1) / subs;
    return {row * columns + int64_t{at} * width + place, columns * subs, static_cast<int>(count), channel, group};
  }
};

// The elements of a part of a run, in whole accesses between a head and a tail, or of a column, `hop` apart.
template <int width, class Visit>
MBQ_HD void walk_piece(const Tiles& tiles, int64_t begin, int count, int64_t hop, int lane, Visit& visit) {
  const int lanes = tiles.by_run ? 32 : 1;
  int head = count, packed = 0;
  if constexpr (width > 1) {
    const int misfit = static_cast<int>(-begin & (width - 1));
    if (tiles.by_run && tiles.aligned && misfit <= count) head = misfit;
    packed = (count - head) & -width;
#pragma unroll 1
    for (int p = lane * width; p < packed; p += 32 * width) visit.template at<width, 1, false>(begin + head + p, 0);
  }
#pragma unroll 1
  for (int e = tiles.by_run ? lane : 0; e < count - packed; e += lanes)
    visit.template at<1, 1, false>(begin + (tiles.by_run ? e + (e < head ? 0 : packed) : e * hop), 0);
}

// Calls visit.at<count, batch, lean>(i, step) for the elements of a share: `batch` accesses of `count` elements each,
// at i, i + step, ... lean: whole tiles, in the arithmetic that serves nearly every scale. Whether it does is asked
// last, when the parameters are here, because the loads of x shall not wait for theirs; if not, all is done again.
// rest: elements of an access in what is no whole tile.
template <int width, int batch, int rest, class Visit>
MBQ_HD void walk_share(const Tiles& tiles, const Share& share, int lane, Visit& visit) {
  constexpr int step = 32 * width, tile = batch * step;
  int64_t begin = share.begin;
  int left = share.left;
  if (tiles.packed && left >= tile) {
#pragma unroll 1
    for (; left >= tile; left -= static_cast<int>(share.hop), begin += share.hop)
      visit.template at<width, batch, true>(begin + lane * width, step);
    if (!visit.lean()) {  // of a warp, whose lanes have one channel
#if defined(__CUDA_ARCH__)
      if constexpr (rest != width) __syncwarp();  // what a lane has written wrong another one writes right
#endif
      visit.restart();
      begin = share.begin;
      left = share.left;
    }
  }
#pragma unroll 1
  for (; left > 0; left -= static_cast<int>(share.hop), begin += share.hop) {
    walk_piece<rest>(tiles, begin, !tiles.by_run || left < tile ? left : tile, share.hop, lane, visit);
    if (!tiles.by_run) return;
  }
}

}  // namespace mbq::cuda
