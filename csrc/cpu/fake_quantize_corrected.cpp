// fake_quantize_corrected on the CPU: one read of x for the moments of all bit-widths' codes and of the reference, a
// second one for code * scale' + offset' (Banner et al., 2019, arXiv 1810.05723, eq. 12-13, folded); a fused backward.
#include "cpu/engine/driver.h"
#include "cpu/engine/moments.h"
#include "cpu/engine/two_steps.h"
#include "math/correction.h"

namespace mbq {
namespace {

Quantizers quantizers(const Tensor& x, const Tensor& scales, const std::optional<Tensor>& offsets,
                      const std::optional<Tensor>& scale_units, const std::optional<Tensor>& scale_floors,
                      const std::vector<int64_t>& bits, bool is_signed, std::optional<int64_t> axis) {
  const char* op = "fake_quantize_corrected";
  const Quantizers q(op, x, axis, ranges_of(op, bits, is_signed), Rows(scales), Rows(offsets), Rows(scale_units),
                     Rows(scale_floors));
  q.check_parameters();
  return q;
}

// Levels of another functor with the quantizers' own parameters.
template <template <class> class To, class W>
std::vector<Level<To<W>, W>> levels_as(const Quantizers& q, EffectiveScales<W>& memory) {
  std::vector<Level<To<W>, W>> levels;
  for (const Level<FakeQuantize<W>, W>& level : levels_of<FakeQuantize, W>(q, memory))
    levels.push_back({{level.quantizer.range}, level.scale, level.shift});
  return levels;
}

// Level k of Functor with rows of what fold returned (factor, scale', offset') as its parameters.
template <class Functor, class W>
std::vector<Level<Functor, W>> folded_levels(const Quantizers& q, const Tensor& folded, int scale, int shift) {
  const int64_t levels = static_cast<int64_t>(q.ranges.size()), channels = q.layout.channels;
  const W* rows = static_cast<const W*>(folded.const_data_ptr());
  std::vector<Level<Functor, W>> result;
  for (int64_t k = 0; k < levels; ++k)
    result.push_back({{}, rows + (scale * levels + k) * channels, rows + (shift * levels + k) * channels});
  return result;
}

Tensor checked_fold(const Quantizers& q, const Tensor& folded) {
  const ScalarType dtype = q.x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  check(folded.numel() == static_cast<int64_t>(3 * q.ranges.size()) * q.layout.channels &&
            folded.scalar_type() == dtype && same_device(folded, q.x),
        q.op, ": what was folded must have three numbers per bit-width and channel");
  return make_contiguous(folded);
}

template <class W>
void write_fold(const Quantizers& q, const std::vector<Level<CodeSums<W>, W>>& levels,
                const SumsWork<CodeSums<W>, W>& codes, const std::vector<Moments>& reference, W* to) {
  const int64_t channels = q.layout.channels, row = static_cast<int64_t>(q.ranges.size()) * channels;
  for (size_t k = 0; k < levels.size(); ++k)
    for (int64_t c = 0; c < channels; ++c, ++to) {
      const Moments of_codes =
          moments_of(0, codes.sum(codes.sums, k, c), codes.sum(codes.squares, k, c), q.layout.outer * q.layout.inner);
      const Folded<W> folded = fold(of_codes, reference[c], levels[k].scale[c]);
      to[0] = folded.factor;
      to[row] = folded.scale;
      to[2 * row] = folded.offset;
    }
}

Tensor fake_quantize_corrected_fold(const Tensor& x, const Tensor& scales, const std::optional<Tensor>& offsets,
                                    const std::optional<Tensor>& scale_units, const std::optional<Tensor>& scale_floors,
                                    const std::optional<Tensor>& reference, std::vector<int64_t> bits, bool is_signed,
                                    std::optional<int64_t> axis) {
  const Quantizers q = quantizers(x, scales, offsets, scale_units, scale_floors, bits, is_signed, axis);
  Tensor folded = torch::stable::new_empty(scales, {3, static_cast<int64_t>(q.ranges.size()), q.layout.channels});
  check(!reference || (same_device(*reference, x) && reference->numel() == x.numel() && reference->dim() == x.dim() &&
                       (reference->scalar_type() == ScalarType::Double) == (x.scalar_type() == ScalarType::Double)),
        q.op, ": reference must have x's shape and device, and be float64 exactly when x is");
  const ScalarType other = reference ? reference->scalar_type() : x.scalar_type();
  dispatch_pair(q.op, x.scalar_type(), other, [&](auto storage, auto other_storage) {
    using T = decltype(storage);
    using W = wide_t<T>;
    const T* values = static_cast<const T*>(q.x.const_data_ptr());
    EffectiveScales<W> memory;
    const std::vector<Level<CodeSums<W>, W>> levels = levels_as<CodeSums, W>(q, memory);
    const SumsWork<CodeSums<W>, W> codes(q.layout, levels);
    std::vector<Moments> kept;
    if (reference) {
      kept = moments_of_tensor<decltype(other_storage)>(q.op, dense(*reference), axis);
      sums_loop(q.layout, values, codes);
    } else {
      const std::vector<W> pivot = pivots<T>(q.layout, values);
      const SumsWork<DeviationSums<W>, W> deviations(q.layout, {{{}, pivot.data(), nullptr}});
      sums_loop(q.layout, values, codes, deviations);
      kept = moments(pivot, deviations);
    }
    write_fold(q, levels, codes, kept, static_cast<W*>(folded.mutable_data_ptr()));
  });
  return folded;
}

std::vector<Tensor> fake_quantize_corrected_forward(const Tensor& x, const Tensor& scales,
                                                    const std::optional<Tensor>& offsets,
                                                    const std::optional<Tensor>& scale_units,
                                                    const std::optional<Tensor>& scale_floors, const Tensor& given,
                                                    std::vector<int64_t> bits, bool is_signed,
                                                    std::optional<int64_t> axis, std::optional<ScalarType> out_dtype) {
  const Quantizers q = quantizers(x, scales, offsets, scale_units, scale_floors, bits, is_signed, axis);
  const Tensor folded = checked_fold(q, given);
  const ScalarType dtype = out_dtype.value_or(x.scalar_type());
  std::vector<Tensor> outs;
  for (size_t k = 0; k < q.ranges.size(); ++k) outs.push_back(allocate_like(q.x, dtype));
  q.check_against(outs);
  dispatch_pair(q.op, x.scalar_type(), dtype, [&](auto storage, auto out_storage) {
    using T = decltype(storage);
    using W = wide_t<T>;
    std::vector<TwoStepWork<Encode<W>, Decode<W>, T, decltype(out_storage)>> works;
    EffectiveScales<W> memory;
    works.emplace_back(q.layout, levels_as<Encode, W>(q, memory), folded_levels<Decode<W>, W>(q, folded, 1, 2),
                       static_cast<const T*>(q.x.const_data_ptr()), pointers<decltype(out_storage)*>(outs));
    forward_loop(works);
  });
  return outs;
}

// Upstream gradients times the factor of their channel.
template <class W>
struct TimesFactor {
  Work<Scaled<W>, W> factors;

