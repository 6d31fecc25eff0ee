// The backward half of driver.cuh: the gradients of x and of the parameters in one launch.
#pragma once

#include "counters.cuh"
#include "driver.cuh"

namespace mbq::cuda {

// Appends gradients like the tensors of `rows` to `gradients`; to[k] is where row k's is. An x without elements leaves
// them 0.
inline void append_gradients(const Launch& launch, const Quantizers& q, const Rows& rows,
                             std::vector<Tensor>& gradients, float** to) {
  for (size_t k = 0; k < q.ranges.size() && !rows.absent(); ++k) {
    if (k < rows.tensors.size()) {
      const Tensor& gradient = gradients.emplace_back(allocate_like(rows.tensors[k]));
      const size_t bytes = gradient.numel() * sizeof(float);
      if (q.layout.numel() == 0 && bytes > 0)
        check_cuda(cudaMemsetAsync(gradient.mutable_data_ptr(), 0, bytes, launch.stream), q.op);
    }
    float* last = static_cast<float*>(gradients.back().mutable_data_ptr());
    to[k] = rows.tensors.size() > 1 || rows.shared ? last : last + static_cast<int64_t>(k) * q.layout.channels;
  }
}

// Gives jobs their part of the memory for partial sums, and of the counters; launches them.
template <bool plain, int capacity, class Work>
void launch_backward(const Launch& launch, const Tensor& like, std::vector<Work>& jobs) {
  int64_t sums = 0, tickets = 0;
  for (const Work& job : jobs) {
    sums += job.rows() * job.tiles.sums();
    tickets += job.tiles.counters();
  }
  const Tensor partial = torch::stable::new_empty(like, {sums}, ScalarType::Double);
  const Counters counters(launch, like, tickets);
  double* next = static_cast<double*>(partial.mutable_data_ptr());
  unsigned* counter = counters.first();
  for (Work& job : jobs) {
    job.partial = std::exchange(next, next + job.rows() * job.tiles.sums());
    job.counters = std::exchange(counter, counter + job.tiles.counters());
  }
  launch_all(launch, backward_kernel<Work, plain, capacity>, jobs, [](const Work& job) { return job.tiles.blocks(); });
}

// given: one gradient per x and quantizer, in one flat list.
template <template <class> class Quantizer, bool many = false>
Gradients quantize_backward(const std::vector<Quantizers>& each, const std::vector<Tensor>& given,
                            std::optional<double> grad_factor) {
  const size_t levels = each[0].ranges.size();
  const Launch launch(each[0].op, each[0].x);
  const std::vector<Tensor> grads = upstream_of_each(each, given);
  const ScalarType x_dtype = each[0].x.scalar_type(), grad_dtype = given[0].scalar_type();
  Gradients gradients;
  dispatch_pair<kSingle<Quantizer>>(launch.op, x_dtype, grad_dtype, [&](auto storage, auto grad_storage) {
    dispatch_loop<Quantizer, many>(each[0], [&](auto slots, auto plain) {
      using T = decltype(storage);
      using Work = BackwardJob<Quantizer, T, decltype(grad_storage), slots>;
      std::vector<Work> jobs(each.size());
      for (size_t t = 0; t < each.size(); ++t) {
        const Quantizers& q = each[t];
        const Tensor& grad_x = gradients.xs.emplace_back(allocate_like(q.x));
        fill_job<Quantizer>(jobs[t], q, share(grads, t, levels), &grad_x);
        jobs[t].grad_x = static_cast<T*>(grad_x.mutable_data_ptr());
        jobs[t].together = q.scales.shared;
        append_gradients(launch, q, q.scales, gradients.scales, jobs[t].scale_gradient);
        append_gradients(launch, q, q.shifts, gradients.shifts, jobs[t].shift_gradient);
        const std::vector<double> factors = q.grad_factors(grad_factor);
        std::copy(factors.begin(), factors.end(), jobs[t].factor);
      }
      launch_backward<plain, many ? kBatch<Work> : 1>(launch, each[0].x, jobs);
    });
  });
  return gradients;
}

// Gradients of x, of the scales and of the shifts (no elements where there are none), of one x.
template <template <class> class Quantizer>
std::tuple<Tensor, Tensor, Tensor> quantize_backward(const Quantizers& quantizers, const std::vector<Tensor>& grads,
                                                     std::optional<double> grad_factor) {
  return quantize_backward<Quantizer>(std::vector{quantizers}, grads, grad_factor).of_one();
}

// Of many xs, in shared launches.
template <template <class> class Quantizer>
Gradients quantize_backward_each(const std::vector<Quantizers>& each, const std::vector<Tensor>& given,
                                 std::optional<double> grad_factor) {
  return quantize_backward<Quantizer, true>(each, given, grad_factor);
}

}  // namespace mbq::cuda
