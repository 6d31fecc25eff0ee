// Tensors in, tensors out, for every quantizer with per-channel parameters: memory order, dtypes, then the launch.
#pragma once

#include "../quantizers.h"
#include "elementwise.cuh"
#include "launch.cuh"

namespace mbq {

inline bool on_16_bytes(const Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 == 0; }

// Calls body with a value of x's storage type; float64 is refused.
template <class Body>
void dispatch_gpu_floats(const char* op, ScalarType dtype, const Body& body) {
  dispatch_floats(op, dtype, [&](auto storage) {
    if constexpr (std::is_same_v<decltype(storage), double>) {
      check(false, op, ": float64 is for the CPU; CUDA takes float32, bfloat16 and float16");
    } else {
      body(storage);
    }
  });
}

template <template <class> class Quantizer, class T, class Other>
Job<Quantizer, T, Other> job_of(const Quantizers& q, const Tensor& x, const Layout& layout,
                                const std::vector<Tensor>& others) {
  const float* shift = q.shifts ? static_cast<const float*>(q.shifts->const_data_ptr()) : nullptr;
  Job<Quantizer, T, Other> job{Walk(layout.outer, layout.channels, layout.inner),
                               on_16_bytes(x),
                               static_cast<int>(q.ranges.size()),
                               {},
                               static_cast<const float*>(q.scales.const_data_ptr()),
                               shift,
                               static_cast<const T*>(x.const_data_ptr()),
                               {},
                               {},
                               nullptr,
                               nullptr,
                               nullptr};
  check(job.levels <= kMaxLevels, q.op, ": at most ", kMaxLevels, " bit-widths at once, got ", job.levels);
  for (int k = 0; k < job.levels; ++k) {
    job.quantizer[k].range = {static_cast<float>(q.ranges[k].lo), static_cast<float>(q.ranges[k].hi)};
    job.aligned = job.aligned && on_16_bytes(others[k]);
  }
  return job;
}

inline int64_t blocks_of(const Walk& walk) {
  return (walk.tasks * (walk.by_run ? kWarpLanes : 1) + kThreads - 1) / kThreads;
}

// One x_hat of `out_dtype` (x's by default) per quantizer, in x's memory order.
template <template <class> class Quantizer>
std::vector<Tensor> quantize_forward(const Quantizers& q, const Tensor& given_x, std::optional<int64_t> axis,
                                     std::optional<ScalarType> out_dtype) {
  const Launch launch(q.op, given_x);
  const Tensor x = dense(given_x);
  const Layout layout = layout_of(q.op, x, axis);
  std::vector<Tensor> outs;
  for (size_t k = 0; k < q.ranges.size(); ++k) outs.push_back(allocate_like(x, out_dtype.value_or(x.scalar_type())));
  q.check_against(x, layout, outs);
  if (x.numel() == 0) return outs;
  dispatch_gpu_floats(q.op, x.scalar_type(), [&](auto storage) {
    dispatch_gpu_floats(q.op, outs[0].scalar_type(), [&](auto out_storage) {
      using Out = decltype(out_storage);
      auto job = job_of<Quantizer, decltype(storage), Out>(q, x, layout, outs);
      for (int k = 0; k < job.levels; ++k) job.out[k] = static_cast<Out*>(outs[k].mutable_data_ptr());
      launch(forward_kernel<Quantizer, decltype(storage), Out>, blocks_of(job.walk), job);
    });
  });
  return outs;
}

// factor[k] * the channel sums of the partial sums, in the shape of `parameter`.
inline Tensor parameter_gradient(const Launch& launch, const Tensor& parameter, const Walk& walk, const Tensor& partial,
                                 const std::vector<double>& factors) {
  Tensor gradient = allocate_like(parameter);
  ChannelSum sum{
      walk, static_cast<const double*>(partial.const_data_ptr()), static_cast<float*>(gradient.mutable_data_ptr()), {}};
  std::copy(factors.begin(), factors.end(), sum.factor);
  launch(channel_sum_kernel<kThreads>, parameter.numel(), sum);
  return gradient;
}

// Gradients of x, of the scales and of the shifts (no elements where there are none).
template <template <class> class Quantizer>
std::tuple<Tensor, Tensor, Tensor> quantize_backward(const Quantizers& q, const std::vector<Tensor>& given_grads,
                                                     const Tensor& given_x, std::optional<int64_t> axis,
                                                     std::optional<double> grad_factor) {
  const Launch launch(q.op, given_x);
  const Tensor x = dense(given_x), grad_x = allocate_like(x);
  std::vector<Tensor> grads;
  for (const Tensor& grad : given_grads) grads.push_back(aligned(q.op, grad, x));
  const Layout layout = layout_of(q.op, x, axis);
  q.check_against(x, layout, grads);
  const Walk walk(layout.outer, layout.channels, layout.inner);
  const auto partial = [&](bool wanted) {
    const int64_t levels = static_cast<int64_t>(q.ranges.size());
    return torch::stable::new_empty(q.scales, {wanted ? levels * walk.tasks : 0}, ScalarType::Double);
  };
  const Tensor scale_sums = partial(true), shift_sums = partial(q.shifts.has_value());
  dispatch_gpu_floats(q.op, x.scalar_type(), [&](auto storage) {
    dispatch_gpu_floats(q.op, grads[0].scalar_type(), [&](auto grad_storage) {
      using T = decltype(storage);
      using Grad = decltype(grad_storage);
      auto job = job_of<Quantizer, T, Grad>(q, x, layout, grads);
      for (int k = 0; k < job.levels; ++k) job.grad[k] = static_cast<const Grad*>(grads[k].const_data_ptr());
      job.aligned = job.aligned && on_16_bytes(grad_x);
      job.grad_x = static_cast<T*>(grad_x.mutable_data_ptr());
      job.scale_sums = static_cast<double*>(scale_sums.mutable_data_ptr());
      job.shift_sums = static_cast<double*>(shift_sums.mutable_data_ptr());
      // sums are registers, so their number is known to the compiler
      const auto kernel = job.levels == 1   ? backward_kernel<Quantizer, T, Grad, 1>
                          : job.levels <= 4 ? backward_kernel<Quantizer, T, Grad, 4>
                                            : backward_kernel<Quantizer, T, Grad, kMaxLevels>;
      launch(kernel, blocks_of(walk), job);
    });
  });
  const std::vector<double> factors = q.grad_factors(layout, grad_factor);
  const Tensor grad_shifts =
      q.shifts ? parameter_gradient(launch, *q.shifts, walk, shift_sums, factors) : none_like(q.scales);
  return {grad_x, parameter_gradient(launch, q.scales, walk, scale_sums, factors), grad_shifts};
}

}  // namespace mbq