  const W* operator()(size_t k, const Block& block, const W* grad, W* buffer) const {
    if (factors.walk.by_run) {
      run<ValuesByRun<Scaled<W>, W>>(factors.at(k, block), block, grad, buffer);
    } else {
      run<ValuesByColumn<Scaled<W>, W>>(factors.at(k, block), block, grad, buffer);
    }
    return buffer;
  }
};

std::tuple<Tensor, Tensor, Tensor> fake_quantize_corrected_backward(
    std::vector<Tensor> grads, const Tensor& x, const Tensor& scales, const std::optional<Tensor>& offsets,
    const std::optional<Tensor>& scale_units, const std::optional<Tensor>& scale_floors, const Tensor& given,
    std::vector<int64_t> bits, bool is_signed, std::optional<int64_t> axis, std::optional<double> grad_factor) {
  const Quantizers q = quantizers(x, scales, offsets, scale_units, scale_floors, bits, is_signed, axis);
  const Tensor folded = checked_fold(q, given);
  Gradients gradients;
  check(!grads.empty(), q.op, ": needs one gradient per bit-width (", q.ranges.size(), "), got 0");
  for (Tensor& grad : grads) grad = aligned(q.op, grad, q.x);
  q.check_against(grads);
  const Tensor grad_x = allocate_like(q.x);
  dispatch_pair(q.op, x.scalar_type(), grads[0].scalar_type(), [&](auto storage, auto grad_storage) {
    using T = decltype(storage);
    using Grad = decltype(grad_storage);
    using W = wide_t<T>;
    std::vector<BackwardWork<FakeQuantize<W>, T, Grad, W, TimesFactor<W>>> works;
    EffectiveScales<W> memory;
    works.emplace_back(q.layout, levels_of<FakeQuantize, W>(q, memory), static_cast<const T*>(q.x.const_data_ptr()),
                       pointers<const Grad*>(grads), static_cast<T*>(grad_x.mutable_data_ptr()),
                       TimesFactor<W>{{q.layout, folded_levels<Scaled<W>, W>(q, folded, 0, 0)}});
    backward_loop(works);
    const std::vector<double> factors = q.grad_factors(grad_factor);
    append_gradients<W>(q.scales, q.units, works[0], works[0].to_scale, factors, gradients.scales);
    if (!q.shifts.absent())
      append_gradients<W>(q.shifts, Rows(), works[0], works[0].to_shift, factors, gradients.shifts);
  });
  return {grad_x, gradients.scales[0], gradients.shifts.empty() ? none_like(scales) : gradients.shifts[0]};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mbq, CPU, m) {
  m.impl("fake_quantize_corrected_fold", TORCH_BOX(&fake_quantize_corrected_fold));
  m.impl("fake_quantize_corrected_forward", TORCH_BOX(&fake_quantize_corrected_forward));
  m.impl("fake_quantize_corrected_backward", TORCH_BOX(&fake_quantize_corrected_backward));
}

}  // namespace mbq
