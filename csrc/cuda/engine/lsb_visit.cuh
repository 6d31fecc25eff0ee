// Round-clamp and its least significant bits on the GPU: visits of tiles.cuh's shares. Host code too, where the tests
// run it.
#pragma once

#include "last_block.cuh"
#include "math/lean_lsb.h"
#include "packs.cuh"
#include "tiles.cuh"

namespace mbq::cuda {

// Accesses of a lane to a tile.
template <LsbOut out, class T>
constexpr int kLsbBatch = out == LsbOut::value && sizeof(T) == 2 ? 2 : 4;
template <bool task, class T>
constexpr int kLsbGradientBatch = task || sizeof(T) == 2 ? 2 : 4;
// Elements of a tile. What a warp takes has |B| <= 7 and fills a half of a word with each of its sums.
template <int batch, class T>
constexpr int kLsbTile = kWarpLanes * kPack<T> * batch;
static_assert(7 * kMostRounds * kLsbTile<4, uint16_t> < 1 << 16 && 7 * kMostRows * kWarpLanes < 1 << 16);

// A channel whose limit LeanRoundClamp takes.
template <bool mirrored>
struct LeanChannel {
  const LeanRoundClamp& quantizer;
  InvertedScale limit;
  float scale, slope;

  MBQ_HD float position(float x) const { return quantizer.position<mirrored>(x, limit); }
  MBQ_HD float value(float u, float x) const { return quantizer.value<mirrored>(u, x, scale); }
  MBQ_HD float residual(float u, float base) const { return quantizer.residual(u, base); }
  MBQ_HD float gradient(float grad, float x) const { return quantizer.gradient<mirrored>(grad, x, position(x), slope); }
};

// A channel of any limit and slope, 0 and infinity too.
struct AnyChannel {
  const RoundClamp<float>& quantizer;
  float limit, scale, slope;

  MBQ_HD float position(float x) const { return saturate(quantizer.position(x, limit)); }
  MBQ_HD float value(float u, float x) const { return quantizer.value(u, x, scale); }
  MBQ_HD float residual(float u, float base) const { return base + quantizer.residual(u); }
  MBQ_HD float gradient(float grad, float x) const { return quantizer.gradient(grad, x, limit, slope); }
};

// One bit-width, with a limit a channel, or null: x is u.
struct LsbQuantizer {
  RoundClamp<float> any;
  LeanRoundClamp lean;
  const float* limits;

  LsbQuantizer() = default;  // unset: the room for more in a batch
  MBQ_HD LsbQuantizer(const RoundClamp<float>& quantizer, const float* of_channels)
      : any(quantizer), lean(quantizer), limits(of_channels) {}
};

// What the visits of a channel compute with.
struct LsbChannel {
  const LsbQuantizer& quantizer;
  InvertedScale limit;
  float scale, slope = 0.0f;

  MBQ_HD LsbChannel(const LsbQuantizer& q, unsigned channel)
      : quantizer(q), limit(q.limits ? q.limits[channel] : 1.0f), scale(q.any.scale(limit)) {}

  MBQ_HD bool lean() const { return LeanRoundClamp::takes(limit) && std::fabs(slope) < INFINITY; }

  // Calls body with one of the channels above; is_lean: lean() is known to be true.
  template <bool is_lean, class Body>
  MBQ_HD void with(const Body& body) const {
    if (!is_lean && !lean()) {
      body(AnyChannel{quantizer.any, limit, scale, slope});
    } else if (quantizer.any.mirrored()) {
      body(LeanChannel<true>{quantizer.lean, limit, scale, slope});
    } else {
      body(LeanChannel<false>{quantizer.lean, limit, scale, slope});
    }
  }
};

// What is counted of one x: two numbers a block, and when all blocks are done the penalty and the rate.
struct LsbCounts {
  uint32_t* partial;
  unsigned* counter;
  double numel;
  float *penalty, *rate;
};

// One x: `to` gets values or residuals.
template <class T, class Result>
struct RoundClampJob {
  Tiles tiles;
  LsbQuantizer quantizer;
  const T* x;
  Result* to;
  LsbCounts counts;
};

template <LsbOut out, bool counts, class T, class Result>
struct RoundClampVisit {
  const RoundClampJob<T, Result>& job;
  LsbChannel channel;
  LsbSums sums = {};

  MBQ_HD RoundClampVisit(const RoundClampJob<T, Result>& j, unsigned c) : job(j), channel(j.quantizer, c) {}

  MBQ_HD bool lean() const { return channel.lean(); }
  MBQ_HD void restart() { sums = {}; }

  template <int count, int batch, bool is_lean>
  MBQ_HD void at(int64_t i, int step) {
    Pack<T, count> x[batch];
    load_batch(job.x + i, step, x);
    channel.template with<is_lean>([&](const auto& known) {
#pragma unroll
      for (int b = 0; b < batch; ++b) {
        [[maybe_unused]] Pack<Result, count> bytes;
        [[maybe_unused]] float values[count];
#pragma unroll
        for (int j = 0; j < count; ++j) {
          const float wide = element(x[b], j), u = known.position(wide);
          if constexpr (out == LsbOut::residual) bytes.at[j] = low_byte<Result>(known.residual(u, kRounder));
          if constexpr (out == LsbOut::value) values[j] = known.value(u, wide);
          if constexpr (counts) sums.add(known.residual(u, 0.0f));
        }
        if constexpr (out == LsbOut::residual) store(job.to + i + b * step, bytes);
        if constexpr (out == LsbOut::value) store(job.to + i + b * step, pack_of<Result>(values));
      }
    });
  }
};

// grad_x = grad + slope sign(B) d|x|/dx, grad 0 where there is none; slope from the gradient of the penalty, which lies
// on the device.
template <class T>
struct LsbGradientJob {
  Tiles tiles;
  LsbQuantizer quantizer;
  const float* grad_penalty;
  const T* x;
  const T* grad;
  T* grad_x;
};

template <bool task, class T>
struct LsbGradientVisit {
  const LsbGradientJob<T>& job;
  LsbChannel channel;

  MBQ_HD LsbGradientVisit(const LsbGradientJob<T>& j, unsigned c) : job(j), channel(j.quantizer, c) {
    channel.slope = lsb_slope<float>(*job.grad_penalty, channel.limit, job.quantizer.any.factor);
  }

  MBQ_HD bool lean() const { return channel.lean(); }
  MBQ_HD void restart() const {}

  template <int count, int batch, bool is_lean>
  MBQ_HD void at(int64_t i, int step) const {
    Pack<T, count> x[batch], grad[batch];
    load_batch(job.x + i, step, x);
    if (task) load_batch(job.grad + i, step, grad);
    channel.template with<is_lean>([&](const auto& known) {
#pragma unroll
      for (int b = 0; b < batch; ++b) {
        float values[count];
#pragma unroll
        for (int j = 0; j < count; ++j) values[j] = known.gradient(task ? element(grad[b], j) : 0.0f, element(x[b], j));
        store(job.grad_x + i + b * step, pack_of<T>(values));
      }
    });
  }
};

}  // namespace mbq::cuda
