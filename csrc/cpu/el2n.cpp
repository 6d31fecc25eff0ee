// el2n on the CPU: sqrt(sum_{j != t} p_j^2 + (sum_{j != t} p_j)^2) of every row (Paul et al., 2021, arXiv 2107.07075).
#include "logit_rows.h"

namespace mbq {
namespace {

Tensor el2n_forward(const Tensor& logits, const Tensor& targets, int64_t ignore_index) {
  const LogitRows rows("el2n", logits, targets, ignore_index);
  const ScalarType dtype = logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor norms = torch::stable::new_empty(logits, {rows.rows}, dtype);
  dispatch_floats(rows.op, logits.scalar_type(), [&](auto storage) {
    using T = decltype(storage);
    auto* to = static_cast<wide_t<T>*>(norms.mutable_data_ptr());
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
