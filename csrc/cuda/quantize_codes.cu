// quantize_codes on CUDA: code = clamp(rint((x - offset) / scale), lo, hi), the codes of fake_quantize.
#include "cuda/engine/driver.cuh"

namespace mbq::cuda {
namespace {

template <class T, class Code>
void quantize(const Quantizers& q, const Tensor& codes) {
  const Launch launch(q.op, q.x);
  dispatch_loop<QuantizeCodes>(q, [&](auto slots, auto plain) {
    using Work = Job<QuantizeCodes, T, Code, slots>;
    Work job;
    fill_job<QuantizeCodes>(job, q, {codes});
    launch_all(launch, forward_kernel<Work, plain, 1>, std::vector{job},
               [](const Work& one) { return one.tiles.blocks(); });
  });
}

Tensor quantize_codes_forward(const Tensor& x, const Tensor& scale, const std::optional<Tensor>& offset, int64_t bits,
                              bool is_signed, std::optional<int64_t> axis) {
  const char* op = "quantize_codes";
  const Quantizers q(op, x, axis, ranges_of(op, {bits}, is_signed), Rows(scale), Rows(offset));
  const Tensor codes = allocate_like(q.x, is_signed ? ScalarType::Char : ScalarType::Byte);
  q.check_against({codes});
  dispatch_pair<true>(op, x.scalar_type(), x.scalar_type(), [&](auto storage, auto) {
    if (is_signed) {
      quantize<decltype(storage), int8_t>(q, codes);
    } else {
      quantize<decltype(storage), uint8_t>(q, codes);
    }
  });
  return codes;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, CUDA, m) { m.impl("quantize_codes_forward", TORCH_BOX(&quantize_codes_forward)); }

}  // namespace mbq::cuda
