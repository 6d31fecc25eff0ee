// Tensors in, tensors out, for round_clamp and the ops on its least significant bits: one launch forward, one backward.
#pragma once

#include "arguments/lsb.h"
#include "counters.cuh"
#include "driver.cuh"
#include "lsb_kernels.cuh"

namespace mbq::cuda {

// Tiles of a weight for threads that take `batch` accesses of numbers like T.
template <int batch, class T>
Tiles tiles_of(const Weight& weight, bool aligned) {
  const Layout& layout = weight.layout;
  check(layout.numel() < kMostElements, weight.op, ": x is too large for one launch");
  return Tiles(layout.outer, layout.channels, layout.inner, kLsbTile<batch, T>, kPack<T>, aligned);
}

// Blocks of a job; where something is counted an empty x has one too.
template <bool counts, class Work>
int64_t lsb_blocks(const Work& job) {
  return std::max<int64_t>(counts, job.tiles.blocks());
}

// Gives the jobs what they count in; what is returned must live until the launch.
template <class Work>
std::pair<Counters, Tensor> give_counts(const Launch& launch, const std::vector<Weight>& each,
                                        const std::vector<Tensor>& results, std::vector<Work>& jobs) {
  int64_t blocks = 0;
  for (const Work& job : jobs) blocks += lsb_blocks<true>(job);
  const Counters counters(launch, each[0].x, static_cast<int64_t>(jobs.size()));
  const Tensor partial = torch::stable::new_empty(each[0].x, {blocks, 2}, ScalarType::Int);
  uint32_t* next = static_cast<uint32_t*>(partial.mutable_data_ptr());
  for (size_t t = 0; t < jobs.size(); ++t) {
    jobs[t].counts = {std::exchange(next, next + 2 * lsb_blocks<true>(jobs[t])), counters.first() + t,
                      static_cast<double>(std::max<int64_t>(1, each[t].layout.numel())),
                      static_cast<float*>(results[0].mutable_data_ptr()) + t,
                      static_cast<float*>(results[1].mutable_data_ptr()) + t};
  }
  return {counters, partial};
}

// Values or residuals of every x, and with `counts` their penalties and rates; many: those are lists.
template <LsbOut out, bool counts, bool many = false>
Lsbs lsb_forward(const std::vector<Weight>& each) {
  const Launch launch(each[0].op, each[0].x);
  Lsbs lsbs;
  if (counts) lsbs.counts = allocate_counts(each, many);
  dispatch_pair<true>(launch.op, each[0].x.scalar_type(), each[0].x.scalar_type(), [&](auto storage, auto) {
    using T = decltype(storage);
    using Result = std::conditional_t<out == LsbOut::residual, int8_t, T>;
    using Work = RoundClampJob<T, Result>;
    constexpr int capacity = many ? kBatch<Work> : 1;
    std::vector<Work> jobs;
    for (const Weight& weight : each) {
      bool aligned = on_16_bytes(weight.x);
      Result* results = nullptr;
      if (out != LsbOut::nothing) {
        const auto dtype = out == LsbOut::residual ? ScalarType::Char : weight.x.scalar_type();
        const Tensor& to = lsbs.outs.emplace_back(allocate_like(weight.x, dtype));
        results = static_cast<Result*>(to.mutable_data_ptr());
        aligned = aligned && on_16_bytes(to);
      }
      jobs.push_back({tiles_of<kLsbBatch<out, T>, T>(weight, aligned),
                      {weight.quantizer<float>(), weight.limits<float>()},
                      static_cast<const T*>(weight.x.const_data_ptr()),
                      results});
    }
    std::optional<std::pair<Counters, Tensor>> counting;
    if (counts) counting.emplace(give_counts(launch, each, lsbs.counts, jobs));
    launch_all(launch, round_clamp_kernel<out, counts, T, Result, capacity>, jobs, lsb_blocks<counts, Work>);
  });
  return lsbs;
}

// Gradients of every x: of its penalty, and with `task` of its value too, of which `grads` are the upstream ones.
template <bool task, bool many = false>
std::vector<Tensor> lsb_backward(const std::vector<Weight>& each, const std::vector<Tensor>& grads,
                                 const Tensor& grad_penalties, bool unit_gradient) {
  const Launch launch(each[0].op, each[0].x);
  const std::vector<Tensor> upstream = aligned_each(each, grads);
  const Tensor penalties = checked_penalties(each, grad_penalties);
  check(!task || upstream.size() == each.size(), launch.op, ": needs a gradient per tensor");
  std::vector<Tensor> grad_xs;
  dispatch_pair<true>(launch.op, each[0].x.scalar_type(), each[0].x.scalar_type(), [&](auto storage, auto) {
    using T = decltype(storage);
    using Work = LsbGradientJob<T>;
    std::vector<Work> jobs;
    for (size_t t = 0; t < each.size(); ++t) {
      const Tensor& x = each[t].x;
      const Tensor& grad_x = grad_xs.emplace_back(allocate_like(x));
      const bool aligned = on_16_bytes(x) && on_16_bytes(grad_x) && (!task || on_16_bytes(upstream[t]));
      jobs.push_back({tiles_of<kLsbGradientBatch<task, T>, T>(each[t], aligned),
                      {each[t].quantizer<float>(unit_gradient), each[t].limits<float>()},
                      static_cast<const float*>(penalties.const_data_ptr()) + t,
                      static_cast<const T*>(x.const_data_ptr()),
                      task ? static_cast<const T*>(upstream[t].const_data_ptr()) : nullptr,
                      static_cast<T*>(grad_x.mutable_data_ptr())});
    }
    constexpr int capacity = many ? kBatch<Work> : 1;
    launch_all(launch, lsb_gradient_kernel<task, T, capacity>, jobs, lsb_blocks<false, Work>);
  });
  return grad_xs;
}

}  // namespace mbq::cuda
