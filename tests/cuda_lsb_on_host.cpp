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

template <int width, class Visit>
void walk_task(const Walk& walk, int64_t task, int lane, const Arguments& a, Visit& visit) {
  if (walk.by_run)
    walk_run<width, 4>(walk, task, lane, a.lanes, a.aligned, visit);
  else
    walk_column(walk, task, visit);
}

template <class Body>
void each_lane(const Arguments& a, const Walk& walk, const LsbQuantizer& quantizer, const float* grad_penalty,
               const Body& body) {
  for (int64_t task = 0; task < walk.tasks; ++task)
    for (int lane = 0; lane < (walk.by_run ? a.lanes : 1); ++lane)
      quantizer.with_channel(walk.channel_of(task), grad_penalty,
                             [&](const auto& channel) { body(channel, task, lane); });
}

template <LsbOut out, bool counts, class T, class Result>
void forward(const Arguments& a) {
  const Walk walk(a.outer, a.channels, a.inner);
  each_lane(a, walk, {quantizer_of(a), a.limit}, nullptr, [&](const auto& channel, int64_t task, int lane) {
    RoundClampVisit<out, counts, std::decay_t<decltype(channel)>, T, Result> visit{channel, static_cast<T*>(a.x),
                                                                                   static_cast<Result*>(a.to)};
    walk_task<kPack<T>>(walk, task, lane, a, visit);
    a.counts[0] += static_cast<int64_t>(visit.sums.size);
    a.counts[1] += static_cast<int64_t>(visit.sums.nonzero);
  });
}

template <bool with_task, class T>
void backward(const Arguments& a) {
  const Walk walk(a.outer, a.channels, a.inner);
  const LsbQuantizer quantizer(quantizer_of(a), a.limit);
  const LsbGradientJob<T> job{walk,
                              a.aligned,
                              quantizer,
                              a.grad_penalty,
                              static_cast<T*>(a.x),
                              static_cast<T*>(a.grad),
                              static_cast<T*>(a.grad_x)};
  each_lane(a, walk, quantizer, a.grad_penalty, [&](const auto& channel, int64_t task, int lane) {
    const LsbGradientVisit<with_task, std::decay_t<decltype(channel)>, T> visit{channel, job};
    walk_task<kPack<T>>(walk, task, lane, a, visit);
  });
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
