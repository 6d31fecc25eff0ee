// How a dense tensor with parameters a channel is cut for one launch of blocks of kTeamThreads, and what each thread of
// it visits.
//
// By run: the `inner` elements of one channel lie together. A warp takes one tile of them in one go, every load before
// the first use. Long runs give a block eight tiles of one run and one partial sum (wide), short ones a warp at a time.
// By column: a channel's elements lie apart (channels_last). A block takes a strip of whole channels and goes down a
// group of rows, neighbours read neighbours.
//
// All indices but those of elements have 32 bits: a division of 64 is a subroutine of a hundred instructions. Host code
// too: the tests run it there.
#pragma once

#include "math/quant_math.h"

namespace mbq::cuda {

constexpr unsigned kTeamThreads = 256;
constexpr unsigned kTeamWarps = kTeamThreads / 32;
constexpr int64_t kColumnRun = 32;    // shorter runs are walked by column
constexpr int64_t kMostRows = 256;    // that a thread goes down
constexpr int64_t kFewestRows = 16;   // if there are so many,
constexpr int64_t kStripBlocks = 1024;  // until so many blocks share them

// What one thread visits: `count` elements of a tile, which a warp shares, or of its column, `pitch` apart.
struct Share {
  int64_t begin, pitch;
  int count;
  unsigned channel;
  unsigned team;  // whose partial sum it adds to: a warp or a block; in a strip, its group of rows
};

struct Tiles {
  int64_t outer = 0, inner = 0;
  unsigned channels = 0;
  unsigned per_run = 0;  // teams a run
  unsigned repeats = 0;  // runs a channel, or groups of rows
  unsigned strip = 0, strips = 0, rows = 0;  // channels of a strip; strips; rows of a thread
  int tile = 0;          // elements
  bool by_run = false, wide = false, aligned = false, packed = false;

  Tiles() = default;  // unset: the room for more in a batch
  // tile: elements that a warp takes at once, in accesses of `width`. is_aligned: all pointers are to 16 bytes.
  Tiles(int64_t o, int64_t c, int64_t i, int tile_size, int width, bool is_aligned)
      : outer(o), inner(i), channels(static_cast<unsigned>(c)), tile(tile_size), by_run(c <= 1 || i >= kColumnRun) {
    aligned = is_aligned;
    packed = by_run && aligned && (inner % width == 0 || outer * c == 1);
    if (outer * c * inner == 0) return;
    if (by_run) {
      const int64_t pieces = (inner + tile - 1) / tile;
      wide = pieces > kTeamWarps / 2;
      per_run = static_cast<unsigned>(wide ? (pieces + kTeamWarps - 1) / kTeamWarps : pieces);
      repeats = static_cast<unsigned>(outer);
    } else {
      per_run = 1;
      strip = static_cast<unsigned>(c < kTeamThreads / inner ? c : kTeamThreads / inner);
      strips = (channels + strip - 1) / strip;
      const int64_t each = outer / (subs() * kStripBlocks / strips + 1);
      rows = static_cast<unsigned>(each < kFewestRows ? kFewestRows : each > kMostRows ? kMostRows : each);
      repeats = static_cast<unsigned>((outer + int64_t{rows} * subs() - 1) / (int64_t{rows} * subs()));
    }
  }

  // Rows that a block is at in one step.
  MBQ_HD unsigned subs() const { return kTeamThreads / (strip * static_cast<unsigned>(inner)); }

  // Partial sums: of all channels, and of one.
  MBQ_HD int64_t sums() const { return int64_t{repeats} * channels * per_run; }
  MBQ_HD unsigned sums_of_channel() const { return repeats * per_run; }
  // Where the e-th of a channel is.
  MBQ_HD int64_t sum_index(unsigned channel, unsigned e) const {
    if (repeats == 1) return int64_t{channel} * per_run + e;
    const unsigned repeat = per_run == 1 ? e : e / per_run;
    return (int64_t{repeat} * channels + channel) * per_run + (e - repeat * per_run);
  }

  int64_t blocks() const {
    if (!by_run) return int64_t{repeats} * strips;
    return wide ? sums() : (sums() + kTeamWarps - 1) / kTeamWarps;
  }
  // Tickets are counted a channel, or a strip.
  int64_t counters() const { return sums_of_channel() < 2 ? 0 : by_run ? channels : strips; }

  MBQ_HD Share share(unsigned block, unsigned thread) const {
    return by_run ? share_of_run(block, thread / 32) : share_of_column(block, thread);
  }

  MBQ_HD Share share_of_run(unsigned block, unsigned warp) const {
    const unsigned team = wide ? block : block * kTeamWarps + warp, runs = repeats * channels;
    if (team >= runs * per_run) return {0, 0, 0, 0, team};
    const unsigned run = runs == 1 ? 0 : per_run == 1 ? team : team / per_run, part = team - run * per_run;
    const int64_t first = int64_t{wide ? part * kTeamWarps + warp : part} * tile, left = inner - first;
    const int count = left > tile ? tile : left < 0 ? 0 : static_cast<int>(left);
    return {run * inner + first, 1, count, repeats == 1 ? run : run % channels, team};
  }

  MBQ_HD Share share_of_column(unsigned block, unsigned thread) const {
    const unsigned group = strips == 1 ? block : block / strips, at = block - group * strips;
    const unsigned width = strip * static_cast<unsigned>(inner), sub = thread / width, place = thread - sub * width;
    const unsigned channel = at * strip + place / static_cast<unsigned>(inner);
    if (sub >= subs() || channel >= channels) return {0, 0, 0, 0, group};
    const int64_t columns = channels * inner, row = int64_t{group} * rows * subs() + sub, left = outer - row;
    const int64_t count = left <= 0 ? 0 : (left + subs() - 1) / subs();
    return {row * columns + int64_t{at} * width + place, columns * subs(),
            static_cast<int>(count < rows ? count : rows), channel, group};
  }
};

// Calls visit.at<count, batch, lean>(i, step) for the elements of a share: `batch` accesses of `count` elements each,
// at i, i + step, ... lean: a whole tile, and visit.lean() allows the arithmetic that needs it.
template <int width, int batch, class Visit>
MBQ_HD void walk_share(const Tiles& tiles, const Share& share, int lane, Visit& visit) {
  constexpr int step = 32 * width;
  if (tiles.packed && share.count == batch * step && visit.lean()) {
    visit.template at<width, batch, true>(share.begin + lane * width, step);
    return;
  }
  const int misfit = static_cast<int>(-share.begin & (width - 1));
  const int head = !tiles.by_run || !tiles.aligned || misfit > share.count ? share.count : misfit;
  const int packed = (share.count - head) & -width, single = share.count - packed;
#pragma unroll 1
  for (int p = lane * width; p < packed; p += step) visit.template at<width, 1, false>(share.begin + head + p, 0);
#pragma unroll 1
  for (int e = tiles.by_run ? lane : 0; e < single; e += tiles.by_run ? 32 : 1)
    visit.template at<1, 1, false>(share.begin + e * share.pitch + (e < head ? 0 : packed), 0);
}

}  // namespace mbq::cuda
