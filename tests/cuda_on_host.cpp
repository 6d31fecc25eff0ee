// The CUDA loops of csrc/cuda/engine/elementwise.cuh on the host, lane after lane, and their last teams in any order:
// for tests/test_cuda_on_host.py.
#include <torch/headeronly/util/BFloat16.h>

#include <algorithm>
#include <vector>

#include "cuda/engine/batch.cuh"
#include "cuda/engine/channel_sums.cuh"
#include "math/affine_math.h"

namespace {

using namespace mbq;
using namespace mbq::cuda;

template <class T>
struct Arguments {
  T* x;
  T** others;  // outs or grads
  T* grad_x;
  float *scale, *shift, *unit, *floor, *lo, *hi, *scale_grad, *shift_grad;
  const int* order;  // of blocks; null: as they come
  int64_t outer, channels, inner;
  int levels, slots, enough_blocks;
  bool aligned, plain, together;
};

// Double rounding is from 8 bits, half up; the general affine form divides, rounds positions, judges them, multiplies.
template <class Quantizer>
Quantizer quantizer_of(float lo, float hi) {
  if constexpr (std::is_same_v<Quantizer, DoubleRound<float>>) {
    const float ratio = -128 / lo;
    return {{lo, hi}, {lo * ratio, hi * ratio}, second_rounding(ratio, true)};
  } else if constexpr (std::is_same_v<Quantizer, GeneralAffine<float>>) {
    return {{lo, hi}, {.divide = true, .before = true, .by_position = true, .product = true}};
  } else {
    return {{lo, hi}};
  }
}

template <template <class> class Quantizer, class Work, class T>
Work job_of(const Arguments<T>& a) {
  Work job{};
  job.tiles = Tiles(a.outer, a.channels, a.inner, Work::kTile, Work::kWidth, a.aligned, a.enough_blocks);
  job.levels = a.levels;
  job.x = a.x;
  for (int k = 0; k < a.levels; ++k) {
    job.quantizer[k] = quantizer_of<Quantizer<float>>(a.lo[k], a.hi[k]);
    job.scale[k] = a.scale + k * a.channels;
    job.shift[k] = a.shift ? a.shift + k * a.channels : nullptr;
    job.unit[k] = a.unit ? a.unit + k * a.channels : nullptr;
    job.floor[k] = a.floor ? a.floor + k * a.channels : nullptr;
    job.other[k] = reinterpret_cast<typename Work::Others*>(a.others[k]);
  }
  return job;
}

template <class Work, bool plain>
void visit_blocks(const Work& job) {
  for (int64_t block = 0; block < job.tiles.blocks(); ++block) {
    for (unsigned thread = 0; thread < kTeamThreads; ++thread) {
      const Share share = job.tiles.template share<Work::kTile>(block, thread);
      if (share.left == 0) continue;
      Forward<Work, plain> visit(job, share.channel);
      walk_share<Work::kWidth, Work::kInFlight, Work::kRest>(job.tiles, share, thread % kWarpLanes, visit);
    }
  }
}

// What the kernel does between its barriers, in steps: all threads of a block, their sums, and its tickets.
template <class Work, bool plain>
struct Block {
  const Work& job;
  const unsigned block;
  std::vector<Share> shares;
  std::vector<std::vector<float>> sums;  // of a row, one a thread

  Block(const Work& j, unsigned b) : job(j), block(b), sums(j.rows()) {
    for (unsigned thread = 0; thread < kTeamThreads; ++thread) {
      shares.push_back(job.tiles.template share<Work::kTile>(block, thread));
      Backward<Work, plain> visit(job, shares.back().channel);
      walk_share<Work::kWidth, Work::kInFlight, Work::kRest>(job.tiles, shares.back(), thread % kWarpLanes, visit);
      for (int row = 0; row < job.rows(); ++row)
        sums[row].push_back(row < job.levels ? visit.to_scale[row] : visit.to_shift[row - job.levels]);
    }
  }

