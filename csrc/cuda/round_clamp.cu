// round_clamp on CUDA: limit * ((2 c - 2^bits) / top), c = min(rint(2^bits u), top), top = 2^bits - 1,
// u = x / limit / 2 + 1/2 (Han et al., 2025, arXiv 2507.22349).
#include "lsb.cuh"

namespace mbq::cuda {
namespace {

Tensor round_clamp_forward(const Tensor& x, const std::optional<Tensor>& limit, int64_t bits,
                           std::optional<int64_t> axis) {
  return lsb_forward<LsbOut::value, false>({Weight("round_clamp", x, limit, axis, bits, 0)}).outs[0];
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, CUDA, m) { m.impl("round_clamp_forward", TORCH_BOX(&round_clamp_forward)); }

}  // namespace mbq::cuda
