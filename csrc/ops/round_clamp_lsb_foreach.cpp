// round_clamp_lsb_foreach: round_clamp_lsb of many tensors, each with its own bits and k, all in one parallel loop or
// launch.
#include "lsb_driver.h"

namespace MBQ_NAMESPACE {
namespace {

constexpr const char* kOp = "round_clamp_lsb_foreach";

std::tuple<std::vector<Tensor>, Tensor, Tensor> round_clamp_lsb_foreach_forward(
    std::vector<Tensor> xs, std::vector<Tensor> limits, std::vector<int64_t> bits, std::vector<int64_t> k,
    std::vector<int64_t> axes, bool sign_magnitude) {
  const Lsbs lsbs =
      lsb_forward<LsbOut::value, true, true>(weights_of_each(kOp, xs, limits, bits, k, axes, sign_magnitude));
  return {lsbs.outs, lsbs.counts[0], lsbs.counts[1]};
}

std::vector<Tensor> round_clamp_lsb_foreach_backward(std::vector<Tensor> grads, const Tensor& grad_penalties,
                                                     std::vector<Tensor> xs, std::vector<Tensor> limits,
                                                     std::vector<int64_t> bits, std::vector<int64_t> k,
                                                     std::vector<int64_t> axes, bool sign_magnitude,
                                                     bool unit_gradient) {
  return lsb_backward<true, true>(weights_of_each(kOp, xs, limits, bits, k, axes, sign_magnitude), grads,
                                  grad_penalties, unit_gradient);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, MBQ_KEY, m) {
  m.impl("round_clamp_lsb_foreach_forward", TORCH_BOX(&round_clamp_lsb_foreach_forward));
  m.impl("round_clamp_lsb_foreach_backward", TORCH_BOX(&round_clamp_lsb_foreach_backward));
}

}  // namespace MBQ_NAMESPACE
