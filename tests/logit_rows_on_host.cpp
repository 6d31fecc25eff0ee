// The visits of csrc/cuda/engine/logit_rows.cuh on the host, lane after lane: for tests/test_logit_rows_on_host.py.
#include <torch/headeronly/util/BFloat16.h>

#include "cuda/engine/logit_rows.cuh"

namespace {

using namespace mbq;
using namespace mbq::cuda;

struct Arguments {
  const void* x;
  const int64_t* targets;
  const float* grad;
  float *loss, *el2n;
  void* grad_x;
  int64_t rows, classes;
  float smoothing;
  int lanes;
  bool aligned;
};

// Every lane visits its part of a row; done(visit) is called behind each.
template <class T, class Visit, class Done>
void each_lane(const Arguments& a, int64_t row, const Visit& fresh, const Done& done) {
  for (int lane = 0; lane < a.lanes; ++lane) {
    Visit visit = fresh;
    walk_span<kPack<T>, 2>(row * a.classes, a.classes, lane, a.lanes, a.aligned, visit);
    done(visit);
  }
}

template <class T>
void rows(const Arguments& a) {
  const T* x = static_cast<const T*>(a.x);
  const float uniform = a.smoothing / static_cast<float>(a.classes);
  for (int64_t row = 0; row < a.rows; ++row) {
    const int64_t target = row * a.classes + a.targets[row];
    const float logit = static_cast<float>(x[target]);
    RowSums<float> sums;
    float mean = 0.0f, squares = 0.0f;
    each_lane<T>(a, row, AddToRow<T, true>{x, target}, [&](const auto& visit) {
      sums.merge(visit.sums);
      mean += visit.plain / static_cast<float>(a.classes);
    });
    RowResult<float> result = row_result(sums, logit);
    const RowGaps gaps{result.top, result.log_sum, a.smoothing, uniform};
    const float of_target = target_gap(logit, gaps.top, gaps.log_sum, a.smoothing, uniform);
    if (a.smoothing > 0.0f) {
      each_lane<T>(a, row, AddGaps<T>{x, target, gaps}, [&](const auto& visit) { squares += visit.squares; });
      result.loss = smoothed_loss(result, mean, a.smoothing);
      result.el2n = std::sqrt(squares + of_target * of_target);
    }
    a.loss[row] = result.loss;
    a.el2n[row] = result.el2n;
    each_lane<T>(a, row, WriteGaps<T>{x, static_cast<T*>(a.grad_x), target, gaps, a.grad[row], of_target, row % 3 != 2},
                 [](const auto&) {});
  }
}

}  // namespace

extern "C" void logit_rows_float32(const Arguments* a) { rows<float>(*a); }
extern "C" void logit_rows_bfloat16(const Arguments* a) { rows<c10::BFloat16>(*a); }