  void finish() {
    if (!job.tiles.by_run) return finish_column();
    const unsigned lanes = job.tiles.wide ? kTeamThreads : kWarpLanes;
    for (unsigned first = 0; first < kTeamThreads; first += lanes) {
      const Share& share = shares[first];
      if (share.team >= job.tiles.teams) return;
      for (int row = 0; row < job.rows(); ++row) {
        double total = 0;
        for (unsigned warp = first; warp < first + lanes; warp += kWarpLanes) {
          std::vector<float> lane(&sums[row][warp], &sums[row][warp] + kWarpLanes);
          for (int half = kWarpLanes / 2; half > 0; half /= 2)
            for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
          total += static_cast<double>(lane[0]);
        }
        job.partials(row)[share.team] = total;
      }
      const unsigned count = job.tiles.sums_of_channel();
      if (count > 1 && !take_ticket(job.counters + share.channel, count)) continue;
      double carried = 0;
      for (int row = 0; row < job.rows(); ++row) {
        double sum = 0;
        for (unsigned lane = 0; lane < lanes; ++lane) sum += job.share_of_sum(row, share.channel, lane, lanes);
        job.write_gradient(row, share.channel, sum, carried);
      }
    }
  }

  void finish_column() {
    const Strip strip(job.tiles, block);
    for (int row = 0; row < job.rows(); ++row) {
      for (unsigned c = 0; c < strip.channels; ++c) strip.write_partial(job.partials(row), sums[row].data(), c);
    }
    if (job.tiles.repeats > 1 && !take_ticket(job.counters + strip.at, job.tiles.repeats)) return;
    std::vector<double> carried(strip.channels), parts(kTeamThreads);
    for (int row = 0; row < job.rows(); ++row) {
      for (unsigned thread = 0; thread < kTeamThreads; ++thread)
        parts[thread] = strip.part(job, row, thread, kTeamThreads);
      for (unsigned c = 0; c < strip.channels; ++c)
        job.write_gradient(row, strip.first + c, strip.total(parts.data(), c), carried[c]);
    }
  }
};

template <class Work, bool plain>
void backward_blocks(Work& job, const int* order) {
  std::vector<double> partial(job.rows() * job.tiles.sums());
  std::vector<unsigned> counters(job.tiles.counters());
  job.partial = partial.data();
  job.counters = counters.data();
  for (int64_t i = 0; i < job.tiles.blocks(); ++i) Block<Work, plain>(job, order ? order[i] : i).finish();
  if (std::any_of(counters.begin(), counters.end(), [](unsigned c) { return c != 0; })) std::abort();
}

template <template <class> class Quantizer, class T, int slots, bool plain>
void forward(const Arguments<T>& a) {
  using Work = Job<Quantizer, T, T, slots>;
  visit_blocks<Work, plain>(job_of<Quantizer, Work>(a));
}

template <template <class> class Quantizer, class T, int slots, bool plain>
void backward(const Arguments<T>& a) {
  using Work = BackwardJob<Quantizer, T, T, slots>;
  Work job = job_of<Quantizer, Work>(a);
  job.grad_x = a.grad_x;
  job.together = a.together;
  for (int k = 0; k < a.levels; ++k) {
    job.factor[k] = 1.0;
    job.scale_gradient[k] = a.scale_grad + k * a.channels;
    job.shift_gradient[k] = a.shift_grad + k * a.channels;
  }
  backward_blocks<Work, plain>(job, a.order);
}

template <class T, class Code>
void codes(const Arguments<T>& a) {
  using Work = Job<QuantizeCodes, T, Code, 1>;
  const Work job = job_of<QuantizeCodes, Work>(a);
  if (a.plain) return visit_blocks<Work, true>(job);
  visit_blocks<Work, false>(job);
}

template <template <class> class Quantizer, class T, bool plain, bool is_forward>
void run_slotted(const Arguments<T>& a) {
  const auto run = [&](auto slots) {
    if constexpr (is_forward) {
      forward<Quantizer, T, slots, plain>(a);
    } else {
      backward<Quantizer, T, slots, plain>(a);
    }
  };
  if (a.slots == 1) return run(std::integral_constant<int, 1>());
  if constexpr (sizeof(T) == 4 && plain) {
    if (a.slots == kMaxLevels) return run(std::integral_constant<int, kMaxLevels>());
  }
  run(std::integral_constant<int, 4>());
}

template <class T, bool is_forward>
void run_quantize(const Arguments<T>& a) {
  if (a.plain) return run_slotted<FakeQuantize, T, true, is_forward>(a);
  run_slotted<FakeQuantize, T, false, is_forward>(a);
}

}  // namespace

