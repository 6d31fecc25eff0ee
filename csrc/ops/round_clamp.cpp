// round_clamp: in the offset form limit * (2 c - 2^bits) / 2^bits, c = min(rint(2^bits u), 2^bits - 1),
// u = x / limit / 2 + 1/2; in the sign-magnitude form sign(x) limit c / (2^bits - 1), u = |x| / limit
// (Han et al., 2025, arXiv 2507.22349).
#include "lsb_driver.h"

namespace MBQ_NAMESPACE {
namespace {

Tensor round_clamp_forward(const Tensor& x, const std::optional<Tensor>& limit, int64_t bits,
                           std::optional<int64_t> axis, bool sign_magnitude) {
  return lsb_forward<LsbOut::value, false>({Weight("round_clamp", x, limit, axis, bits, 0, sign_magnitude)}).outs[0];
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, MBQ_KEY, m) { m.impl("round_clamp_forward", TORCH_BOX(&round_clamp_forward)); }

}  // namespace MBQ_NAMESPACE
