// round_clamp_lsb: the value of round_clamp with the penalty and rate of lsb_penalty from one read, and the sum of
// their gradients in one pass (Han et al., 2025, arXiv 2507.22349).
#include "lsb_driver.h"

namespace MBQ_NAMESPACE {
namespace {

constexpr const char* kOp = "round_clamp_lsb";

std::tuple<Tensor, Tensor, Tensor> round_clamp_lsb_forward(const Tensor& x, const std::optional<Tensor>& limit,
                                                           int64_t bits, int64_t k, std::optional<int64_t> axis,
                                                           bool sign_magnitude) {
  const Lsbs lsbs = lsb_forward<LsbOut::value, true>({Weight(kOp, x, limit, axis, bits, k, sign_magnitude)});
  return {lsbs.outs[0], lsbs.counts[0], lsbs.counts[1]};
}

Tensor round_clamp_lsb_backward(const Tensor& grad, const Tensor& grad_penalty, const Tensor& x,
                                const std::optional<Tensor>& limit, int64_t bits, int64_t k,
                                std::optional<int64_t> axis, bool sign_magnitude, bool unit_gradient) {
  return lsb_backward<true>({Weight(kOp, x, limit, axis, bits, k, sign_magnitude)}, {grad}, grad_penalty,
                            unit_gradient)[0];
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, MBQ_KEY, m) {
  m.impl("round_clamp_lsb_forward", TORCH_BOX(&round_clamp_lsb_forward));
  m.impl("round_clamp_lsb_backward", TORCH_BOX(&round_clamp_lsb_backward));
}

}  // namespace MBQ_NAMESPACE
