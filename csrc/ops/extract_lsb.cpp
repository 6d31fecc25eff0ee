// extract_lsb: B = c_bits(u) - 2^k c_(bits-k)(u), c the code of round_clamp (Han et al., 2025, arXiv 2507.22349).
#include "lsb_driver.h"

namespace MBQ_NAMESPACE {
namespace {

Tensor extract_lsb_forward(const Tensor& x, const std::optional<Tensor>& limit, int64_t bits, int64_t k,
                           std::optional<int64_t> axis, bool sign_magnitude) {
  return lsb_forward<LsbOut::residual, false>({Weight("extract_lsb", x, limit, axis, bits, k, sign_magnitude)}).outs[0];
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, MBQ_KEY, m) { m.impl("extract_lsb_forward", TORCH_BOX(&extract_lsb_forward)); }

}  // namespace MBQ_NAMESPACE
