// The GPU loop of every elementwise op with per-channel parameters: what is done with the elements that tiles.cuh cuts
// out. One read of x serves every bit-width.
//
// All of this is host code too: the tests run it there. The kernels are in kernels.cuh.
#pragma once

#include "last_block.cuh"
#include "math/byte_codes.h"
#include "packs.cuh"
#include "tiles.cuh"

namespace mbq::cuda {

constexpr int kMaxLevels = 8;

// K quantizers over one x, K <= slots: `other` are K results forward, K upstream gradients backward. The parameters of
// every channel: scale[k][channel], in units of unit[k][channel] and at least floor[k][channel], and shift[k][channel];
// unit[0], floor[0] and shift[0] are null where there are none.
template <template <class> class Quantizer, class T, class Other, int slots>
struct Job {
  using Read = T;
  using Others = Other;
  static constexpr int kSlots = slots;
  static constexpr int kInFlight = slots == 1 ? 4 : slots <= 4 ? 2 : 1;  // accesses of a lane at once
  // Elements in one access: 16 bytes of the wider of what is read and what is written.
  static constexpr int kWidth = 16 / static_cast<int>(sizeof(T) > sizeof(Other) ? sizeof(T) : sizeof(Other));
  static constexpr int kRest = slots == 1 ? kWidth : 1;  // of what is no whole tile: for more there are no registers
  static constexpr int kTile = kWarpLanes * kWidth * kInFlight;  // elements that a warp takes at once
  Tiles tiles;
  int levels;
  Quantizer<float> quantizer[slots];
  const float* scale[slots];
  const float* shift[slots];
  const float* unit[slots];
  const float* floor[slots];
  const T* x;
  Other* other[slots];

  MBQ_HD bool shifted() const { return shift[0] != nullptr; }
  MBQ_HD bool has(int k) const { return slots == 1 || k < levels; }
  MBQ_HD float scale_at(int k, unsigned channel) const {
    return effective_scale(scale[k][channel], unit[0] != nullptr ? unit[k][channel] : 1.0f,
                           floor[0] != nullptr ? floor[k][channel] : -INFINITY);
  }
  MBQ_HD float shift_at(int k, unsigned channel) const { return shifted() ? shift[k][channel] : 0.0f; }
};

// Scales as divisors of whole tiles, or of the rest.
template <bool is_lean, int slots>
struct Divisors {
  std::conditional_t<is_lean, InvertedScale, AnyScale> at[slots];
  MBQ_HD explicit Divisors(const float (&scales)[slots]) {
#pragma unroll
    for (int k = 0; k < slots; ++k) at[k] = std::remove_cvref_t<decltype(at[k])>(scales[k]);
  }
};

// The parameters of one channel. plain: no level has a shift or 1 bit, and no loop asks.
template <class Job, bool plain>
struct Channel {
  static constexpr int slots = Job::kSlots;
  static constexpr bool kPlain = plain;
  const Job& job;
  float scales[slots], shifts[slots];

  MBQ_HD Channel(const Job& j, unsigned channel) : job(j) {
#pragma unroll
    for (int k = 0; k < slots; ++k) {
      const int level = job.has(k) ? k : 0;
      scales[k] = job.scale_at(level, channel);
      shifts[k] = plain ? 0.0f : job.shift_at(level, channel);
    }
  }

  // Whether the arithmetic of whole tiles serves.
  MBQ_HD bool lean() const {
    bool all = true;
#pragma unroll
    for (int k = 0; k < slots; ++k) all = all & InvertedScale::exact(scales[k]);
    return all;
  }

  // Calls body(quantizer, shift) with level k's, in types that know what need not be asked.
  template <class Body>
  MBQ_HD void with_level(int k, const Body& body) const {
    const auto& quantizer = job.quantizer[k];
    if constexpr (plain) {
      body(quantizer.levels(), NoShift());
    } else if constexpr (std::is_same_v<decltype(quantizer.levels()), std::remove_cvref_t<decltype(quantizer)>>) {
      body(quantizer, shifts[k]);  // has no 1 bit
    } else if (quantizer.range.binary()) {
      body(quantizer, shifts[k]);
    } else {
      body(quantizer.levels(), shifts[k]);
    }
  }
};

// Elements through a quantizer; of codes the lowest bytes of what rounds them.
template <class Out, class Quantizer, class T, int count, class Scale, class Shift>
MBQ_HD Pack<Out, count> results(const Quantizer& quantizer, const Pack<T, count>& x, Scale scale, Shift shift) {
  if constexpr (sizeof(Out) == 1) {
    Pack<Out, count> codes;
#pragma unroll
    for (int j = 0; j < count; ++j) codes.at[j] = low_byte<Out>(quantizer.rounded(element(x, j), scale, shift));
    return codes;
  } else {
    float values[count];
#pragma unroll
    for (int j = 0; j < count; ++j) values[j] = quantizer.value(element(x, j), scale, shift);
    return pack_of<Out>(values);
  }
}

// other[k] = x through quantizer k
template <class Job, bool plain>
struct Forward : Channel<Job, plain> {
  using Channel<Job, plain>::Channel, Channel<Job, plain>::job;
  MBQ_HD void restart() const {}

