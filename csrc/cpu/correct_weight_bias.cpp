// correct_weight_bias on the CPU: y = factor * (w_quant - mean) + mean(w_ref), factor = sd(w_ref) / (sd(w_quant) + eps)
// (Banner et al., 2019, arXiv 1810.05723, eq. 12-13).
#include "cpu/engine/driver.h"
#include "cpu/engine/moments.h"
#include "cpu/engine/two_steps.h"

namespace mbq {
namespace {

constexpr const char* kOp = "correct_weight_bias";

// (6, channels): factor, centre, shift, sd(w_quant), mean(w_ref), sd(w_ref)
template <class W>
void write_rows(const std::vector<Moments>& quant, const std::vector<Moments>& ref, double eps, W* rows) {
  const size_t channels = quant.size();
  for (size_t c = 0; c < channels; ++c) {
    const double factor = quant[c].constant() ? 0.0 : ref[c].deviation / (quant[c].deviation + eps);
    const W centre = static_cast<W>(quant[c].mean);  // as it is taken off; what its rounding leaves goes into the shift
    const double shifted = ref[c].mean + factor * (centre - quant[c].mean);
    const double row[] = {factor, centre, shifted, quant[c].deviation, ref[c].mean, ref[c].deviation};
    for (size_t r = 0; r < 6; ++r) rows[r * channels + c] = static_cast<W>(row[r]);
  }
}

std::tuple<Tensor, Tensor> correct_weight_bias_forward(const Tensor& w_quant, const Tensor& w_ref,
                                                       std::optional<int64_t> axis, double eps) {
  const Tensor quant = dense(w_quant), ref = dense(w_ref);
  const Layout layout = layout_of(kOp, quant, axis);
  check(same_device(w_quant, w_ref) && w_quant.is_cpu() &&
            std::equal(w_quant.sizes().begin(), w_quant.sizes().end(), w_ref.sizes().begin(), w_ref.sizes().end()),
        kOp, ": w_ref must have w_quant's shape and device");
  const bool wide = w_quant.scalar_type() == ScalarType::Double;
  const Tensor out = allocate_like(quant);
  Tensor rows = torch::stable::new_empty(quant, {6, layout.channels}, wide ? ScalarType::Double : ScalarType::Float);
  dispatch_pair(kOp, quant.scalar_type(), ref.scalar_type(), [&](auto storage, auto ref_storage) {
    using T = decltype(storage);
    using W = wide_t<T>;
    W* row = static_cast<W*>(rows.mutable_data_ptr());
    write_rows(moments_of_tensor<T>(kOp, quant, axis), moments_of_tensor<decltype(ref_storage)>(kOp, ref, axis), eps,
               row);
    std::vector<TwoStepWork<Centred<W>, Decode<W>, T, T>> works;
    works.emplace_back(layout, std::vector<Level<Centred<W>, W>>{{{}, row + layout.channels, nullptr}},
                       std::vector<Level<Decode<W>, W>>{{{}, row, row + 2 * layout.channels}},
                       static_cast<const T*>(quant.const_data_ptr()),
                       std::vector<T*>{static_cast<T*>(out.mutable_data_ptr())});
    forward_loop(works);
  });
  return {out, rows};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, CPU, m) {
  m.impl("correct_weight_bias_forward", TORCH_BOX(&correct_weight_bias_forward));
}

}  // namespace mbq
