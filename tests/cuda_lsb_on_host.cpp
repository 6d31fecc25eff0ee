// The visits of csrc/cuda/engine/lsb_visit.cuh on the host, some lanes a warp: for tests/test_cuda_lsb_on_host.py.
#include <torch/headeronly/util/BFloat16.h>

#include "cuda/engine/lsb_visit.cuh"

namespace {

using namespace mbq;
using namespace mbq::cuda;

struct Arguments {
  void *x, *to, *grad, *grad_x;
  float *limit, *grad_penalty;
  int64_t* counts;  // the sum of |B| and the number of B that are not 0
  int64_t outer, channels, inner;
  int bits, k, lanes;
  bool aligned, sign_magnitude, unit_gradient;
};

RoundClamp<float> quantizer_of(const Arguments& a) {
  const UnitForm<float> form = unit_form<float>(a.limit, a.sign_magnitude);
  const float steps = static_cast<float>(1 << a.bits);
  return {form, steps, static_cast<float>(1 << (a.bits - a.k)), static_cast<float>(1 << a.k),
          a.unit_gradient ? form.half : form.half * steps};
}

template <LsbOut out, bool counts, class T, class Result>
void forward(const Arguments& a) {
  const RoundClampJob<T, Result> job{
      Walk(a.outer, a.channels, a.inner), a.aligned, quantizer_of(a), a.limit, static_cast<T*>(a.x),
      static_cast<Result*>(a.to),         nullptr};
  for (int64_t task = 0; task < job.walk.tasks; ++task) {
    for (int lane = 0; lane < (job.walk.by_run ? a.lanes : 1); ++lane) {
      RoundClampVisit<out, counts, T, Result> visit(job, job.walk.channel_of(task));
      if (job.walk.by_run)
        walk_run<kPack<Result>, 4>(job.walk, task, lane, a.lanes, a.aligned, visit);
      else
        walk_column(job.walk, task, visit);
      a.counts[0] += visit.found >> 16, a.counts[1] += visit.found & 0xffff;
    }
  }
}

template <bool with_task, class T>
void backward(const Arguments& a) {
  const LsbGradientJob<T> job{Walk(a.outer, a.channels, a.inner),
                              a.aligned,
                              quantizer_of(a),
                              a.limit,
                              a.grad_penalty,
                              static_cast<T*>(a.x),
                              static_cast<T*>(a.grad),
                              static_cast<T*>(a.grad_x)};
  for (int64_t task = 0; task < job.walk.tasks; ++task) {
    LsbGradientVisit<with_task, T> visit(job, job.walk.channel_of(task));
    if (!job.walk.by_run) walk_column(job.walk, task, visit);
    for (int lane = 0; job.walk.by_run && lane < a.lanes; ++lane)
      walk_run<kPack<T>, 2>(job.walk, task, lane, a.lanes, a.aligned, visit);
  }
}

}  // namespace

#define MBQ_HOST(name, T)                                                                               \
  extern "C" void round_clamp_##name(Arguments* a) { forward<LsbOut::value, false, T, T>(*a); }         \
  extern "C" void extract_lsb_##name(Arguments* a) { forward<LsbOut::residual, false, T, int8_t>(*a); } \
  extern "C" void lsb_penalty_##name(Arguments* a) { forward<LsbOut::nothing, true, T, T>(*a); }        \
  extern "C" void round_clamp_lsb_##name(Arguments* a) { forward<LsbOut::value, true, T, T>(*a); }      \
  extern "C" void lsb_penalty_backward_##name(Arguments* a) { backward<false, T>(*a); }                 \
  extern "C" void round_clamp_lsb_backward_##name(Arguments* a) { backward<true, T>(*a); }
MBQ_HOST(float32, float)
MBQ_HOST(bfloat16, c10::BFloat16)