  template <int count, int batch, bool is_lean>
  MBQ_HD void at(int64_t i, int step) const {
    using T = typename Job::Read;
    using Out = typename Job::Others;
    Pack<T, count> x[batch];
    load_batch(job.x + i, step, x);
    const Divisors<is_lean, Job::kSlots> divisors(this->scales);
#pragma unroll
    for (int k = 0; k < Job::kSlots; ++k) {
      if (!job.has(k)) break;
      this->with_level(k, [&](const auto& quantizer, auto shift) {
#pragma unroll
        for (int b = 0; b < batch; ++b)
          store(job.other[k] + i + b * step, results<Out>(quantizer, x[b], divisors.at[k], shift));
      });
    }
  }
};

// grad_x = sum over k of the terms, added in float in the order of k; sums of the other terms stay with the lane.
template <class Job, bool plain>
struct Backward : Channel<Job, plain> {
  static constexpr int slots = Job::kSlots;
  static constexpr bool kAtOnce = slots <= 4;  // all gradients are loaded before the first is used; else batch is 1
  using Channel<Job, plain>::job;
  float to_scale[slots] = {}, to_shift[slots] = {};

  MBQ_HD Backward(const Job& j, unsigned channel) : Channel<Job, plain>(j, channel) {}
  MBQ_HD void restart() {
#pragma unroll
    for (int k = 0; k < slots; ++k) to_scale[k] = to_shift[k] = 0.0f;
  }

  template <int count, int batch, bool is_lean>
  MBQ_HD void at(int64_t i, int step) {
    using T = typename Job::Read;
    using Grad = typename Job::Others;
    Pack<T, count> x[batch];
    Pack<Grad, count> grad[kAtOnce ? slots : 1][batch];
    load_batch(job.x + i, step, x);
#pragma unroll
    for (int k = 0; k < slots && kAtOnce; ++k) load_gradient(grad[kAtOnce ? k : 0], k, i, step);
    const Divisors<is_lean, slots> divisors(this->scales);
#pragma unroll
    for (int b = 0; b < batch; ++b) {
      constexpr int some = kAtOnce && count > 4 ? 4 : count;  // elements whose sums are in registers at once
      Pack<T, count> grad_x;
#pragma unroll
      for (int first = 0; first < count; first += some) {
        float sum[some] = {};
#pragma unroll
        for (int k = 0; k < slots; ++k) {
          if (!job.has(k)) break;
          if (!kAtOnce) load_gradient(grad[0], k, i, step);
          add_terms(k, divisors.at[k], x[b], grad[kAtOnce ? k : 0][b], first, sum);
        }
        const Pack<T, some> part = pack_of<T>(sum);
        memcpy(grad_x.at + first, &part, sizeof(part));
      }
      store(job.grad_x + i + b * step, grad_x);
    }
  }

  template <class Scale, class T, class Grad, int count, int some>
  MBQ_HD void add_terms(int k, Scale scale, const Pack<T, count>& x, const Pack<Grad, count>& grad, int first,
                        float (&sum)[some]) {
    this->with_level(k, [&](const auto& quantizer, auto shift) {
#pragma unroll
      for (int j = 0; j < some; ++j) {
        const Terms<float> terms = quantizer.terms(element(grad, first + j), element(x, first + j), scale, shift);
        sum[j] = k == 0 ? terms.x : sum[j] + terms.x;
        to_scale[k] = terms.scale_onto(to_scale[k]);
        if (!plain) to_shift[k] += terms.shift;
      }
    });
  }

  template <class Grad, int count, int batch>
  MBQ_HD void load_gradient(Pack<Grad, count> (&grad)[batch], int k, int64_t i, int step) const {
    if (!job.has(k)) return;
    load_batch(job.other[k] + i, step, grad);
  }
};

}  // namespace mbq::cuda
