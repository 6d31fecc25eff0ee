// Round-clamp and its least significant bits on the GPU: visits of the walks of walk.cuh. Host code too, where the
// tests run it.
#pragma once

#include "walk.cuh"

namespace mbq::cuda {

// One x: `to` gets values or residuals; counts gets a number a task, the sum of |B| in its upper half and the number of
// B that are not 0 in the lower one: a task has at most kChunk elements.
template <class T, class Result>
struct RoundClampJob {
  Walk walk;
  bool aligned;
  RoundClamp<float> quantizer;
  const float* limit;  // of every channel; null: x is u
  const T* x;
  Result* to;
  unsigned* counts;
};
static_assert(7 * kChunk < 1 << 16 && 7 * kRowGroup < 1 << 16);

MBQ_HD float limit_at(const float* limit, int64_t channel) { return limit ? limit[channel] : 1.0f; }

template <LsbOut out, bool counts, class T, class Result>
struct RoundClampVisit {
  const RoundClampJob<T, Result>& job;
  float limit, scale;
  unsigned found = 0;

  MBQ_HD RoundClampVisit(const RoundClampJob<T, Result>& j, int64_t channel)
      : job(j), limit(limit_at(j.limit, channel)), scale(j.quantizer.scale(limit)) {}

  template <int count, int batch>
  MBQ_HD void at(int64_t i, int64_t step) {
    Pack<T, count> x[batch];  // all loads first: they are then in flight together
#pragma unroll
    for (int b = 0; b < batch; ++b) x[b] = load<T, count>(job.x + i + b * step);
    if (job.quantizer.mirrored()) {
      results<true, count, batch>(x, i, step);
    } else {
      results<false, count, batch>(x, i, step);
    }
  }

  template <bool mirrored, int count, int batch>
  MBQ_HD void results(const Pack<T, count> (&x)[batch], int64_t i, int64_t step) {
    const RoundClamp<float> quantizer = job.quantizer.template known<mirrored>();
#pragma unroll
    for (int b = 0; b < batch; ++b) {
      Pack<Result, count> to;
#pragma unroll
      for (int j = 0; j < count; ++j) {
        const float wide = static_cast<float>(x[b].at[j]), u = within_unit(quantizer.position(wide, limit));
        if (out == LsbOut::value) to.at[j] = static_cast<Result>(quantizer.value(u, wide, scale));
        if (out != LsbOut::residual && !counts) continue;
        const int residual = static_cast<int>(quantizer.residual(u));
        if (out == LsbOut::residual) to.at[j] = static_cast<Result>(residual);
        const unsigned size = residual < 0 ? -residual : residual;
        if (counts) found += size << 16 | (size != 0);
      }
      if (out != LsbOut::nothing) store(job.to + i + b * step, to);
    }
  }
};

// grad_x = grad + slope sign(B) d|x|/dx, grad 0 where there is none; slope from the gradient of the penalty, which lies
// on the device.
template <class T>
struct LsbGradientJob {
  Walk walk;
  bool aligned;
  RoundClamp<float> quantizer;
  const float* limit;
  const float* grad_penalty;
  const T* x;
  const T* grad;
  T* grad_x;
};

template <bool task, class T>
struct LsbGradientVisit {
  const LsbGradientJob<T>& job;
  float limit, slope;

  MBQ_HD LsbGradientVisit(const LsbGradientJob<T>& j, int64_t channel)
      : job(j), limit(limit_at(j.limit, channel)), slope(lsb_slope(*j.grad_penalty, limit, j.quantizer.factor)) {}

  template <int count, int batch>
  MBQ_HD void at(int64_t i, int64_t step) const {
    Pack<T, count> x[batch], grad[batch];
#pragma unroll
    for (int b = 0; b < batch; ++b) {
      x[b] = load<T, count>(job.x + i + b * step);
      if (task) grad[b] = load<T, count>(job.grad + i + b * step);
    }
    if (job.quantizer.mirrored()) {
      results<true, count, batch>(x, grad, i, step);
    } else {
      results<false, count, batch>(x, grad, i, step);
    }
  }

  template <bool mirrored, int count, int batch>
  MBQ_HD void results(const Pack<T, count> (&x)[batch], const Pack<T, count> (&grad)[batch], int64_t i,
                      int64_t step) const {
    const RoundClamp<float> quantizer = job.quantizer.template known<mirrored>();
#pragma unroll
    for (int b = 0; b < batch; ++b) {
      Pack<T, count> grad_x;
#pragma unroll
      for (int j = 0; j < count; ++j)
        grad_x.at[j] = static_cast<T>(quantizer.gradient(task ? static_cast<float>(grad[b].at[j]) : 0.0f,
                                                         static_cast<float>(x[b].at[j]), limit, slope));
      store(job.grad_x + i + b * step, grad_x);
    }
  }
};

}  // namespace mbq::cuda
