// el2n on the CPU: sqrt(sum_{j != t} p_j^2 + (sum_{j != t} p_j)^2) of every row (Paul et al., 2021, arXiv 2107.07075).
#include <utility>

#include "cpu/engine/logit_rows.h"

namespace mbq {
namespace {

constexpr int64_t kFewClasses = 64;

// Of kLanes rows side by side: class c of row j lies at c * kLanes + j, -inf where it is the target.
struct NormsOfFew {
  template <Isa level>
  MBQ_HD void operator()(const float* __restrict x, const float* __restrict logit, int64_t classes,
                         float* __restrict out) const {
    alignas(64) float top[kLanes], sum[kLanes] = {}, squares[kLanes] = {};
    for (int64_t j = 0; j < kLanes; ++j) top[j] = x[j];
    for (int64_t c = 1; c < classes; ++c)
      for (int64_t j = 0; j < kLanes; ++j) top[j] = x[c * kLanes + j] > top[j] ? x[c * kLanes + j] : top[j];
    for (int64_t c = 0; c < classes; ++c)
      for (int64_t j = 0; j < kLanes; ++j) {
        const float e = exponential<kFused<level>>(x[c * kLanes + j] - (top[j] == -INFINITY ? 0.0f : top[j]));
        sum[j] += e;
        squares[j] += e * e;
      }
    for (int64_t j = 0; j < kLanes; ++j)
      out[j] = row_result<kFused<level>>(RowSums<float>{top[j], sum[j], squares[j]}, logit[j]).el2n;
  }
};

// A row of few classes fills no vector, and what is done once a row takes longest: kLanes rows at a time.
template <class T>
void norms_of_few(const LogitRows& rows, float* to) {
  const T* x = static_cast<const T*>(rows.logits.const_data_ptr());
  rows.for_each_range([&](int64_t begin, int64_t end) {
    alignas(64) float block[kFewClasses * kLanes], logit[kLanes], norms[kLanes];
    for (int64_t first = begin; first < end; first += kLanes) {
      int64_t targets[kLanes];
      for (int64_t j = 0; j < kLanes; ++j) {
        const int64_t row = std::min(first + j, end - 1);  // the last one fills up the lanes
        targets[j] = rows.target(row);
        for (int64_t c = 0; c < rows.classes; ++c)
          block[c * kLanes + j] = static_cast<float>(x[row * rows.classes + c]);
        logit[j] = targets[j] < 0 ? 0.0f : std::exchange(block[targets[j] * kLanes + j], -INFINITY);
      }
      run<NormsOfFew>(static_cast<const float*>(block), static_cast<const float*>(logit), rows.classes,
                      static_cast<float*>(norms));
      for (int64_t j = 0; j < std::min(kLanes, end - first); ++j) to[first + j] = targets[j] < 0 ? 0.0f : norms[j];
    }
  });
}

Tensor el2n_forward(const Tensor& logits, const Tensor& targets, int64_t ignore_index) {
  const LogitRows rows("el2n", logits, targets, ignore_index);
  const ScalarType dtype = logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor norms = torch::stable::new_empty(logits, {rows.rows}, dtype);
  dispatch_floats(rows.op, logits.scalar_type(), [&](auto storage) {
    using T = decltype(storage);
    auto* to = static_cast<wide_t<T>*>(norms.mutable_data_ptr());
    if constexpr (!std::is_same_v<T, double>) {
      if (rows.classes <= kFewClasses) return norms_of_few<T>(rows, to);
    }
    rows.for_each<T>([&](int64_t row, const T* x, int64_t target) {
      to[row] = 0;
      if (target < 0) return;
      const double logit = static_cast<wide_t<T>>(x[target]);
      to[row] = static_cast<wide_t<T>>(row_result(row_sums(x, rows.classes, target), logit).el2n);
    });
  });
  return norms;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, CPU, m) { m.impl("el2n_forward", TORCH_BOX(&el2n_forward)); }

}  // namespace mbq
