// Tensors in, tensors out, for every quantizer with per-channel parameters: memory order, dtypes, checks, the loop.
#pragma once

#include "../quantizers.h"
#include "loop.h"

namespace mbq {

// The quantizers with their parameters in the arithmetic's dtype. Values are looked at here, on the host, before the
// loop.
template <template <class> class Quantizer, class W>
std::vector<Level<Quantizer<W>, W>> levels_of(const Quantizers& q) {
  const W* scale = static_cast<const W*>(q.scales.const_data_ptr());
  const W* shift = q.shifts ? static_cast<const W*>(q.shifts->const_data_ptr()) : nullptr;
  for (int64_t i = 0; i < q.scales.numel(); ++i) {
    check(scale[i] > 0 && std::isfinite(scale[i]), q.op, ": scale must be finite and > 0, got ", scale[i], " (element ",
          i, ")");
    check(!Quantizer<W>::integer_shift || !std::isnan(shift[i]), q.op, ": zero_point must not be NaN (element ", i,
          ")");
  }
  std::vector<Level<Quantizer<W>, W>> levels;
  for (const Bounds<double>& range : q.ranges) {
    levels.push_back({{{static_cast<W>(range.lo), static_cast<W>(range.hi)}}, scale, shift});
    scale += q.channels();
    if (shift) shift += q.channels();
  }
  return levels;
}

// One x_hat of `out_dtype` (x's by default) per quantizer, in x's memory order.
template <template <class> class Quantizer>
std::vector<Tensor> quantize_forward(const Quantizers& quantizers, const Tensor& given_x, std::optional<int64_t> axis,
                                     std::optional<ScalarType> out_dtype) {
  const Tensor x = dense(given_x);
  const Layout layout = layout_of(quantizers.op, x, axis);
  std::vector<Tensor> outs;
  for (size_t k = 0; k < quantizers.ranges.size(); ++k)
    outs.push_back(allocate_like(x, out_dtype.value_or(x.scalar_type())));
  quantizers.check_against(x, layout, outs);
  dispatch_floats(quantizers.op, x.scalar_type(), [&](auto storage) {
    using T = decltype(storage);
    using W = wide_t<T>;
    const auto levels = levels_of<Quantizer, W>(quantizers);
    dispatch_floats(quantizers.op, outs[0].scalar_type(), [&](auto out_storage) {
      using Out = decltype(out_storage);
      if constexpr (std::is_same_v<wide_t<Out>, W>) {
        std::vector<Out*> to;
        for (const Tensor& out : outs) to.push_back(static_cast<Out*>(out.mutable_data_ptr()));
        forward_loop(layout, levels, static_cast<const T*>(x.const_data_ptr()), to);
      } else {
        check(false, quantizers.op, ": x and the result must both be float64 or neither");
      }
    });
  });
  return outs;
}

// sums (K, C) times factors (K), as a tensor like `parameter`, whose dtype W is.
template <class W>
Tensor parameter_gradient(const Tensor& parameter, const std::vector<double>& sums,
                          const std::vector<double>& factors) {
  Tensor gradient = allocate_like(parameter);
  W* out = static_cast<W*>(gradient.mutable_data_ptr());
  const size_t channels = sums.size() / factors.size();
  for (size_t i = 0; i < sums.size(); ++i) out[i] = static_cast<W>(factors[i / channels] * sums[i]);
  return gradient;
}

// Gradients of x, of the scales and of the shifts (no elements where there are none).
template <template <class> class Quantizer>
std::tuple<Tensor, Tensor, Tensor> quantize_backward(const Quantizers& quantizers,
                                                     const std::vector<Tensor>& given_grads, const Tensor& given_x,
                                                     std::optional<int64_t> axis, std::optional<double> grad_factor) {
  const Tensor x = dense(given_x), grad_x = allocate_like(x);
  std::vector<Tensor> grads;
  for (const Tensor& grad : given_grads) grads.push_back(aligned(quantizers.op, grad, x));
  const Layout layout = layout_of(quantizers.op, x, axis);
  quantizers.check_against(x, layout, grads);
  const std::vector<double> factors = quantizers.grad_factors(layout, grad_factor);
  Tensor grad_scales, grad_shifts = none_like(quantizers.scales);
  dispatch_floats(quantizers.op, x.scalar_type(), [&](auto storage) {
    using T = decltype(storage);
    using W = wide_t<T>;
    const auto levels = levels_of<Quantizer, W>(quantizers);
    dispatch_floats(quantizers.op, grads[0].scalar_type(), [&](auto grad_storage) {
      using Grad = decltype(grad_storage);
      if constexpr (std::is_same_v<wide_t<Grad>, W>) {
        std::vector<const Grad*> from;
        for (const Tensor& grad : grads) from.push_back(static_cast<const Grad*>(grad.const_data_ptr()));
        const ChannelSums sums = backward_loop(layout, levels, from, static_cast<const T*>(x.const_data_ptr()),
                                               static_cast<T*>(grad_x.mutable_data_ptr()));
        grad_scales = parameter_gradient<W>(quantizers.scales, sums.scale, factors);
        if (quantizers.shifts) grad_shifts = parameter_gradient<W>(*quantizers.shifts, sums.shift, factors);
      } else {
        check(false, quantizers.op, ": x and the gradient must both be float64 or neither");
      }
    });
  });
  return {grad_x, grad_scales, grad_shifts};
}

}  // namespace mbq
