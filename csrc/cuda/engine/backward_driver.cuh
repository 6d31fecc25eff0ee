// The backward half of quantizer.cuh: gradients of x in one launch, then those of the parameters in another.
#pragma once

#include "driver.cuh"

namespace mbq::cuda {

// Of the xs, and of the tensors of scales and shifts, in their order.
struct __attribute__((visibility("hidden"))) Gradients {
  std::vector<Tensor> xs, scales, shifts;
};

// Appends gradients like the tensors of `rows` to `gradients`, and to `sums` what fills them.
inline void append_gradients(const Quantizers& q, const Rows& rows, const Rows& units, const double* partial,
                             std::optional<double> grad_factor, std::vector<Tensor>& gradients,
                             std::vector<ChannelSum>& sums) {
  const int together = rows.shared ? static_cast<int>(q.ranges.size()) : 1;
  ChannelSum sum{Walk(q.layout.outer, q.layout.channels, q.layout.inner), together, static_cast<int>(q.ranges.size()),
                 partial};
  const std::vector<double> factors = q.grad_factors(grad_factor);
  for (size_t k = 0; k < factors.size(); ++k) {
    if (k < rows.tensors.size()) gradients.push_back(allocate_like(rows.tensors[k]));
    float* last = static_cast<float*>(gradients.back().mutable_data_ptr());
    sum.gradient[k] = rows.tensors.size() > 1 ? last : last + static_cast<int64_t>(k / together) * q.layout.channels;
    sum.unit[k] = units.row<float>(k, q.layout.channels);
    sum.factor[k] = factors[k];
  }
  sums.push_back(sum);
}

// The backward kernel whose sums, which are registers, are known to the compiler to be enough for `levels`.
template <template <class> class Quantizer, class T, class Grad, int capacity>
auto backward_kernel_of(int levels) {
  if constexpr (!kSingle<Quantizer>) {
    if (levels > 4) return backward_kernel<Quantizer, T, Grad, kMaxLevels, capacity>;
    if (levels > 1) return backward_kernel<Quantizer, T, Grad, 4, capacity>;
  }
  return backward_kernel<Quantizer, T, Grad, 1, capacity>;
}

// Memory for the partial sums of all xs, one half for scales and, where there are shifts, one for those.
inline Tensor allocate_sums(const std::vector<Quantizers>& each) {
  int64_t count = 0;
  for (const Quantizers& q : each)
    count += Walk(q.layout.outer, q.layout.channels, q.layout.inner).tasks *
             static_cast<int64_t>(q.ranges.size() * (q.shifts.absent() ? 1 : 2));
  return torch::stable::new_empty(each[0].x, {count}, ScalarType::Double);
}

// A warp adds the sums of a channel; a block, where some channel has many.
template <bool many>
void add_sums(const Launch& launch, const std::vector<ChannelSum>& sums) {
  constexpr int capacity = many ? kBatch<ChannelSum> : 2;
  int64_t most = 0;
  for (const ChannelSum& sum : sums) most = std::max(most, sum.walk.sums_of_channel());
  const bool wide = most > 16 * kWarpLanes;
  const int lanes = wide ? kThreads : kWarpLanes;
  launch_all(launch, wide ? channel_sum_kernel<kThreads, capacity> : channel_sum_kernel<kWarpLanes, capacity>, sums,
             [&](const ChannelSum& sum) { return (sum.count() * lanes + kThreads - 1) / kThreads; });
}

// given: one gradient per x and quantizer, in one flat list.
template <template <class> class Quantizer, bool many = false>
Gradients quantize_backward(const std::vector<Quantizers>& each, const std::vector<Tensor>& given,
                            std::optional<double> grad_factor) {
  const size_t levels = each[0].ranges.size();
  check(!given.empty() && given.size() == levels * each.size(), each[0].op, ": needs one gradient per bit-width (",
        levels * each.size(), "), got ", given.size());
  const Launch launch(each[0].op, each[0].x);
  const Tensor sums = allocate_sums(each);
  double* next = static_cast<double*>(sums.mutable_data_ptr());
  Gradients gradients;
  std::vector<ChannelSum> scale_sums, shift_sums;
  const ScalarType x_dtype = each[0].x.scalar_type(), grad_dtype = given[0].scalar_type();
  dispatch_pair<kSingle<Quantizer>>(launch.op, x_dtype, grad_dtype, [&](auto storage, auto grad_storage) {
    using T = decltype(storage);
    using Work = Job<Quantizer, T, decltype(grad_storage)>;
    std::vector<Work> jobs;
    std::vector<Tensor> aligned_grads;  // alive until the launch
    for (size_t t = 0; t < each.size(); ++t) {
      const Quantizers& q = each[t];
      std::vector<Tensor> grads = share(given, t, levels);
      for (Tensor& grad : grads) grad = aligned(q.op, grad, q.x);
      check(grads[0].scalar_type() == grad_dtype, q.op, ": all gradients must have one dtype");
      q.check_against(grads);
      Work job = job_of<Quantizer, T, decltype(grad_storage)>(q, grads);
      const Tensor& grad_x = gradients.xs.emplace_back(allocate_like(q.x));
      job.aligned = job.aligned && on_16_bytes(grad_x);
      job.grad_x = static_cast<T*>(grad_x.mutable_data_ptr());
      job.scale_sums = std::exchange(next, next + levels * job.walk.tasks);
      append_gradients(q, q.scales, q.units, job.scale_sums, grad_factor, gradients.scales, scale_sums);
      if (!q.shifts.absent()) {
        job.shift_sums = std::exchange(next, next + levels * job.walk.tasks);
        append_gradients(q, q.shifts, Rows(), job.shift_sums, grad_factor, gradients.shifts, shift_sums);
      }
      jobs.push_back(job);
      aligned_grads.insert(aligned_grads.end(), grads.begin(), grads.end());
    }
    constexpr int capacity = many ? kBatch<Work> : 1;
    const auto kernel = backward_kernel_of<Quantizer, T, decltype(grad_storage), capacity>(jobs[0].levels);
    launch_all(launch, kernel, jobs, [](const Work& job) { return blocks_of(job.walk); });
  });
  scale_sums.insert(scale_sums.end(), shift_sums.begin(), shift_sums.end());
  add_sums<many>(launch, scale_sums);
  return gradients;
}

// Gradients of x, of the scales and of the shifts (no elements where there are none), of one x.
template <template <class> class Quantizer>
std::tuple<Tensor, Tensor, Tensor> quantize_backward(const Quantizers& quantizers, const std::vector<Tensor>& grads,
                                                     std::optional<double> grad_factor) {
  const Gradients all = quantize_backward<Quantizer>(std::vector{quantizers}, grads, grad_factor);
  return {all.xs[0], all.scales[0], all.shifts.empty() ? none_like(all.scales[0]) : all.shifts[0]};
}

// Of many xs, in shared launches.
template <template <class> class Quantizer>
Gradients quantize_backward_each(const std::vector<Quantizers>& each, const std::vector<Tensor>& given,
                                 std::optional<double> grad_factor) {
  return quantize_backward<Quantizer, true>(each, given, grad_factor);
}

}  // namespace mbq::cuda
