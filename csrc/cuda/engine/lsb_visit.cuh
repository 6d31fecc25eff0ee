// Round-clamp and its least significant bits on the GPU: visits of the walks of walk.cuh. Host code too, where the
// tests run it.
#pragma once

#include "math/lean_lsb.h"
#include "walk.cuh"

namespace mbq::cuda {

static_assert(7 * kChunk < 1 << 24 && 7 * kRowGroup < 1 << 24, "the sums of a task, which one lane may add, are exact");

// A channel whose limit LeanRoundClamp takes.
template <bool mirrored>
struct LeanChannel {
  static constexpr bool lean = true;
  const LeanRoundClamp& quantizer;
  float limit, inverse, scale, slope;

  MBQ_HD float position(float x) const { return quantizer.position<mirrored>(x, limit, inverse); }
  MBQ_HD float value(float u, float x) const { return quantizer.value<mirrored>(u, x, scale); }
  MBQ_HD float residual(float u, float base) const { return quantizer.residual(u, base); }
  MBQ_HD float gradient(float grad, float x) const { return quantizer.gradient<mirrored>(grad, x, position(x), slope); }
};

// A channel of any limit and slope, 0 and infinity too.
struct AnyChannel {
  static constexpr bool lean = false;
  const RoundClamp<float>& quantizer;
  float limit, scale, slope;

  MBQ_HD float position(float x) const { return within_unit(quantizer.position(x, limit)); }
  MBQ_HD float value(float u, float x) const { return quantizer.value(u, x, scale); }
  MBQ_HD float residual(float u, float base) const { return base + quantizer.residual(u); }
  MBQ_HD float gradient(float grad, float x) const { return quantizer.gradient(grad, x, limit, slope); }
};

// One bit-width, with a limit a channel: null: x is u.
struct LsbQuantizer {
  RoundClamp<float> any;
  LeanRoundClamp lean;
  const float* limits;

  MBQ_HD LsbQuantizer(const RoundClamp<float>& quantizer, const float* of_channels)
      : any(quantizer), lean(quantizer), limits(of_channels) {}

  // Calls body with what computes the elements of a channel. grad_penalty is null forward.
  template <class Body>
  MBQ_HD void with_channel(int64_t channel, const float* grad_penalty, const Body& body) const {
    const float limit = limits ? limits[channel] : 1.0f, scale = any.scale(limit);
    const float slope = grad_penalty ? lsb_slope(*grad_penalty, limit, any.factor) : 0.0f;
    if (!LeanRoundClamp::takes(limit) || !(fabsf(slope) < INFINITY)) {
      body(AnyChannel{any, limit, scale, slope});
    } else if (any.mirrored()) {
      body(LeanChannel<true>{lean, limit, reciprocal(limit), scale, slope});
    } else {
      body(LeanChannel<false>{lean, limit, reciprocal(limit), scale, slope});
    }
  }
};

// One x: `to` gets values or residuals.
template <class T, class Result>
struct RoundClampJob {
  Walk walk;
  bool aligned;
  LsbQuantizer quantizer;
  const T* x;
  Result* to;
};

template <LsbOut out, bool counts, class Channel, class T, class Result>
struct RoundClampVisit {
  const Channel& channel;
  const T* x;
  Result* to;
  LsbSums sums = {};

  MBQ_HD Result result_of(float u, float wide) const {
    if constexpr (out == LsbOut::residual) return low_byte<Result>(channel.residual(u, kRounder));
    if constexpr (out == LsbOut::value) return static_cast<Result>(channel.value(u, wide));
    return Result{};
  }

  template <int count, int batch>
  MBQ_HD void at(int64_t i, int64_t step) {
    Pack<T, count> from[batch];  // all loads first: they are then in flight together
#pragma unroll
    for (int b = 0; b < batch; ++b) from[b] = load<T, count>(x + i + b * step);
#pragma unroll
    for (int b = 0; b < batch; ++b) {
      Pack<Result, count> results;
#pragma unroll
      for (int j = 0; j < count; ++j) {
        const float wide = static_cast<float>(from[b].at[j]), u = channel.position(wide);
        if (out != LsbOut::nothing) results.at[j] = result_of(u, wide);
        if (counts) sums.add(channel.residual(u, 0.0f));
      }
      if (out != LsbOut::nothing) store(to + i + b * step, results);
    }
  }
};

// grad_x = grad + slope sign(B) d|x|/dx, grad 0 where there is none; slope from the gradient of the penalty, which lies
// on the device.
template <class T>
struct LsbGradientJob {
  Walk walk;
  bool aligned;
  LsbQuantizer quantizer;
  const float* grad_penalty;
  const T* x;
  const T* grad;
  T* grad_x;
};

template <bool task, class Channel, class T>
struct LsbGradientVisit {
  const Channel& channel;
  const LsbGradientJob<T>& job;

  template <int count, int batch>
  MBQ_HD void at(int64_t i, int64_t step) const {
    Pack<T, count> x[batch], grad[batch];
#pragma unroll
    for (int b = 0; b < batch; ++b) {
      x[b] = load<T, count>(job.x + i + b * step);
      if (task) grad[b] = load<T, count>(job.grad + i + b * step);
    }
#pragma unroll
    for (int b = 0; b < batch; ++b) {
#pragma unroll
      for (int j = 0; j < count; ++j)
        x[b].at[j] = static_cast<T>(
            channel.gradient(task ? static_cast<float>(grad[b].at[j]) : 0.0f, static_cast<float>(x[b].at[j])));
      store(job.grad_x + i + b * step, x[b]);
    }
  }
};

}  // namespace mbq::cuda
