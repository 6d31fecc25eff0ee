// The visits of csrc/cuda/engine/lsb_visit.cuh on the host, thread after thread: for tests/test_cuda_lsb_on_host.py.
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
  int bits, k;
  bool aligned, sign_magnitude, unit_gradient;
};

RoundClamp<float> quantizer_of(const Arguments& a) {
  const UnitForm<float> form = unit_form<float>(a.limit, a.sign_magnitude);
  const float steps = static_cast<float>(1 << a.bits);
  return {form, steps, static_cast<float>(1 << (a.bits - a.k)), static_cast<float>(1 << a.k),
          a.unit_gradient ? form.half : form.half * steps};
}

// Every thread of every block visits its share; `batch` accesses each.
template <int batch, class T, class Make, class Done>
void each_thread(const Arguments& a, const Make& make, const Done& done) {
  constexpr int tile = kLsbTile<batch, T>;
  const Tiles tiles(a.outer, a.channels, a.inner, tile, kPack<T>, a.aligned);
  for (unsigned block = 0; block < tiles.blocks(); ++block) {
    for (unsigned thread = 0; thread < kTeamThreads; ++thread) {
      const Share share = tiles.template share<tile>(block, thread);
      if (share.left == 0) continue;
      auto visit = make(share.channel);
      walk_share<kPack<T>, batch, kPack<T>>(tiles, share, thread % kWarpLanes, visit);
      done(visit);
    }
  }
}

template <LsbOut out, bool counts, class T, class Result>
void forward(const Arguments& a) {
  const RoundClampJob<T, Result> job{
      {}, {quantizer_of(a), a.limit}, static_cast<T*>(a.x), static_cast<Result*>(a.to), {}};
  each_thread<kLsbBatch<out, T>, T>(
      a, [&](unsigned channel) { return RoundClampVisit<out, counts, T, Result>(job, channel); },
      [&](const auto& visit) {
        a.counts[0] += static_cast<int64_t>(visit.sums.size);
        a.counts[1] += static_cast<int64_t>(visit.sums.nonzero);
      });
}

template <bool task, class T>
void backward(const Arguments& a) {
  const LsbGradientJob<T> job{{},
                              {quantizer_of(a), a.limit},
                              a.grad_penalty,
                              static_cast<T*>(a.x),
                              static_cast<T*>(a.grad),
                              static_cast<T*>(a.grad_x)};
  each_thread<kLsbGradientBatch<task, T>, T>(
      a, [&](unsigned channel) { return LsbGradientVisit<task, T>(job, channel); }, [](const auto&) {});
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
