// lsb_penalty: sum |B| and the share of B that is not 0, B of extract_lsb, and the gradient grad * 2^bits * sign(B) *
// du/dx (Han et al., 2025, arXiv 2507.22349).
#include "lsb_driver.h"

namespace MBQ_NAMESPACE {
namespace {

constexpr const char* kOp = "lsb_penalty";

std::tuple<Tensor, Tensor> lsb_penalty_forward(const Tensor& x, const std::optional<Tensor>& limit, int64_t bits,
                                               int64_t k, std::optional<int64_t> axis, bool sign_magnitude) {
  const Lsbs lsbs = lsb_forward<LsbOut::nothing, true>({Weight(kOp, x, limit, axis, bits, k, sign_magnitude)});
  return {lsbs.counts[0], lsbs.counts[1]};
}

Tensor lsb_penalty_backward(const Tensor& grad, const Tensor& x, const std::optional<Tensor>& limit, int64_t bits,
                            int64_t k, std::optional<int64_t> axis, bool sign_magnitude, bool unit_gradient) {
  return lsb_backward<false>({Weight(kOp, x, limit, axis, bits, k, sign_magnitude)}, {}, grad, unit_gradient)[0];
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, MBQ_KEY, m) {
  m.impl("lsb_penalty_forward", TORCH_BOX(&lsb_penalty_forward));
  m.impl("lsb_penalty_backward", TORCH_BOX(&lsb_penalty_backward));
}

}  // namespace MBQ_NAMESPACE