extern "C" void forward_float32(Arguments<float>* a) { run_quantize<float, true>(*a); }
extern "C" void backward_float32(Arguments<float>* a) { run_quantize<float, false>(*a); }
extern "C" void forward_bfloat16(Arguments<c10::BFloat16>* a) { run_quantize<c10::BFloat16, true>(*a); }
extern "C" void backward_bfloat16(Arguments<c10::BFloat16>* a) { run_quantize<c10::BFloat16, false>(*a); }
extern "C" void forward_affine_float32(Arguments<float>* a) { forward<FakeQuantizeAffine, float, 1, false>(*a); }
extern "C" void backward_affine_float32(Arguments<float>* a) { backward<FakeQuantizeAffine, float, 1, false>(*a); }
extern "C" void forward_general_float32(Arguments<float>* a) { forward<GeneralAffine, float, 1, false>(*a); }
extern "C" void backward_general_float32(Arguments<float>* a) { backward<GeneralAffine, float, 1, false>(*a); }
extern "C" void forward_double_float32(Arguments<float>* a) { forward<DoubleRound, float, 4, true>(*a); }
extern "C" void backward_double_float32(Arguments<float>* a) { backward<DoubleRound, float, 4, true>(*a); }
extern "C" void codes_int8_float32(Arguments<float>* a) { codes<float, int8_t>(*a); }
extern "C" void codes_uint8_float32(Arguments<float>* a) { codes<float, uint8_t>(*a); }
extern "C" void codes_int8_bfloat16(Arguments<c10::BFloat16>* a) { codes<c10::BFloat16, int8_t>(*a); }
extern "C" void codes_uint8_bfloat16(Arguments<c10::BFloat16>* a) { codes<c10::BFloat16, uint8_t>(*a); }

// Blocks of a backward launch of one level of float32.
extern "C" int64_t blocks(int64_t outer, int64_t channels, int64_t inner) {
  using Work = BackwardJob<FakeQuantize, float, float, 1>;
  return Tiles(outer, channels, inner, Work::kTile, Work::kWidth, true).blocks();
}

// Takes the tickets of several launches in the order of `launch`, each on its counter, which starts at 0: last[i] says
// whether the i-th was the last of its launch.
extern "C" void take_tickets(const int* launch, int count, const unsigned* teams, unsigned* counters, bool* last) {
  for (int i = 0; i < count; ++i) last[i] = take_ticket(counters + launch[i], teams[launch[i]]);
}

// The item of every block, for items of `blocks` blocks each; capacity is 3.
extern "C" void items_of_blocks(const int64_t* blocks, int count, int* items) {
  Batch<int, 3> batch;
  for (int i = 0; i < count; ++i) batch.add(i, blocks[i]);
  for (unsigned block = 0; block < batch.first_block[batch.count]; ++block) items[block] = batch.item_of(block);
}

extern "C" bool takes(int64_t first, int64_t second, int64_t third, int64_t fourth) {
  Batch<int, 3> batch;
  for (int64_t blocks : {first, second, third}) {
    if (!batch.takes(blocks)) return false;
    batch.add(0, blocks);
  }
  return batch.takes(fourth);
}
